"""Caching latents: the stored bytes, interruptions, and invalid input."""

import contextlib
import hashlib
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dmpo_jax.data import crops
from dmpo_jax.data.latents import cache, records
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError
from tests.common.full_disk import full_disk
from tests.data import test_folder_pairs as folder_pairs
from tests.data.latents.caches import SIZE, VIEWS, contents, encoders, latents, load


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
    "from dmpo_jax.data.latents import cache\n"
    "from tests.data.latents.caches import *\n"
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


@pytest.mark.parametrize("damage", ["cut", "flip", "marker", "gone"])
def test_damaged_files_of_an_interrupted_command_are_made_again(pairs, folder, tmp_path, damage):
  out = tmp_path / "out"
  assert cache.cache_latents(pairs, out, encoders(), VIEWS, host=0, hosts=2) is None
  path = out / records.file_name("pairs", "train", 0, 3)
  if damage == "marker":
    path = out / cache.WORKING / "000000.json"
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  if damage == "gone":
    path.unlink()
  else:
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
  cache.cache_latents(pairs, out, encoders(), VIEWS)
  assert contents(out) == contents(folder)


def test_a_cache_beside_another_one_is_refused(pairs, folder, tmp_path):
  out = tmp_path / "out"

  def beside(images):
    with pytest.raises(InputError, match="another process is writing the cache of latents"):
      cache.cache_latents(pairs, out, encoders(), VIEWS)
    return latents(images)

  cache.cache_latents(pairs, out, encoders(latents=beside), VIEWS)
  assert contents(out) == contents(folder)


def test_a_refused_cache_leaves_no_folder(pairs, tmp_path):
  networks = encoders(latents=lambda images: latents(images) * np.float32(np.nan))
  with pytest.raises(InputError, match="not finite"):
    cache.cache_latents(pairs, tmp_path / "a" / "out", networks, VIEWS)
  assert not (tmp_path / "a").exists()


def test_a_host_that_another_one_overtakes_at_the_end_returns_the_manifest(
  pairs, folder, tmp_path, monkeypatch
):
  out, missing = tmp_path / "out", ResumableFolder.missing

  def overtaken(*arguments):  # this host has finished its shards and looks for missing ones
    monkeypatch.setattr(ResumableFolder, "missing", missing)
    cache.cache_latents(pairs, out, encoders(), VIEWS, host=0, hosts=2)
    return missing(*arguments)

  monkeypatch.setattr(ResumableFolder, "missing", overtaken)
  manifest = cache.cache_latents(pairs, out, encoders(), VIEWS, host=1, hosts=2)
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
    ({"augmentations": 0}, "augmentations must be from 1 to 10,000, got 0"),
    ({"batch_size": 0}, "batch_size must be from 1"),
    ({"pairs_per_shard": 0}, "pairs_per_shard must be from 1"),
    ({"augmentations": 10**9}, "augmentations must be from 1 to 10,000, got 1000000000"),
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
  disk = contextlib.ExitStack()

  def filling(images):
    if list(out.rglob("*-train.array_record-00001-of-*.tmp")):
      disk.enter_context(full_disk(100))
    return latents(images)

  with disk, pytest.raises(OSError, match=r"File too large.*free space"):
    cache.cache_latents(pairs, out, encoders(latents=filling), VIEWS)
  assert not list(out.rglob("*.tmp"))
  assert cache.missing(out) == 2
  cache.cache_latents(pairs, out, encoders(), VIEWS)
  assert contents(out) == contents(folder)


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
