"""The Diffusion-DPO train step of this project, as a training run compiles it."""

import pathlib
import time

import dpo_setting
import jax
import numpy as np

from dmpo_jax import interop
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.sharding import make_mesh
from dmpo_jax.training.step import compile_step, initial_state, make_optimizer, make_step


class OurSide:
  """The step with its state and its batch on one device."""

  def __init__(self, size: dpo_setting.Size, folder: pathlib.Path):
    settings = dpo_setting.config(size)
    policy, reference = (
      interop.load_pipeline(folder / name).params["unet"] for name in ("policy", "reference")
    )
    pipeline = interop.load_pipeline(folder / "reference")
    optimizer = make_optimizer(settings.optimizer)
    step = make_step(
      dpo_setting.objective(settings, pipeline), optimizer, ema_decay=settings.ema_decay
    )
    self.initial = policy
    self.state = initial_state({"unet": policy}, optimizer, ema=True)
    self.frozen, self.reference = jax.device_put(
      ({"text_encoder": pipeline.params["text_encoder"]}, {"unet": reference})
    )
    self.jitted = compile_step(step, make_mesh(1), self.state, self.frozen, self.reference)
    with np.load(folder / "batch.npz") as arrays:
      self.batch = Batch(**{name: arrays[name] for name in Batch._fields if name in arrays})

  def prepare(self) -> float:
    """Compiles the step; returns the seconds that took, tracing included."""
    started = time.perf_counter()
    self.compiled = self.jitted.lower(self.state, self.frozen, self.reference, self.batch).compile()
    return time.perf_counter() - started

  def step(self) -> None:
    """Takes a step from a batch in host memory, and waits for it."""
    batch = jax.device_put(self.batch)
    self.state, self.found, losses = self.compiled(self.state, self.frozen, self.reference, batch)
    jax.block_until_ready((self.state, self.found, losses))

  def check(self) -> list[dict[str, float]]:
    """The metrics of the first steps, and how far they moved parameters and average."""
    rows = []
    for _ in range(dpo_setting.CHECKED_STEPS):
      self.step()
      rows.append({name: float(value) for name, value in self.found.items()})
    for name, params in {"moved": self.state.params, "average_moved": self.state.ema}.items():
      difference = jax.tree.map(lambda x, y: np.asarray(x) - y, params["unet"], self.initial)
      squares = [np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(difference)]
      rows[-1][name] = float(np.sqrt(sum(squares)))
    return rows

  def version(self) -> str:
    """The library and its version."""
    return f"jax {jax.__version__}"

  def planned_bytes(self) -> int:
    """What XLA plans for temporary arrays of a step, in bytes."""
    return self.compiled.memory_analysis().temp_size_in_bytes
