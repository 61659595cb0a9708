"""Locks on files."""

import errno
import fcntl
import threading

import pytest

from dmpo_jax.common.file_lock import lock
from dmpo_jax.errors import InputError


def test_a_locked_file_is_busy_until_the_lock_ends(tmp_path):
  with lock(tmp_path / "a", "busy"):
    with pytest.raises(InputError, match="busy"), lock(tmp_path / "a", "busy"):
      pass
    with lock(tmp_path / "b", "busy"):
      pass
  with lock(tmp_path / "a", "busy"):
    pass


def test_shared_locks_exclude_others_alone(tmp_path):
  with lock(tmp_path / "a", "", shared=True), lock(tmp_path / "a", "", shared=True):
    exclusive = lock(tmp_path / "a", "busy")
    with pytest.raises(InputError, match="busy"):
      exclusive.__enter__()


def test_a_file_that_its_holder_removes_is_made_anew_by_the_one_that_waits(tmp_path):
  path, inodes = tmp_path / "a", []

  def wait():
    with lock(path, "busy", wait=True):
      inodes.append(path.stat().st_ino)

  with lock(path, "busy"):
    thread = threading.Thread(target=wait)
    thread.start()
    while not thread.is_alive():
      pass
    path.unlink()
  thread.join()
  assert inodes == [path.stat().st_ino]


def test_on_a_disk_without_locks_nothing_is_locked(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with lock(tmp_path / "a", "busy"), lock(tmp_path / "a", "busy"):
    pass


def test_another_error_of_the_system_is_kept(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.EIO, "broken")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with pytest.raises(OSError, match="broken"), lock(tmp_path / "a", "busy"):
    pass
