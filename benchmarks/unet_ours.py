"""The UNet of this project: its output, or the gradient of a loss."""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from dmpo_jax import interop, models


def norm(x) -> float:
  """The Euclidean norm of all elements."""
  return float(np.linalg.norm(np.asarray(x, np.float64).ravel()))


class OurSide:
  """A compiled function with its inputs on one device.

  Args:
    folder: What `unet_setting.write` wrote.
    gradient: Whether a step is forward and backward of mean((output - images)^2), or forward alone.
    implementation: Attention implementation, as for `models.Compute`.
  """

  def __init__(self, folder: pathlib.Path, gradient: bool, implementation: str):
    config = json.loads((folder / "config.json").read_text())
    model = models.build(config, compute=models.Compute(attention=implementation))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    params = interop.from_torch_state(state, models.abstract(config))
    with np.load(folder / "inputs.npz") as arrays:
      inputs = tuple(arrays[name] for name in ("images", "timesteps", "context"))
    self.gradient = gradient
    self.inputs = jax.device_put((params, *inputs))

    def loss(params, images, timesteps, context):
      return jnp.mean((model.apply(params, images, timesteps, context) - images) ** 2)

    self.jitted = jax.jit(jax.value_and_grad(loss) if gradient else model.apply)

  def prepare(self) -> float:
    """Compiles; returns the seconds that took, tracing included."""
    started = time.perf_counter()
    traced = self.jitted.trace(*self.inputs)
    self.tracing = time.perf_counter() - started
    self.compiled = traced.lower().compile()
    return time.perf_counter() - started

  def step(self) -> None:
    self.found = jax.block_until_ready(self.compiled(*self.inputs))

  def check(self) -> dict[str, float]:
    """The norm of each array that a step computes: output, or loss and slopes by torch's names."""
    self.step()
    if not self.gradient:
      return {"output": norm(self.found)}
    loss, slopes = self.found
    return {"loss": norm(loss), **{n: norm(x) for n, x in interop.to_torch_state(slopes).items()}}

  def tracing_seconds(self) -> float:
    """The part of `prepare` that was tracing."""
    return self.tracing

  def version(self) -> str:
    """The library and its version."""
    return f"jax {jax.__version__}"

  def planned_bytes(self) -> int:
    """What XLA plans for temporary arrays of a step, in bytes."""
    return self.compiled.memory_analysis().temp_size_in_bytes
