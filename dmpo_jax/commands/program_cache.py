"""Compiled programs are kept between runs, so that a second start takes seconds."""

import hashlib
import os
import pathlib
import platform

# jax reads them when it is imported.
FOLDER, LIMIT, ENABLED = (
  "JAX_COMPILATION_CACHE_DIR",
  "JAX_COMPILATION_CACHE_MAX_SIZE",
  "JAX_ENABLE_COMPILATION_CACHE",
)
DEFAULT_BYTES = 10_000_000_000


def choose_folder() -> None:
  """Makes jax keep compiled programs under ~/.cache/dmpo_jax/programs, before it is imported.

  The least recently used go where they exceed 10 GB. A machine has a folder of its own by its
  processor: programs for a CPU contain instructions that another may lack. Programs that compile in
  less than a second are not kept. The choices of jax's own variables stand: another folder (or
  gs://...) in JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE=false. Where the folder
  cannot be made, nothing is kept.
  """
  if FOLDER in os.environ or os.environ.get(ENABLED, "").lower() in ("false", "0", "no", "off"):
    return
  home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser())
  folder = home / "dmpo_jax" / "programs" / f"{platform.machine()}-{_processor()}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    writable = os.access(folder, os.W_OK | os.X_OK)
  except OSError:
    return
  if writable:
    os.environ[FOLDER] = str(folder)
    os.environ.setdefault(LIMIT, str(DEFAULT_BYTES))


def kept_in() -> str:
  """Where jax keeps compiled programs, for a message; empty: nowhere."""
  import jax

  enabled = jax.config.jax_enable_compilation_cache
  return (jax.config.jax_compilation_cache_dir or "") if enabled else ""


def _processor() -> str:
  """Eight digits for what the processor can do."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = ("model name", "flags", "Features", "CPU part")
  features = sorted({line for line in lines if line.split(":")[0].strip() in names})
  return hashlib.sha256("\n".join([platform.processor(), *features]).encode()).hexdigest()[:8]
