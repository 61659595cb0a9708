"""Readers of preference data, with valid files; see `readers`."""

import json
import pathlib
import shutil

from dmpo_jax.data import FolderPairs, tfds_folder
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert import report as reports
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.latents import cache, records
from dmpo_jax.data.toy import image_captions
from tests.data import sets, test_folder_pairs
from tests.data.convert.conversions import files as contents
from tests.data.latents import caches
from tests.fuzz.damage import sealed
from tests.fuzz.harness import Reader, command

ROWS = [test_folder_pairs.row(i) for i in range(6)]


def _beside(root: pathlib.Path, name: str) -> pathlib.Path:
  """A new folder beside a reader's."""
  folder = root.parent / f"{root.name}-{name}"
  folder.mkdir()
  return folder


def _kinds(folder: pathlib.Path, root: pathlib.Path, kind="json") -> dict:
  """Kinds of damage to the files in a folder; `kind` is that of JSON."""
  return {
    str(path.relative_to(root)): kind if path.suffix == ".json" else "binary"
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.suffix not in (".html", ".lock")
  }


def converted_folder(root: pathlib.Path) -> Reader:
  """A converted set of pairs, by every way in: a run, TFDS, and the command that made it."""
  out = pathlib.Path(test_folder_pairs.write(_beside(root, "source"), ROWS))
  out.rename(root / "set")

  def read(folder):
    reports.lines(tfds_folder.read_report(folder / "set"))
    tfds_folder.open_folder(folder / "set")
    pairs = FolderPairs(folder=str(folder / "set"), size=8)
    assert len(pairs.loader(test_folder_pairs.tokenize, channels=3, batch_size=6, seed=0)[0]) > 2

  return Reader(root, _kinds(root / "set", root), read)


def cached_latents(root: pathlib.Path) -> Reader:
  """Cached latents, their manifest under a right checksum."""
  pairs = test_folder_pairs.write(_beside(root, "source"), ROWS)
  cache.cache_latents(pathlib.Path(pairs), root / "set", caches.encoders(), caches.VIEWS)

  def seal(manifest):
    manifest = {k: v for k, v in manifest.items() if k != "sha256"}
    return manifest | {"sha256": records.checksum(manifest)}

  def read(folder):
    assert len(caches.load(folder / "set", batch_size=6)[0]["latents"]) == 6
    cache.lines(records.read_manifest(folder / "set"))

  return Reader(root, _kinds(root / "set", root, sealed(seal)), read)


def interrupted_conversion(root: pathlib.Path) -> Reader:
  """Half of a conversion, which ends with the bytes of a whole one."""
  beside = _beside(root, "source")
  sets.pickapic(beside / "source/train-0.parquet", ROWS, group=2)
  source = source_reader.find("pickapic", beside / "source")
  options = Options(rows_per_shard=2)
  convert.convert(source, beside / "whole", options)
  convert.convert(source, root / "set", options, hosts=2)

  def read(folder):
    convert.convert(source, folder / "set", options)
    assert contents(folder / "set") == contents(beside / "whole")

  return Reader(root, _kinds(root / "set", root), read)


def interrupted_cache(root: pathlib.Path) -> Reader:
  """Half of a cache of latents, which ends with the bytes of a whole one."""
  beside = _beside(root, "source")
  pairs = pathlib.Path(test_folder_pairs.write(beside, ROWS))
  cache.cache_latents(pairs, beside / "whole", caches.encoders(), caches.VIEWS)
  cache.cache_latents(pairs, root / "set", caches.encoders(), caches.VIEWS, hosts=2)

  def read(folder):
    cache.cache_latents(pairs, folder / "set", caches.encoders(), caches.VIEWS)
    assert contents(folder / "set") == contents(beside / "whole")

  return Reader(root, _kinds(root / "set", root), read)


def three_folders(root: pathlib.Path) -> Reader:
  """`dmpo-jax data convert custom` of winner/, loser/ and captions/."""
  for i in range(2):
    sets.save(root / f"winner/{i}.png", i)
    sets.save(root / f"loser/{i}.png", 9 + i)
    (root / "captions").mkdir(exist_ok=True)
    (root / f"captions/{i}.txt").write_bytes(b"\xef\xbb\xbfa fox\r\n")

  def read(folder):
    out = folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    command("data", "convert", "custom", folder, "--out", out, "--workers", "1")

  texts = {f"captions/{i}.txt": "text" for i in range(2)}
  return Reader(root, texts | {"winner/1.png": "binary"}, read)


def captioned_images(root: pathlib.Path) -> Reader:
  """Images with captions.csv."""
  for i in range(2):
    sets.save(root / f"images/{i}.png", i)
  rows = "".join(f"images/{i}.png,a fox,train\n" for i in range(2))
  (root / "captions.csv").write_text("file,caption,split\n" + rows)
  read = lambda folder: image_captions.load(folder, size=8, split="train")  # noqa: E731
  return Reader(root, {"captions.csv": "text", "images/0.png": "binary"}, read)


def bad_rows(root: pathlib.Path) -> Reader:
  """`--on-bad-row=skip`, which lists damaged rows in its report and in bad_rows.jsonl."""
  sets.custom(root, [], "pairs.jsonl")
  row = {"prompt": "a", "image_0": "0.png", "image_1": "1.png", "label_0": 1, "weight": 0.5}
  (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(6)))

  def read(folder):
    out = folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    table = folder / "pairs.jsonl"
    command(*("data", "convert", "custom", table, "--out", out, "--on-bad-row=skip", "--workers=1"))
    for line in (out / "bad_rows.jsonl").read_text().splitlines():
      assert json.loads(line)["reason"].isprintable()

  return Reader(root, {"pairs.jsonl": "jsonl"}, read)


DATA_READERS = (
  converted_folder,
  cached_latents,
  interrupted_conversion,
  interrupted_cache,
  three_folders,
  captioned_images,
  bad_rows,
)
