"""The count of a run's starts."""

import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.training import starts
from tests import buckets


def test_starts_without_a_new_checkpoint_are_limited(tmp_path):
  workdir = tmp_path / "run"
  for _ in range(2):
    starts.count_start(workdir, 2, "job7")
  with pytest.raises(InputError, match="the last 2 starts left no checkpoint after step 0"):
    starts.count_start(workdir, 2, "job7")
  starts.count_start(workdir, 2, "job8")  # another run
  (workdir / "checkpoints" / "10").mkdir(parents=True)
  starts.count_start(workdir, 2, "job8")
  assert (workdir / "starts.txt").read_text() == "job8 10 1\n"


@pytest.mark.parametrize("content", ["", "job7", "job7 0 1 2", "job7 0 x\n"])
def test_a_damaged_count_is_told_and_begins_anew(content, tmp_path, caplog):
  (tmp_path / "starts.txt").write_text(content)
  starts.count_start(tmp_path, 1, "job7")
  assert f"{tmp_path}/starts.txt is damaged" in caplog.text
  assert (tmp_path / "starts.txt").read_text() == "job7 0 1\n"


def test_in_a_bucket_a_checkpoint_counts_when_orbax_has_committed_it():
  workdir = buckets.folder()
  starts.count_start(workdir, 1, "job7")
  for step in (10, 20, 30):
    (workdir / "checkpoints" / str(step) / "_METADATA").write_text("{}")
  with pytest.raises(InputError, match="the last 1 starts left no checkpoint after step 0"):
    starts.count_start(workdir, 1, "job7")
  (workdir / "checkpoints" / "20" / "commit_success.txt").write_text("")
  starts.count_start(workdir, 1, "job7")
  assert (workdir / "starts.txt").read_text() == "job7 20 1\n"


@pytest.mark.parametrize(
  ("arguments", "status", "message"),
  [
    (["{}/run", "1", "job7"], 0, ""),
    (["{}/run", "x", "job7"], 2, "expected a whole number"),
    (["ftp://host/run", "1", "job7"], 2, "ftp"),
  ],
)
def test_the_command_ends_with_2_on_bad_input(arguments, status, message, tmp_path, capsys):
  assert starts.main([word.format(tmp_path) for word in arguments]) == status
  assert message in capsys.readouterr().err
