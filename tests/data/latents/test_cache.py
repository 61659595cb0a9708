"""Cached latents: the stored numbers, the order of the examples, and invalid input.

The networks are three lines of numpy, so that every stored number is known.
"""

import hashlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dmpo_jax.common import atomic_files
from dmpo_jax.data import CachedLatents, FolderPairs, LatentEncoders, crops
from dmpo_jax.data.latents import cache, records
from dmpo_jax.data.latents.options import Options
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError
from tests.data import test_folder_pairs as folder_pairs

SIZE = 16
VIEWS = Options(
  size=SIZE, crop="random", flip=True, augmentations=3, dtype="float32", pairs_per_shard=4
)


def latents(images):
  """[n, H, W, 3] bytes -> the pixels as means, and log variances of -16."""
  mean = images.astype(np.float32)
  return np.stack([mean, np.full_like(mean, -16)], axis=1)


def text(ids):
  """[n, L] -> embeddings that hold the token ids, [n, L, 2] and [n, 3]."""
  hidden = np.stack([ids["input_ids"], 1 + ids["input_ids"]], axis=-1).astype(np.float32)
  return {"hidden": hidden, "pooled": hidden[:, :3, 0] / 3}


def encoders(**changes) -> LatentEncoders:
  networks = LatentEncoders(
    fingerprint={"encoders": {"vae": {"weights": "a"}}, "tokenizers": {"tokenizer": "t"}},
    tokenize=folder_pairs.tokenize,
    latents=latents,
    text=text,
    pairs=3,
    captions=4,
    channels=3,
  )
  return networks._replace(**changes)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Ten pairs; pair 9 has the caption of pair 1."""
  rows = [folder_pairs.row(i) for i in range(9)] + [folder_pairs.row(9, caption="caption 1")]
  return folder_pairs.write(tmp_path_factory.mktemp("pairs"), rows)


@pytest.fixture(scope="module")
def folder(pairs, tmp_path_factory):
  """Three views of each pair, as float32."""
  out = tmp_path_factory.mktemp("cached") / "out"
  cache.cache_latents(pairs, out, encoders(), VIEWS)
  return out


def load(folder, *, batch_size=4, seed=0, processes=(0, 1), **options):
  examples = CachedLatents(folder=str(folder), **options)
  index, count = processes
  return examples.loader(batch_size=batch_size, seed=seed, process_index=index, process_count=count)


def from_images(pairs, *, seed=0, batch_size=4, **options):
  examples = FolderPairs(folder=pairs, size=SIZE, crop="random", flip=True, **options)
  return examples.loader(folder_pairs.tokenize, channels=3, batch_size=batch_size, seed=seed)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("ties", ["soft", "drop"])
def test_the_first_epochs_are_those_of_training_on_images(pairs, folder, ties):
  options = {"micro_conditioning": True}
  ours, theirs = load(folder, embeddings=False, **options), from_images(pairs, **options)
  if ties == "drop":  # ids, on which crops depend, are then counted among fewer pairs
    ours = load(folder, embeddings=False, ties=ties)
    theirs = from_images(pairs, ties=ties)
  for step in range(6 if ties == "drop" else 7):  # 28 of 30 views
    batch, expected = ours[step], theirs[step]
    if ties == "soft":
      np.testing.assert_array_equal(batch["latents"][:, :, records.MEAN], expected["pixels"])
      np.testing.assert_array_equal(batch["geometry"], expected["geometry"])
    for name in {"example_id", "label", "weight"} & set(expected):
      np.testing.assert_array_equal(batch[name], expected[name])
    folder_pairs.assert_same(batch["text"], expected["text"])
    assert ("label" in batch) == ("label" in expected)


def test_after_as_many_epochs_as_views_the_first_view_repeats(folder):
  def epoch(number):
    batches = [load(folder, batch_size=5)[2 * number + i] for i in range(2)]
    order = np.argsort(np.concatenate([b["example_id"] for b in batches]))
    return np.concatenate([b["latents"] for b in batches])[order]

  first, second, fourth = epoch(0), epoch(1), epoch(3)
  np.testing.assert_array_equal(first, fourth)
  assert not np.array_equal(first, second)


def test_both_images_of_a_pair_have_the_same_crop(folder):
  mean = np.concatenate([load(folder)[i]["latents"][:, :, records.MEAN] for i in range(7)])
  np.testing.assert_array_equal(mean[:, 0, ..., :2], mean[:, 1, ..., :2])


def test_embeddings_are_those_of_the_captions_stored_once_per_shard(folder):
  for step in range(3):
    tokens = load(folder, embeddings=False)[step]["text"]
    folder_pairs.assert_same(load(folder)[step]["text"], text(tokens))
  manifest = records.read_manifest(folder)
  assert manifest["captions"] == 10  # caption 1 in the first shard and in the last
  counts = [file["records"] for file in manifest["files"].values()]
  assert sorted(counts) == [3, 5, 5, 6, 12, 12]  # with the empty caption of each
  null = CachedLatents(folder=str(folder)).null()
  np.testing.assert_array_equal(null["hidden"], text(folder_pairs.tokenize([""])[0])["hidden"][0])


def test_without_embeddings_batches_hold_token_ids(pairs, folder, tmp_path):
  cache.cache_latents(pairs, tmp_path / "out", encoders(), VIEWS._replace(embeddings=False))
  for loader in (load(folder, embeddings=False), load(tmp_path / "out", embeddings=False)):
    assert set(loader[0]) == {"latents", "text", "example_id", "label", "weight", "geometry"}
    assert set(loader[0]["text"]) == {"input_ids"}
  assert not list((tmp_path / "out").glob("captions*"))
  with pytest.raises(InputError, match=r"holds no text embeddings.*embeddings=False"):
    load(tmp_path / "out")


def test_the_parts_of_processes_and_batches_read_ahead_are_those_of_the_steps(folder):
  whole = load(folder)
  parts = [load(folder, processes=(i, 2)) for i in range(2)]
  ahead = whole.iterate(5)
  for step in (5, 6):
    pieces = [part[step] for part in parts]
    following = next(ahead)
    folder_pairs.assert_same(folder_pairs.join(pieces), whole[step])
    folder_pairs.assert_same(following, whole[step])
  ahead.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_error_of_rounding_is_measured(pairs, tmp_path, dtype):
  noise = np.random.default_rng(0).normal(size=(6, SIZE, SIZE, 3)).astype(np.float32)
  networks = encoders(latents=lambda images: latents(images) + noise[:, None])
  manifest = cache.cache_latents(
    pairs, tmp_path / "out", networks, VIEWS._replace(dtype=dtype, augmentations=1)
  )
  batch = load(tmp_path / "out", batch_size=10)[0]
  assert batch["latents"].dtype == batch["text"]["hidden"].dtype == records.DTYPES[dtype]
  # Uniform within a step of 2^-p relative to the power of two below: 2^-p/sqrt(12) times at most 1.
  step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
  error = manifest["errors"]["mean"]
  assert 0.4 * step / 12**0.5 < error["rms"] < step / 12**0.5
  assert error["max"] * error["scale"] <= 128 * step / 2
  spread = np.exp(-16 / 2) * np.sqrt(np.mean(np.exp(noise, dtype=float)))
  np.testing.assert_allclose(error["of_spread"], error["rms"] * error["scale"] / spread, rtol=0.02)
  assert "rms" in cache.lines(manifest)


def test_in_float32_nothing_is_rounded(folder):
  errors = records.read_manifest(folder)["errors"]
  assert set(errors) == {"mean", "log_variance", "hidden", "pooled"}
  assert all(error["rms"] == error["max"] == 0 for error in errors.values())


def test_an_interrupted_command_resumes_and_writes_the_same_bytes(pairs, folder, tmp_path):
  out, calls = tmp_path / "out", []

  def failing(images):
    calls.append(len(images))
    if len(calls) == 6:  # in the second shard
      raise KeyboardInterrupt
    return latents(images)

  with pytest.raises(KeyboardInterrupt):
    cache.cache_latents(pairs, out, encoders(latents=failing), VIEWS)
  assert not list(out.rglob("*.tmp"))
  with pytest.raises(InputError, match=r"no finished cache of latents.*again to resume"):
    load(out)
  first = out / records.file_name("pairs", "train", 0, 3)
  before, done = first.stat().st_mtime_ns, []
  cache.cache_latents(pairs, out, encoders(), VIEWS, progress=done.append)
  assert first.stat().st_mtime_ns == before
  assert sum(done) == 10
  assert contents(out) == contents(folder)


def test_a_killed_command_resumes_and_writes_the_same_bytes(pairs, folder, tmp_path):
  program = (
    "import sys, time; sys.path.insert(0, sys.argv[3])\n"
    "from tests.data.latents.test_cache import *\n"
    "slow = lambda images: (time.sleep(0.05), latents(images))[1]\n"
    "cache.cache_latents(sys.argv[1], sys.argv[2], encoders(latents=slow), VIEWS)"
  )
  out, root = tmp_path / "out", pathlib.Path(__file__).parents[3]
  running = subprocess.Popen([sys.executable, "-c", program, pairs, str(out), str(root)])
  while not list((out / cache.WORKING).glob("*-00001-of-*.tmp")):  # of the second shard
    assert running.poll() is None
    time.sleep(0.005)
  running.send_signal(signal.SIGKILL)
  running.wait()
  assert cache.missing(out) == 2
  cache.cache_latents(pairs, out, encoders(), VIEWS)
  assert contents(out) == contents(folder)


def test_the_bytes_do_not_depend_on_hosts_and_devices(pairs, folder, tmp_path):
  out = tmp_path / "out"
  assert cache.cache_latents(pairs, out, encoders(), VIEWS, host=1, hosts=2) is None
  assert cache.missing(out) == 2
  wider = encoders(pairs=6, captions=8)  # two devices' batches
  assert cache.cache_latents(pairs, out, wider, VIEWS, host=0, hosts=2) is not None
  assert contents(out) == contents(folder)


def test_a_host_that_another_one_overtakes_at_the_end_returns_the_manifest(
  pairs, folder, tmp_path, monkeypatch
):
  out, missing = tmp_path / "out", ResumableFolder.missing

  def overtaken(*arguments):  # this host has finished its shards and looks for missing ones
    monkeypatch.setattr(ResumableFolder, "missing", missing)
    cache.cache_latents(pairs, out, encoders(), VIEWS)
    return missing(*arguments)

  monkeypatch.setattr(ResumableFolder, "missing", overtaken)
  manifest = cache.cache_latents(pairs, out, encoders(), VIEWS)
  assert manifest == records.read_manifest(folder)


def test_a_finished_folder_is_not_changed(pairs, folder, tmp_path):
  out = shutil.copytree(folder, tmp_path / "out")
  manifest = cache.cache_latents(pairs, out, encoders(latents=None), VIEWS)
  assert manifest == records.read_manifest(folder)


@pytest.mark.parametrize(
  ("networks", "options", "message"),
  [
    ({}, {"size": 8}, r"options\.size: 16 there, 8 here"),
    ({}, {"dtype": "float16"}, r"options\.dtype: 'float32' there"),
    ({}, {"batch_size": 2}, r"options\.batch_size: 1 there, 2 here"),
    ({"fingerprint": {"encoders": {"vae": {"weights": "b"}}}}, {}, r"vae\.weights: 'a' there"),
  ],
)
def test_other_options_or_networks_need_another_folder(pairs, folder, networks, options, message):
  with pytest.raises(InputError, match=message):
    cache.cache_latents(pairs, folder, encoders(**networks), VIEWS._replace(**options))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"dtype": "float8"}, "unknown dtype to store 'float8'"),
    ({"augmentations": 0}, "augmentations must be at least 1"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"pairs_per_shard": 0}, "pairs_per_shard must be at least 1"),
    ({"crop": "center", "flip": False}, "3 augmentations of a center crop without flips"),
    ({"crop": "middle"}, "unknown crop"),
    ({"size": 0}, "size must be"),
    ({"seed": -1}, "seed must be"),
    ({"split": "trian"}, "did you mean 'train'"),
  ],
)
def test_invalid_options_are_refused(pairs, tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    cache.cache_latents(pairs, tmp_path / "out", encoders(), VIEWS._replace(**changes))


def test_a_folder_with_other_files_is_not_written_to(pairs, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="holds no cache of latents"):
    cache.cache_latents(pairs, tmp_path, encoders(), VIEWS)


@pytest.mark.parametrize(
  ("value", "dtype", "message"),
  [
    (np.nan, "float32", r"VAE posterior of pair 0 of split 'train' .* not finite"),
    (1e5, "float16", r"pair 0 .* reaches 1e\+05, too large for float16; store it as bfloat16"),
  ],
)
def test_numbers_that_cannot_be_stored_are_refused(pairs, tmp_path, value, dtype, message):
  networks = encoders(latents=lambda images: latents(images) * 0 + np.float32(value))
  with pytest.raises(InputError, match=message):
    cache.cache_latents(pairs, tmp_path / "out", networks, VIEWS._replace(dtype=dtype))


def test_a_full_disk_is_an_error_and_the_command_resumes(pairs, folder, tmp_path):
  out = tmp_path / "out"
  parts = {
    kind: out
    / cache.WORKING
    / atomic_files.temporary_name(out / records.file_name(kind, "train", 1, 3))
    for kind in records.KINDS
  }

  def filling(images):
    if parts["pairs"].exists() and not parts["captions"].is_symlink():
      parts["captions"].symlink_to("/dev/full")
    return latents(images)

  with pytest.raises(OSError, match=r"No space left on device.*free space"):
    cache.cache_latents(pairs, out, encoders(latents=filling), VIEWS)
  assert not list(out.rglob("*.tmp"))
  assert cache.missing(out) == 2
  cache.cache_latents(pairs, out, encoders(), VIEWS)
  assert contents(out) == contents(folder)


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("kind", records.KINDS)
def test_a_truncated_file_is_named_before_training(copy, kind):
  path = copy / records.file_name(kind, "train", 1, 3)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(
    InputError, match=rf"{path} has \d+ bytes, \d+ were written.*cache the latents again"
  ):
    load(copy)


def test_a_damaged_record_is_named(copy):
  path = copy / records.file_name("pairs", "train", 0, 3)
  content = bytearray(path.read_bytes())
  content[200:260] = bytes(60)
  path.write_bytes(content)
  with pytest.raises(InputError, match=rf"record 0 of split 'train' in {copy} is damaged"):
    [load(copy)[i] for i in range(8)]


@pytest.mark.parametrize("damage", [None, 3, 200])
def test_a_missing_or_damaged_index_is_named(copy, damage):
  path = copy / "index-train.npy"
  content = bytearray(path.read_bytes())
  path.unlink()
  if damage:
    content[damage] ^= 1
    path.write_bytes(content)
  with pytest.raises(
    InputError, match=r"index-train\.npy is missing or damaged.*cache the latents again"
  ):
    load(copy)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: "{", "manifest.json is damaged"),
    (lambda m: "[]", "manifest.json is damaged"),
    (lambda m: json.dumps({**m, "layout": {}}), "manifest.json is damaged"),
    (
      lambda m: json.dumps({**m, "version": "0.9"}),
      "version '0.9', this version of dmpo-jax reads 2.*cache the latents again",
    ),
  ],
)
def test_an_unusable_manifest_is_named(copy, change, message):
  path = copy / records.MANIFEST
  path.write_text(change(json.loads(path.read_text())))
  with pytest.raises(InputError, match=message):
    load(copy)


def test_cached_latents_have_no_captions_for_a_new_pipeline(folder):
  with pytest.raises(InputError, match=r"set config\.pipeline"):
    CachedLatents(folder=str(folder)).captions  # noqa: B018


def test_folders_are_mixed_by_their_weights(folder):
  examples = CachedLatents(folders=(str(folder),) * 2, weights=(3, 1))
  loader = examples.loader(batch_size=4, seed=0)
  ids = np.concatenate([loader[i]["example_id"] for i in range(20)])
  assert abs(np.cumsum(ids < 10) - 0.75 * np.arange(1, 81)).max() <= 1


def test_folders_of_different_options_are_not_mixed(pairs, folder, tmp_path):
  cache.cache_latents(pairs, tmp_path / "out", encoders(), VIEWS._replace(dtype="float16"))
  with pytest.raises(InputError, match=r"(?s)were cached differently.*layout"):
    CachedLatents(folders=(str(folder), str(tmp_path / "out")), weights=(1, 1))


def test_the_fingerprint_depends_on_the_stored_bytes(pairs, folder, copy, tmp_path):
  cache.cache_latents(pairs, tmp_path / "out", encoders(), VIEWS._replace(seed=1))
  prints = [
    CachedLatents(folder=str(path)).fingerprint() for path in (folder, copy, tmp_path / "out")
  ]
  prints.append(CachedLatents(folder=str(folder), ties="drop").fingerprint())
  assert prints[0] == prints[1]
  assert len(set(prints)) == 3


def test_the_manifest_has_the_checksum_of_every_file(folder):
  for name, file in records.read_manifest(folder)["files"].items():
    data = (folder / name).read_bytes()
    assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_crops_are_those_of_training(pairs, folder):
  source = records.CachedPairSource(folder)
  for row, view in ((0, 0), (3, 2), (9, 1)):
    crop = crops.sample(0, view, row, crop="random", flip=True)
    pixels, _ = crops.load(folder_pairs.image(row, 0), crop, size=SIZE, channels=3)
    cached = source.read(row, view, False).pair["latents"]
    np.testing.assert_array_equal(cached[0, records.MEAN], pixels)
