"""Our side of the UNet benchmark: output, or gradient of a loss."""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from dmpo_jax import interop, models


def norm(x) -> float:
  """Euclidean norm of all elements."""
  return float(np.linalg.norm(np.asarray(x, np.float64).ravel()))


class OurSide:
  """A compiled function with its inputs on one device.

  Args:
    folder: Output folder of `unet_setting.write`.
    gradient: Whether a step is forward and backward of mean((output - images)^2), or forward alone.
    implementation: `attention` of `models.Compute`.
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
    """Compiles; returns the seconds, tracing included."""
    started = time.perf_counter()
    traced = self.jitted.trace(*self.inputs)
    self.tracing = time.perf_counter() - started
    self.compiled = traced.lower().compile()
    return time.perf_counter() - started

  def step(self) -> None:
    self.result = jax.block_until_ready(self.compiled(*self.inputs))

  def check(self) -> dict[str, float]:
    """Norm of each result: output, or loss and gradients by torch's names."""
    self.step()
    if not self.gradient:
      return {"output": norm(self.result)}
    loss, grads = self.result
    return {"loss": norm(loss), **{n: norm(x) for n, x in interop.to_torch_state(grads).items()}}

  def tracing_seconds(self) -> float:
    """Seconds of tracing in `prepare`."""
    return self.tracing

  def version(self) -> str:
    """Library and version."""
    return f"jax {jax.__version__}"

  def planned_bytes(self) -> int:
    """Bytes of a step's temporary arrays in XLA's plan."""
    return self.compiled.memory_analysis().temp_size_in_bytes
