"""Our side of the benchmark of scorers: image embeddings of a CLIP model."""

import pathlib
import time

import jax
import numpy as np

from dmpo_jax import interop, models


class OurSide:
  """A compiled image encoder with its images on one device.

  Args:
    folder: Output folder of `scorers_setting.write`.
    implementation: `attention` of `models.Compute`; None: the default of the platform.
  """

  def __init__(self, folder: pathlib.Path, implementation: str | None):
    started = time.perf_counter()
    config, params = interop.load_clip(folder)
    self.params = jax.block_until_ready(jax.device_put(params))
    self.loading = time.perf_counter() - started
    model = models.build(config, compute=models.Compute(attention=implementation))
    self.images = jax.device_put(np.load(folder / "images.npy", allow_pickle=False))
    self.jitted = jax.jit(model.encode_image)

  def prepare(self) -> float:
    """Compiles; returns the seconds, tracing included."""
    started = time.perf_counter()
    self.compiled = self.jitted.lower(self.params, self.images).compile()
    return time.perf_counter() - started

  def step(self) -> None:
    self.result = jax.block_until_ready(self.compiled(self.params, self.images))

  def check(self) -> np.ndarray:
    """The embeddings."""
    self.step()
    return np.asarray(self.result)

  def loading_seconds(self) -> float:
    """Seconds from files to arrays on the device."""
    return self.loading

  def version(self) -> str:
    """Library and version."""
    return f"jax {jax.__version__}"

  def planned_bytes(self) -> int:
    """Bytes of a step's temporary arrays in XLA's plan."""
    return self.compiled.memory_analysis().temp_size_in_bytes
