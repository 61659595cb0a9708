"""Folders that are written whole or not at all: kills, errors, other writers, leftovers."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from dmpo_jax.common import atomic_folders, unfinished
from dmpo_jax.common.atomic_folders import folder_atomically, recover
from dmpo_jax.errors import InputError
from tests.common.full_disk import full_disk
from tests.common.kills import content, fill, replace

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def target(tmp_path):
  fill(tmp_path / "out", "old")
  return tmp_path / "out"


@pytest.fixture
def without_exchange(monkeypatch):
  """A system that cannot exchange two folders in one operation."""
  monkeypatch.setattr(atomic_folders, "_renameat2", lambda: None)


@pytest.mark.parametrize("mode", ["exchange", "renames", "recovery"])
def test_a_kill_at_any_line_leaves_a_whole_folder_and_nothing_else(tmp_path, mode):
  command = [sys.executable, "-m", "tests.common.kills", str(tmp_path), mode]
  result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert result.returncode == 0, result.stderr
  kills = ast.literal_eval(result.stdout)
  assert sum(kills.values()) > 100
  assert (None in kills) == (mode != "exchange")  # the target was missing for a moment


def test_a_new_folder_appears_with_its_parents(tmp_path):
  replace(tmp_path / "a" / "b" / "out")
  assert content(tmp_path / "a" / "b" / "out") == "new"
  assert os.listdir(tmp_path / "a" / "b") == ["out"]


@pytest.mark.parametrize("system", ["exchange", "renames"])
def test_a_folder_is_replaced_as_a_whole(target, system, request):
  if system == "renames":
    request.getfixturevalue("without_exchange")
  (target / "left_over").write_text("old")
  replace(target)
  assert content(target) == "new"
  assert os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_folder_and_nothing_else(target, error):
  def write():
    with folder_atomically(target) as new:
      fill(new, "half")
      raise error

  with pytest.raises(error):
    write()
  assert content(target) == "old"
  assert os.listdir(target.parent) == ["out"]


def test_an_error_between_the_two_renames_puts_the_old_folder_back(
  target, without_exchange, monkeypatch
):
  rename = os.rename

  def failing(source, to):
    if pathlib.Path(source).name == "new" and not target.exists():
      raise OSError(5, "Input/output error")
    rename(source, to)

  monkeypatch.setattr(os, "rename", failing)
  with pytest.raises(OSError, match=r"cannot write \(Input/output error\): '.*/out'"):
    replace(target)
  assert content(target) == "old"
  assert os.listdir(target.parent) == ["out"]


def test_a_full_disk_names_the_target_and_not_the_hidden_folder(target):
  match = r"cannot write \(File too large\); free space[^']*'((?!partial).)*/out'$"
  with full_disk(100), pytest.raises(OSError, match=match), folder_atomically(target) as new:
    (new / "large").write_bytes(bytes(200))
  assert content(target) == "old"


def test_an_error_of_a_file_in_it_names_that_file(target):
  match = r"cannot write \(No such file or directory: a/b\): '.*/out'"
  with pytest.raises(OSError, match=match), folder_atomically(target) as new:
    (new / "a" / "b").write_text("")


def test_a_full_disk_that_a_rust_library_reports_is_an_error_of_the_system(target):
  error = Exception("No space left on device (os error 28)")  # as tokenizers raises it
  match = r"No space left on device\); free space"
  with pytest.raises(OSError, match=match), folder_atomically(target):
    raise error


def test_of_two_writers_at_once_the_last_one_wins(target):
  with folder_atomically(target) as one:
    fill(one, "one")
    replace(target)
    assert content(target) == "new"
  assert content(target) == "one"
  assert os.listdir(target.parent) == ["out"]


def test_a_folder_that_appears_meanwhile_is_replaced(tmp_path):
  with folder_atomically(tmp_path / "out") as new:
    fill(new, "new")
    fill(tmp_path / "out", "other")
  assert content(tmp_path / "out") == "new"


def test_a_file_in_the_targets_place_is_an_error_and_stays(tmp_path):
  (tmp_path / "out").write_text("thesis")
  with pytest.raises(OSError, match="Not a directory"):
    replace(tmp_path / "out")
  assert (tmp_path / "out").read_text() == "thesis"
  assert os.listdir(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(target):
  (target.parent / "link").symlink_to("out")
  replace(target.parent / "link")
  assert (target.parent / "link").is_symlink()
  assert content(target) == "new"


def test_read_only_folders_are_replaced(target):
  (target / "below").chmod(0o500)
  replace(target)
  assert os.listdir(target.parent) == ["out"]


# What killed processes leave


def left(parent, marker):
  """A work folder between the two renames of a process that was killed."""
  work = parent / ("." + unfinished.temporary_name(pathlib.Path("out"), "partial"))
  fill(work / "new", "new")
  fill(work / "old", "old")
  (work / "lock").touch()
  (work / "exchange").write_bytes(marker)
  return work


def test_an_exchange_that_was_cut_off_is_completed(tmp_path):
  left(tmp_path, b"out")
  recover(tmp_path)
  assert content(tmp_path / "out") == "new"
  assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("marker", [b"..", b".", b"../b", b"/tmp/x", b"", b"\0", b"a\0"])
def test_a_marker_that_names_no_target_beside_it_moves_nothing(tmp_path, marker):
  (tmp_path / "a").mkdir()
  left(tmp_path / "a", marker)
  recover(tmp_path / "a")
  assert os.listdir(tmp_path) == ["a"]
  assert os.listdir(tmp_path / "a") == []


@pytest.mark.parametrize("name", [".out.partial", ".out.0123456789abcdef.partial"])
def test_a_users_folder_with_a_similar_name_stays(tmp_path, name):
  fill(tmp_path / name, "mine")
  recover(tmp_path)
  assert content(tmp_path / name) == "mine"


def test_a_link_with_the_name_of_a_work_folder_is_left_alone(target):
  link = target.with_name("." + unfinished.temporary_name(target, "partial"))
  link.symlink_to("out")
  recover(target.parent)
  assert link.is_symlink()
  assert content(target) == "old"


def test_a_recovery_leaves_the_folder_of_a_living_writer(target):
  with folder_atomically(target) as new:
    recover(target.parent)
    fill(new, "new")
  assert content(target) == "new"
