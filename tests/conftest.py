"""Settings every test runs under: strict promotion, simulated devices, a shared compile cache."""

import os
import pathlib

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
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
