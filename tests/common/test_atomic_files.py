"""Files that are written whole or not at all: what is written, and what stays after an error."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dmpo_jax.common import unfinished
from dmpo_jax.common.atomic_files import write_atomically
from tests.common.full_disk import full_disk


@pytest.mark.parametrize("contents", ["ä\r\n", b"\xc3\xa4\r\n", lambda s: s.write(b"\xc3\xa4\r\n")])
def test_text_bytes_and_writers_give_the_same_file(tmp_path, contents):
  write_atomically(tmp_path / "a.txt", contents)
  assert (tmp_path / "a.txt").read_bytes() == "ä\r\n".encode()
  assert os.listdir(tmp_path) == ["a.txt"]


def test_a_writer_may_seek(tmp_path):
  write_atomically(tmp_path / "a.npz", lambda stream: np.savez_compressed(stream, x=np.arange(3)))
  assert np.load(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]


def test_an_existing_file_is_replaced_at_the_end(tmp_path):
  path = tmp_path / "a"
  path.write_text("old")

  def write(stream):
    stream.write(b"new")
    stream.flush()
    assert path.read_text() == "old"

  write_atomically(path, write)
  assert path.read_text() == "new"


def test_the_unfinished_file_lies_in_the_scratch_folder(tmp_path):
  (tmp_path / "scratch").mkdir()
  seen = []
  write_atomically(
    tmp_path / "a", lambda _: seen.extend(tmp_path.rglob("*.tmp")), scratch=tmp_path / "scratch"
  )
  assert [path.parent for path in seen] == [tmp_path / "scratch"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
  (tmp_path / "a").write_text("old")

  def write(stream):
    stream.write(b"half")
    raise error

  with pytest.raises(error):
    write_atomically(tmp_path / "a", write)
  assert os.listdir(tmp_path) == ["a"]
  assert (tmp_path / "a").read_text() == "old"


def test_a_full_disk_is_an_error_with_advice_and_leaves_the_old_file(tmp_path):
  path = tmp_path / "a"
  path.write_text("old")
  with full_disk(100), pytest.raises(OSError, match=r"File too large.*free space.*/a'"):
    write_atomically(path, bytes(200))
  assert os.listdir(tmp_path) == ["a"]
  assert path.read_text() == "old"


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"cannot write.*No such file.*there/a'"):
    write_atomically(tmp_path / "there" / "a", "new")


def test_a_pipe_is_written_and_stays_a_pipe(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
  write_atomically(tmp_path / "pipe", "text")
  assert os.read(reader, 100) == b"text"
  os.close(reader)
  assert (tmp_path / "pipe").is_fifo()


# What killed commands leave

KILLED = """
import os, signal, sys
from dmpo_jax.common.atomic_files import write_atomically
def write(stream):
  stream.write(b"half")
  stream.flush()
  os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], write)
"""


def killed(path):
  assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode == -9


def new_process():
  """Has this process look again for what others left, as a new process does."""
  unfinished.remove_files.cache_clear()


def test_the_next_command_removes_what_a_killed_one_left_in_the_folder(tmp_path):
  killed(tmp_path / "a")
  assert len(list(tmp_path.glob("a.*.tmp"))) == 1
  new_process()
  write_atomically(tmp_path / "b", "new")
  assert os.listdir(tmp_path) == ["b"]


def test_an_unfinished_file_of_a_living_process_stays(tmp_path):
  def write(stream):
    new_process()
    write_atomically(tmp_path / "b", "another command's")
    stream.write(b"whole")

  write_atomically(tmp_path / "a", write)
  assert (tmp_path / "a").read_text() == "whole"


@pytest.mark.parametrize("name", ["a.tmp", "a.0123456789abcdef.tmp", "a.host.7.tmp"])
def test_a_users_file_with_a_similar_name_stays(tmp_path, name):
  (tmp_path / name).write_text("mine")
  new_process()
  write_atomically(tmp_path / "b", "new")
  assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(("days", "stays"), [(0, True), (2, False)])
def test_an_unfinished_file_of_another_host_stays_for_a_day(tmp_path, days, stays):
  path = tmp_path / "a.01234567.0123456789abcdef.tmp"
  path.write_text("half")
  os.utime(path, times=(path.stat().st_mtime - days * 86_400,) * 2)
  new_process()
  write_atomically(tmp_path / "b", "new")
  assert path.exists() == stays


def test_a_link_with_the_name_of_an_unfinished_file_is_left_alone(tmp_path):
  link = tmp_path / unfinished.temporary_name(tmp_path / "a")
  link.symlink_to("/dev/null")
  new_process()
  write_atomically(tmp_path / "a", "new")
  assert link.is_symlink()


def test_temporary_names_are_random():
  names = {unfinished.temporary_name(pathlib.Path("a")) for _ in range(100)}
  assert len({name.split(".")[-2] for name in names}) == 100


def test_a_planted_link_is_not_followed(tmp_path):
  (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(FileExistsError):
    unfinished.create(tmp_path / "link")
  assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127])
def test_the_longest_names_are_written(tmp_path, name):
  write_atomically(tmp_path / name, "new")
  assert os.listdir(tmp_path) == [name]
