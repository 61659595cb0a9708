"""Encoding pairs once: what is stored, in which order it comes back, and what is refused.

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
from dmpo_jax.data import LatentEncoders, crops, datasets
from dmpo_jax.data.latents import encode
from dmpo_jax.data.latents import records as encoded
from dmpo_jax.data.latents.encode import Options
from dmpo_jax.errors import InputError
from tests.data import test_folder_pairs as stored

SIZE = 16
VIEWS = Options(
  size=SIZE, crop="random", flip=True, augmentations=3, dtype="float32", pairs_per_shard=4
)


def moments(images):
  """[n, H, W, 3] bytes -> means, the pixels themselves; and log variances, -16 everywhere."""
  mean = images.astype(np.float32)
  return np.stack([mean, np.full_like(mean, -16)], axis=1)


def text(ids):
  """[n, L] -> embeddings [n, L, 2] and pooled [n, 3] that tell the tokens."""
  hidden = np.stack([ids["input_ids"], 1 + ids["input_ids"]], axis=-1).astype(np.float32)
  return {"embeddings": hidden, "pooled": hidden[:, :3, 0] / 3}


def encoders(**changes) -> LatentEncoders:
  networks = LatentEncoders(
    identity={"encoders": {"vae": {"weights": "a"}}, "tokenizers": {"tokenizer": "t"}},
    tokenize=stored.tokenize,
    moments=moments,
    text=text,
    pairs=3,
    captions=4,
    channels=3,
  )
  return networks._replace(**changes)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Ten pairs; pair 9 has the caption of pair 1."""
  rows = [stored.row(i) for i in range(9)] + [stored.row(9, caption="caption 1")]
  return stored.write(tmp_path_factory.mktemp("pairs"), rows)


@pytest.fixture(scope="module")
def folder(pairs, tmp_path_factory):
  """Three views of each pair, as float32."""
  out = tmp_path_factory.mktemp("encoded") / "out"
  encode.encode(pairs, out, encoders(), VIEWS)
  return out


def load(folder, *, batch_size=4, seed=0, processes=(0, 1), **options):
  found = datasets.cached_latents(folder=str(folder), **options)
  index, count = processes
  return found.loader(batch_size=batch_size, seed=seed, process_index=index, process_count=count)


def from_images(pairs, *, seed=0, batch_size=4, **options):
  found = datasets.pairs(folder=pairs, size=SIZE, crop="random", flip=True, **options)
  return found.loader(stored.tokenize, channels=3, batch_size=batch_size, seed=seed)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("ties", ["soft", "drop"])
def test_for_as_many_epochs_as_views_a_run_sees_what_training_on_images_sees(pairs, folder, ties):
  ours, theirs = load(folder, micro_conditioning=True), from_images(pairs, micro_conditioning=True)
  if ties == "drop":  # ids, by which views are drawn, are then counted among fewer pairs
    ours, theirs = (f(x, ties=ties) for f, x in ((load, folder), (from_images, pairs)))
  for step in range(6 if ties == "drop" else 7):  # 28 of 30 views
    found, wanted = ours[step], theirs[step]
    if ties == "soft":
      np.testing.assert_array_equal(found["images"][:, :, encoded.MEAN], wanted["images"])
      np.testing.assert_array_equal(found["micro_conditioning"], wanted["micro_conditioning"])
    for name in {"input_ids", "example_id", "label", "weight"} & set(wanted):
      np.testing.assert_array_equal(found[name], wanted[name])
    assert ("label" in found) == ("label" in wanted)


def test_after_as_many_epochs_as_views_the_first_comes_again(folder):
  def epoch(number):
    batches = [load(folder, batch_size=5)[2 * number + i] for i in range(2)]
    order = np.argsort(np.concatenate([b["example_id"] for b in batches]))
    return np.concatenate([b["images"] for b in batches])[order]

  first, second, fourth = epoch(0), epoch(1), epoch(3)
  np.testing.assert_array_equal(first, fourth)
  assert not np.array_equal(first, second)


def test_both_images_of_a_pair_are_seen_alike(folder):
  mean = np.concatenate([load(folder)[i]["images"][:, :, encoded.MEAN] for i in range(7)])
  np.testing.assert_array_equal(mean[:, 0, ..., :2], mean[:, 1, ..., :2])


def test_embeddings_are_those_of_the_captions_which_are_stored_once_in_a_shard(folder):
  for step in range(3):
    batch = load(folder)[step]
    wanted = text({"input_ids": batch["input_ids"]})
    for name in ("embeddings", "pooled"):
      np.testing.assert_array_equal(batch[name], wanted[name])
  manifest = encoded.read_manifest(folder)
  assert manifest["captions"] == 10  # caption 1 in the first shard and in the last
  records = {n: f["records"] for n, f in manifest["files"].items()}
  assert sorted(records.values()) == [3, 5, 5, 6, 12, 12]  # the empty one before those of each
  null = datasets.cached_latents(folder=str(folder)).null()
  np.testing.assert_array_equal(null["embeddings"], text(stored.tokenize([""])[0])["embeddings"][0])


def test_without_embeddings_batches_have_tokens_alone(pairs, folder, tmp_path):
  encode.encode(pairs, tmp_path / "out", encoders(), VIEWS._replace(embeddings=False))
  for loader in (load(folder, embeddings=False), load(tmp_path / "out", embeddings=False)):
    assert set(loader[0]) == {
      *("images", "input_ids", "example_id", "label", "weight", "micro_conditioning"),
    }
  assert not list((tmp_path / "out").glob("captions*"))
  with pytest.raises(InputError, match=r"holds no text embeddings.*embeddings=False"):
    load(tmp_path / "out")


def test_the_parts_of_processes_are_the_batch_and_reading_ahead_changes_nothing(folder):
  whole = load(folder)
  parts = [load(folder, processes=(i, 2)) for i in range(2)]
  ahead = whole.iterate(5)
  for step in (5, 6):
    pieces = [part[step] for part in parts]
    following = next(ahead)
    for name in whole[step]:
      together = np.concatenate([p[name] for p in pieces])
      np.testing.assert_array_equal(together, whole[step][name])
      np.testing.assert_array_equal(following[name], whole[step][name])
  ahead.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_error_of_rounding_is_measured(pairs, tmp_path, dtype):
  noise = np.random.default_rng(0).normal(size=(6, SIZE, SIZE, 3)).astype(np.float32)
  networks = encoders(moments=lambda images: moments(images) + noise[:, None])
  manifest = encode.encode(
    pairs, tmp_path / "out", networks, VIEWS._replace(dtype=dtype, augmentations=1)
  )
  batch = load(tmp_path / "out", batch_size=10)[0]
  assert batch["images"].dtype == batch["embeddings"].dtype == encoded.DTYPES[dtype]
  # Uniform within a step of 2^-p relative to the power of two below: 2^-p/sqrt(12) times at most 1.
  step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
  error = manifest["errors"]["mean"]
  assert 0.4 * step / 12**0.5 < error["rms"] < step / 12**0.5
  assert error["max"] * error["scale"] <= 128 * step / 2
  spread = np.exp(-16 / 2) * np.sqrt(np.mean(np.exp(noise, dtype=float)))
  np.testing.assert_allclose(error["of_spread"], error["rms"] * error["scale"] / spread, rtol=0.02)
  assert "rms" in encode.lines(manifest)


def test_in_float32_nothing_is_rounded(folder):
  errors = encoded.read_manifest(folder)["errors"]
  assert set(errors) == {"mean", "log_variance", "embeddings", "pooled"}
  assert all(error["rms"] == error["max"] == 0 for error in errors.values())


def test_an_interrupted_encoding_goes_on_and_ends_the_same_to_the_byte(pairs, folder, tmp_path):
  out, calls = tmp_path / "out", []

  def failing(images):
    calls.append(len(images))
    if len(calls) == 6:  # in the second shard
      raise KeyboardInterrupt
    return moments(images)

  with pytest.raises(KeyboardInterrupt):
    encode.encode(pairs, out, encoders(moments=failing), VIEWS)
  assert not list(out.rglob("*.tmp"))
  with pytest.raises(InputError, match=r"no finished encoding.*goes on where it was"):
    load(out)
  first = out / encoded.file_name("pairs", "train", 0, 3)
  before, done = first.stat().st_mtime_ns, []
  encode.encode(pairs, out, encoders(), VIEWS, advance=done.append)
  assert first.stat().st_mtime_ns == before
  assert sum(done) == 10
  assert contents(out) == contents(folder)


def test_a_killed_encoding_goes_on_and_ends_the_same_to_the_byte(pairs, folder, tmp_path):
  program = (
    "import sys, time; sys.path.insert(0, sys.argv[3])\n"
    "from tests.data.latents.test_encode import *\n"
    "slow = lambda images: (time.sleep(0.05), moments(images))[1]\n"
    "encode.encode(sys.argv[1], sys.argv[2], encoders(moments=slow), VIEWS)"
  )
  out, root = tmp_path / "out", pathlib.Path(__file__).parents[2]
  running = subprocess.Popen([sys.executable, "-c", program, pairs, str(out), str(root)])
  while not list((out / encode.WORKING).glob("*-00001-of-*.tmp")):  # of the second shard
    assert running.poll() is None
    time.sleep(0.005)
  running.send_signal(signal.SIGKILL)
  running.wait()
  assert encode.missing(out) == 2
  encode.encode(pairs, out, encoders(), VIEWS)
  assert contents(out) == contents(folder)


def test_hosts_and_devices_share_the_work_and_change_no_byte(pairs, folder, tmp_path):
  out = tmp_path / "out"
  assert encode.encode(pairs, out, encoders(), VIEWS, host=1, hosts=2) is None
  assert encode.missing(out) == 2
  wider = encoders(pairs=6, captions=8)  # two devices' batches
  assert encode.encode(pairs, out, wider, VIEWS, host=0, hosts=2) is not None
  assert contents(out) == contents(folder)


def test_a_host_that_another_one_overtakes_at_the_end_finds_the_set_finished(
  pairs, folder, tmp_path, monkeypatch
):
  out, missing = tmp_path / "out", encode.missing

  def overtaken(*arguments):  # when this host is done and before it looks who else is
    monkeypatch.setattr(encode, "missing", missing)
    encode.encode(pairs, out, encoders(), VIEWS)
    return missing(*arguments)

  monkeypatch.setattr(encode, "missing", overtaken)
  manifest = encode.encode(pairs, out, encoders(), VIEWS)
  assert manifest == encoded.read_manifest(folder)


def test_a_finished_folder_is_left_as_it_is(pairs, folder, tmp_path):
  out = shutil.copytree(folder, tmp_path / "out")
  manifest = encode.encode(pairs, out, encoders(moments=None), VIEWS)
  assert manifest == encoded.read_manifest(folder)


@pytest.mark.parametrize(
  ("networks", "options", "message"),
  [
    ({}, {"size": 8}, r"options\.size: 16 there, 8 here"),
    ({}, {"dtype": "float16"}, r"options\.dtype: 'float32' there"),
    ({}, {"batch_size": 2}, r"options\.batch_size: 1 there, 2 here"),
    ({"identity": {"encoders": {"vae": {"weights": "b"}}}}, {}, r"vae\.weights: 'a' there"),
  ],
)
def test_another_encoding_in_the_same_folder_is_refused(pairs, folder, networks, options, message):
  with pytest.raises(InputError, match=message):
    encode.encode(pairs, folder, encoders(**networks), VIEWS._replace(**options))


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
def test_options_that_make_no_encoding_are_refused(pairs, tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    encode.encode(pairs, tmp_path / "out", encoders(), VIEWS._replace(**changes))


def test_a_folder_of_something_else_is_not_written_to(pairs, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="holds no encoding"):
    encode.encode(pairs, tmp_path, encoders(), VIEWS)


@pytest.mark.parametrize(
  ("value", "dtype", "message"),
  [
    (np.nan, "float32", r"moments of the latents of pair 0 of split 'train' .* not finite"),
    (1e5, "float16", r"pair 0 .* reach 1e\+05, too large for float16; store them as bfloat16"),
  ],
)
def test_numbers_that_cannot_be_stored_are_refused(pairs, tmp_path, value, dtype, message):
  networks = encoders(moments=lambda images: moments(images) * 0 + np.float32(value))
  with pytest.raises(InputError, match=message):
    encode.encode(pairs, tmp_path / "out", networks, VIEWS._replace(dtype=dtype))


def test_a_full_disk_is_told_and_the_same_command_goes_on(pairs, folder, tmp_path):
  out = tmp_path / "out"
  parts = {
    kind: out
    / encode.WORKING
    / atomic_files.temporary_name(out / encoded.file_name(kind, "train", 1, 3))
    for kind in encoded.KINDS
  }

  def filling(images):
    if parts["pairs"].exists() and not parts["captions"].is_symlink():
      parts["captions"].symlink_to("/dev/full")
    return moments(images)

  with pytest.raises(OSError, match=r"No space left on device.*free space"):
    encode.encode(pairs, out, encoders(moments=filling), VIEWS)
  assert not list(out.rglob("*.tmp"))
  assert encode.missing(out) == 2
  encode.encode(pairs, out, encoders(), VIEWS)
  assert contents(out) == contents(folder)


@pytest.fixture
def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("kind", encoded.KINDS)
def test_a_truncated_file_is_named_before_training(copy, kind):
  path = copy / encoded.file_name(kind, "train", 1, 3)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(InputError, match=rf"{path} has \d+ bytes, \d+ were written.*encode anew"):
    load(copy)


def test_a_damaged_record_stops_the_run_and_is_named(copy):
  path = copy / encoded.file_name("pairs", "train", 0, 3)
  content = bytearray(path.read_bytes())
  content[200:260] = bytes(60)
  path.write_bytes(content)
  with pytest.raises(InputError, match=rf"record 0 of split 'train' in {copy} is damaged"):
    [load(copy)[i] for i in range(8)]


@pytest.mark.parametrize("damage", [None, 3, 200])
def test_an_index_that_is_not_what_was_written_is_named(copy, damage):
  path = copy / "index-train.npy"
  content = bytearray(path.read_bytes())
  path.unlink()
  if damage:
    content[damage] ^= 1
    path.write_bytes(content)
  with pytest.raises(InputError, match=r"index-train\.npy is missing or damaged.*encode anew"):
    load(copy)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: "{", "manifest.json is damaged"),
    (lambda m: "[]", "manifest.json is damaged"),
    (lambda m: json.dumps({**m, "layout": {}}), "manifest.json is damaged"),
    (lambda m: json.dumps({**m, "version": "0.9"}), "version '0.9', this program reads"),
  ],
)
def test_a_manifest_that_cannot_be_used_is_named(copy, change, message):
  path = copy / encoded.MANIFEST
  path.write_text(change(json.loads(path.read_text())))
  with pytest.raises(InputError, match=message):
    load(copy)


def test_a_new_pipeline_cannot_be_made_of_encoded_pairs(folder):
  with pytest.raises(InputError, match=r"set config\.pipeline"):
    datasets.cached_latents(folder=str(folder)).captions  # noqa: B018


def test_encoded_folders_are_mixed_in_their_shares(folder):
  found = datasets.cached_latents_mixture(folders=(str(folder),) * 2, weights=(3, 1))
  loader = found.loader(batch_size=4, seed=0)
  ids = np.concatenate([loader[i]["example_id"] for i in range(20)])
  assert abs(np.cumsum(ids < 10) - 0.75 * np.arange(1, 81)).max() <= 1


def test_folders_that_were_not_encoded_alike_are_not_mixed(pairs, folder, tmp_path):
  encode.encode(pairs, tmp_path / "out", encoders(), VIEWS._replace(dtype="float16"))
  with pytest.raises(InputError, match="were not encoded alike:\n  layout"):
    datasets.cached_latents_mixture(folders=(str(folder), str(tmp_path / "out")), weights=(1, 1))


def test_the_fingerprint_is_that_of_what_is_stored(pairs, folder, copy, tmp_path):
  encode.encode(pairs, tmp_path / "out", encoders(), VIEWS._replace(seed=1))
  prints = [
    datasets.cached_latents(folder=str(path)).fingerprint()
    for path in (folder, copy, tmp_path / "out")
  ]
  prints.append(datasets.cached_latents(folder=str(folder), ties="drop").fingerprint())
  assert prints[0] == prints[1]
  assert len(set(prints)) == 3


def test_the_manifest_has_every_files_digest(folder):
  for name, file in encoded.read_manifest(folder)["files"].items():
    data = (folder / name).read_bytes()
    assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_views_are_drawn_as_training_draws_them(pairs, folder):
  source = encoded.EncodedSource(folder)
  for row, view in ((0, 0), (3, 2), (9, 1)):
    drawn = crops.draw(0, view, row, crop="random", flip=True)
    pixels, _ = crops.look(stored.image(row, 0), drawn, size=SIZE, channels=3)
    found = source.read(row, view, False).pair["moments"]
    np.testing.assert_array_equal(found[0, encoded.MEAN], pixels)
