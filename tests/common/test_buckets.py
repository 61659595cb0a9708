"""Paths, locks and copies in a bucket of a server on this machine."""

import concurrent.futures
import os
import subprocess
import sys

import pytest

from dmpo_jax.common import (
  atomic_files,
  atomic_folders,
  bucket_requests,
  file_lock,
  files,
  leases,
  local_copies,
  paths,
)
from dmpo_jax.errors import InputError
from tests import buckets


@pytest.fixture(scope="module")
def bucket():
  return buckets.folder()


@pytest.fixture
def folder(bucket, request):
  return bucket / request.node.name.split("[")[0]


@pytest.fixture
def copies(tmp_path, monkeypatch):
  monkeypatch.setenv(local_copies.FOLDER, str(tmp_path / "copies"))
  return tmp_path / "copies"


def test_a_file_in_a_bucket_is_written_read_listed_and_removed(folder):
  path = folder / "a" / "ü b%20+&;'.json"
  assert not path.exists()
  assert not folder.is_dir()
  atomic_files.write_atomically(path, '{"x": 1}')
  assert files.read_json(path) == {"x": 1}
  assert (path.is_file(), path.is_dir(), path.parent.is_dir()) == (True, False, True)
  assert list(folder.iterdir()) == [folder / "a"]
  assert list(folder.rglob("*.json")) == list(folder.glob("[a-c]/*.json")) == [path]
  assert path.stat().st_size == 8
  assert path.stat().st_mtime_ns > 1e18
  path.unlink()
  assert not folder.exists()
  with pytest.raises(FileNotFoundError):
    path.unlink()


def test_a_failed_write_leaves_the_former_file(folder):
  path = folder / "file"
  atomic_files.write_atomically(path, "old")

  def fail(stream):
    stream.write(b"new")
    raise ValueError("half way")

  with pytest.raises(ValueError, match="half way"):
    atomic_files.write_atomically(path, fail)
  assert path.read_text() == "old"


def test_of_several_writers_one_creates_a_file(folder):
  def create(number):
    try:
      (folder / "new").create(str(number).encode())
    except FileExistsError:
      return None
    return number

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    winners = [number for number in pool.map(create, range(8)) if number is not None]
  assert [int((folder / "new").read_text())] == winners


def test_the_index_of_a_folder_is_removed_first_and_written_last(folder, monkeypatch):
  def write(names):
    with atomic_folders.folder_atomically(folder, index="index.json") as new:
      for name in names:
        (new / name).write_text(name)

  write(["a", "index.json", "z"])
  upload = paths.BucketPath.upload

  def dies(self, local):
    if self.name == "z":
      raise OSError(5, "the process dies here")
    upload(self, local)

  monkeypatch.setattr(paths.BucketPath, "upload", dies)
  with pytest.raises(OSError, match="dies here"):
    write(["b", "index.json", "z"])
  assert "index.json" not in folder.find()
  monkeypatch.undo()
  write(["b", "index.json", "z"])
  assert set(folder.find()) == {"b", "index.json", "z"}


def test_a_lease_that_is_renewed_refuses_others_and_one_that_ended_does_not(folder, monkeypatch):
  monkeypatch.setattr(leases, "RENEW", 0.1)
  monkeypatch.setattr(leases, "POLL", 0.1)
  for _ in range(2):
    with file_lock.lock(folder / "lock", "busy") as held:
      held.check()
      with pytest.raises(InputError, match=r"^busy$"), file_lock.lock(folder / "lock", "busy"):
        pass
  assert len((folder / "lock").find()) == 1


def test_a_lease_without_renewals_is_lost_whatever_the_clocks(folder, monkeypatch):
  for name, value in (("RENEW", 60.0), ("POLL", 0.1), ("EXPIRY", 1.0)):
    monkeypatch.setattr(leases, name, value)
  monkeypatch.setattr(leases.time, "time", lambda: 0.0)  # a clock that is wrong by decades
  first, second = (leases.lease(folder / "lock", "busy") for _ in range(2))
  with first as first, second as second:
    second.check()
    first._renew()
    with pytest.raises(InputError, match="another process has taken this one's place"):
      first.check()
    second._renew()
    second.check()


def test_the_lease_of_a_dead_process_of_this_machine_is_free_at_once(folder):
  program = (
    "import os, sys\nfrom dmpo_jax.common import leases, paths\n"
    "with leases.lease(paths.parse(sys.argv[1]), 'busy'):\n  os.kill(os.getpid(), 9)"
  )
  subprocess.run([sys.executable, "-c", program, str(folder / "lock")], env=os.environ)
  assert list((folder / "lock").find()) == ["000001"]
  monotonic = leases.time.monotonic()
  with leases.lease(folder / "lock", "busy"):
    assert leases.time.monotonic() - monotonic < leases.EXPIRY / 4


def test_a_copy_is_downloaded_once_and_again_after_a_change(folder, copies, monkeypatch):
  for name in ("a", "deep/b"):
    (folder / name).write_text(name)
  downloads = []
  download = paths.BucketPath.download
  monkeypatch.setattr(
    paths.BucketPath, "download", lambda self, to: (downloads.append(self.name), download(self, to))
  )
  local = paths.local_copy(folder)
  assert (local / "deep" / "b").read_text() == "deep/b"
  assert paths.local_copy(folder) == local
  assert sorted(downloads) == ["a", "b"]
  (folder / "a").write_text("A")
  (folder / "deep/b").unlink()
  assert [p.name for p in paths.local_copy(folder).rglob("*") if p.is_file()] == ["a"]
  assert (local / "a").read_text() == "A"
  assert paths.local_copy(folder / "a").read_text() == "A"


def test_copies_stay_within_the_limit_and_the_oldest_unused_goes(folder, copies, monkeypatch):
  monkeypatch.setenv(local_copies.LIMIT, "0.000002")  # 2,000 bytes
  for name in ("one", "two", "three"):
    (folder / name / "shard").write_bytes(bytes(900))
  one, _ = (paths.local_copy(folder / name) for name in ("one", "two"))
  with pytest.raises(InputError, match=r"processes at work use 0\.0 GB"):
    paths.local_copy(folder / "three")
  for descriptor in local_copies._IN_USE.values():  # as if these processes had ended
    os.close(descriptor)
  local_copies._IN_USE.clear()
  assert paths.local_copy(folder / "three").is_dir()
  assert not one.exists()
  (folder / "large").write_bytes(bytes(2100))
  with pytest.raises(InputError, match=f"set {local_copies.LIMIT} to more"):
    paths.local_copy(folder / "large")


@pytest.mark.parametrize("limit", ["", "0", "-1", "x", "nan"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, limit):
  monkeypatch.setenv(local_copies.LIMIT, limit or " ")
  with pytest.raises(InputError, match=local_copies.LIMIT):
    local_copies.limit()


def test_a_missing_bucket_is_named(bucket):
  missing = paths.parse("gs://no-such-bucket/run")
  for use in (missing.exists, missing.read_bytes, lambda: missing.write_bytes(b"")):
    with pytest.raises(InputError, match="bucket gs://no-such-bucket does not exist; check its"):
      use()


class HttpError(Exception):
  """As gcsfs raises it."""

  def __init__(self, code, message):
    super().__init__(message)
    self.code = code


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (OSError("Forbidden: u\nbot does not have storage.objects.create"), "cannot write: access den"),
    (PermissionError(13, "denied"), "access denied"),
    (HttpError(403, "no"), "give the account the right to write objects"),
    (HttpError(401, "Anonymous caller"), "no valid credentials .* log in with gcloud auth"),
  ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(error, message):
  def request():
    raise error

  with pytest.raises(InputError, match=message) as raised:
    bucket_requests.retrying(paths.parse("gs://bucket/run"), "write", request)
  assert "\n" not in str(raised.value)


def test_transient_errors_are_repeated_until_a_bound(monkeypatch, caplog):
  path, now = paths.parse("gs://bucket/run"), [0.0]
  monkeypatch.setattr(bucket_requests.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(bucket_requests.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
  errors = [HttpError(503, "busy"), ConnectionResetError("reset"), HttpError(429, "slow down")]

  def recovers():
    if errors:
      raise errors.pop()
    return "done"

  assert bucket_requests.retrying(path, "read", recovers) == "done"

  def never():
    raise HttpError(503, "busy")

  with pytest.raises(OSError, match=r"has not answered for .* run the same command again"):
    bucket_requests.retrying(path, "read", never)
  assert now[0] <= bucket_requests.RETRY_SECONDS

  def wrong():
    raise HttpError(400, "bad")

  with pytest.raises(OSError, match=r"cannot read \(bad\)"):
    bucket_requests.retrying(path, "read", wrong)
