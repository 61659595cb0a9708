"""Settings every test runs under: strict promotion, simulated devices, a shared compile cache."""

import os
import pathlib
import signal
import time

# Several simulated devices on few cores can deadlock in XLA's thread pool unless it is told of more
# processors than it finds. Both must be set before the backend starts.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Level 0 leaves LLVM's costly passes out: the tests compile far longer than they compute.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
)

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell starts a background process with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

STARTED = time.monotonic()


def pytest_addoption(parser):
  """Declares the time that slow tests have."""
  parser.addoption(
    "--slow-minutes",
    type=float,
    help="skip slow tests that would start later than this after the start of the whole run",
  )


def pytest_runtest_setup(item):
  """Skips a slow test that would start too late."""
  minutes = item.config.getoption("--slow-minutes")
  if minutes is None or item.get_closest_marker("slow") is None:
    return
  if time.monotonic() - STARTED > 60 * minutes:
    pytest.skip(f"more than {minutes:g} minutes have gone: no slow test starts any more")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Groups the tests of a file for one process, and puts all slow tests last.

  The slow tests of a file are a group of their own: they start after the fast tests of all files,
  so that a time limit for slow tests leaves no fast one waiting.
  """
  slow = {item for item in items if item.get_closest_marker("slow") is not None}
  files = {path: number for number, path in enumerate(dict.fromkeys(i.path for i in items))}
  for item in items:
    group = f"{files[item.path]}{'-slow' if item in slow else ''}"  # xdist prints it after the name
    item.add_marker(pytest.mark.xdist_group(group))
  items.sort(key=lambda item: item in slow)
