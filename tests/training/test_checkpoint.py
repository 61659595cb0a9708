"""Checkpoints on disk: complete, checksummed, and of one run only."""

import contextlib
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.parallel.array_checksums import checksums
from dmpo_jax.training.checkpoint import Checkpoints

STATE = {
  "unet": {"kernel": jnp.arange(4000, dtype=jnp.float32).reshape(40, 100)},
  "step": jnp.ones(()),
}


@pytest.fixture
def saved(tmp_path):
  """A directory with the checkpoints of steps 10 and 20."""
  with contextlib.closing(Checkpoints(tmp_path, keep=5)) as checkpoints:
    for step in (10, 20):
      checkpoints.save(step, {**STATE, "step": jnp.full((), float(step))}, {"next_batch": step})
      checkpoints.wait()
  return tmp_path


def test_state_and_data_position_come_back_as_they_were(saved):
  with contextlib.closing(Checkpoints(saved, keep=5)) as checkpoints:
    assert checkpoints.latest() == 20
    state, data = checkpoints.restore(20, STATE)
  np.testing.assert_array_equal(state["unet"]["kernel"], STATE["unet"]["kernel"])
  assert float(state["step"]) == 20
  assert data == {"next_batch": 20}


def _largest_file(folder):
  return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "flipped"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_still_loads(saved, damage):
  file = _largest_file(saved / "20")
  content = bytearray(file.read_bytes())
  if damage == "truncated":
    file.write_bytes(content[: len(content) // 2])
  elif damage == "deleted":
    file.unlink()
  else:
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
  with contextlib.closing(Checkpoints(saved, keep=5)) as checkpoints:
    with pytest.raises(ValueError, match=r"20 is damaged.*continue from step 10"):
      checkpoints.restore(20, STATE)
    state, _ = checkpoints.restore(10, STATE)
  assert float(state["step"]) == 10


def test_damaged_metadata_names_the_folder_to_move_away(saved):
  (saved / "20" / "_CHECKPOINT_METADATA").write_text("[]")
  with pytest.raises(
    InputError, match=r"20/_CHECKPOINT_METADATA holds .*move the folder .*/20 away"
  ):
    Checkpoints(saved, keep=5)


def test_a_checkpoint_of_another_network_is_refused_with_the_differences(saved):
  like = {"unet": {"kernel": jnp.zeros((40, 99)), "bias": jnp.zeros(3)}, "step": jnp.ones(())}
  with (
    contextlib.closing(Checkpoints(saved, keep=5)) as checkpoints,
    pytest.raises(ValueError, match=r"(?s)unet\.bias: absent.*unet\.kernel: .*40, 100.*40, 99"),
  ):
    checkpoints.restore(20, like)


def test_a_checkpoint_folder_with_other_files_is_refused(saved):
  (saved / "30").mkdir()
  (saved / "30" / "notes.txt").write_text("hello")
  with contextlib.closing(Checkpoints(saved, keep=5)) as checkpoints:
    assert checkpoints.latest() == 30
    with pytest.raises(ValueError, match=r"30 is damaged.*continue from step 20"):
      checkpoints.restore(30, STATE)


def test_only_the_latest_checkpoints_are_kept(tmp_path):
  with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, STATE, {})
    checkpoints.wait()
  assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_checksums_change_with_one_bit_of_any_array():
  before = checksums(STATE)
  kernel = np.array(STATE["unet"]["kernel"])
  kernel.view(np.uint32)[3, 7] ^= 1
  after = checksums({**STATE, "unet": {"kernel": kernel}})
  assert before["step"] == after["step"]
  assert before["unet.kernel"] != after["unet.kernel"]


def test_a_save_that_fails_in_the_background_raises_and_leaves_earlier_checkpoints(tmp_path):
  noise = np.random.default_rng(0).standard_normal((400, 1000)).astype(np.float32)
  state = {**STATE, "noise": jnp.asarray(noise)}  # noise, because checkpoints are compressed
  with contextlib.closing(Checkpoints(tmp_path, keep=5)) as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # like a full disk
    try:
      checkpoints.save(2, state, {})
      with pytest.raises(OSError, match=r"cannot save step 2 in .*File too large.*Earlier check"):
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  with contextlib.closing(Checkpoints(tmp_path, keep=5)) as checkpoints:
    assert checkpoints.latest() == 1
    restored, _ = checkpoints.restore(1, state)
  np.testing.assert_array_equal(restored["noise"], noise)
