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


def pytest_collection_modifyitems(items):
  """Puts all slow tests last, so that a time limit for them leaves no fast one waiting."""
  items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """With --dist=loadfile, the slow tests of a file are a unit of their own."""
  if config.getvalue("dist") != "loadfile":
    return None
  from xdist.scheduler import LoadFileScheduling

  class InOrder(LoadFileScheduling):
    """A unit is a run of tests of one file; a file that comes up again begins another."""

    def _split_scope(self, nodeid):
      if not hasattr(self, "units"):
        self.units, last, numbers = {}, "", {}
        for name in next(iter(self.registered_collections.values())):
          file = name.split("::")[0]
          numbers[file] = numbers.get(file, 0) + (file != last)
          self.units[name], last = f"{file} {numbers[file]}", file
      return self.units[nodeid]

  return InOrder(config, log)
