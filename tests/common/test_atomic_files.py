"""Files that are written whole or not at all: what is written, and what stays after an error."""

import os

import numpy as np
import pytest

from dmpo_jax.common.atomic_files import temporary_name, write_atomically


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
  assert seen == [tmp_path / "scratch" / temporary_name(tmp_path / "a")]


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
  (tmp_path / temporary_name(path)).symlink_to("/dev/full")
  with pytest.raises(OSError, match=r"No space left on device.*free space.*/a'"):
    write_atomically(path, "new")
  assert os.listdir(tmp_path) == ["a"]
  assert path.read_text() == "old"


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"cannot write.*No such file.*there/a'"):
    write_atomically(tmp_path / "there" / "a", "new")
