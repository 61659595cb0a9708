"""Our side of the train step benchmark: the step as a training run compiles it."""

import functools
import os
import pathlib
import time

import dpo_setting
import jax
import numpy as np

from dmpo_jax import interop
from dmpo_jax.parallel import sharding
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.step import compile_step, make_step, sharded_initial_state


class OurSide:
  """The step with its state and its batch on a mesh.

  Args:
    size: Size of the benchmark.
    folder: Output folder of `dpo_setting.write`.
    data: Size of the mesh axis data; CPU devices are simulated.
    fsdp: Size of the mesh axis fsdp.
    microbatches: Gradient accumulation steps.
  """

  def __init__(
    self,
    size: dpo_setting.Size,
    folder: pathlib.Path,
    data: int = 1,
    fsdp: int = 1,
    microbatches: int = 1,
  ):
    if data * fsdp > 1 and os.environ.get("JAX_PLATFORMS") == "cpu":
      os.environ["NPROC"] = "32"  # simulated devices on few cores deadlock otherwise
      jax.config.update("jax_num_cpu_devices", data * fsdp)
    settings = dpo_setting.config(size)
    policy, reference = (
      interop.load_pipeline(folder / name).params["unet"] for name in ("policy", "reference")
    )
    pipeline = interop.load_pipeline(folder / "reference")
    self.mesh = mesh = sharding.make_mesh(data * fsdp, fsdp=fsdp)
    optimizer = make_optimizer(settings.optimizer)
    step = make_step(
      setup.make_objective(settings, pipeline, mesh=mesh),
      optimizer,
      ema_decay=settings.ema_decay,
      grad_accumulation_steps=microbatches,
      constrain=functools.partial(sharding.constrain, mesh),
    )
    self.initial = policy
    self.state = sharded_initial_state({"unet": policy}, optimizer, mesh, ema=True)
    self.frozen, self.reference = (
      jax.device_put(tree, sharding.shardings(mesh, tree))
      for tree in ({"text_encoder": pipeline.params["text_encoder"]}, {"unet": reference})
    )
    self.jitted = compile_step(step, mesh, self.state, self.frozen, self.reference)
    self.split = sharding.batch(mesh)
    with np.load(folder / "batch.npz") as arrays:
      self.batch = Batch(
        text={"input_ids": arrays["input_ids"]},
        example_id=arrays["example_id"],
        pixels=arrays["pixels"],
      )

  def prepare(self) -> float:
    """Compiles the step; returns the seconds, tracing included."""
    started = time.perf_counter()
    batch = jax.device_put(self.batch, self.split)
    with jax.set_mesh(self.mesh):
      lowered = self.jitted.lower(self.state, self.frozen, self.reference, batch)
    self.compiled = lowered.compile()
    return time.perf_counter() - started

  def step(self) -> None:
    """Takes a step from a batch in host memory, and waits for it."""
    batch = jax.device_put(self.batch, self.split)
    self.state, self.metrics, losses = self.compiled(self.state, self.frozen, self.reference, batch)
    jax.block_until_ready((self.state, self.metrics, losses))

  def check(self) -> list[dict[str, float]]:
    """Metrics of the first steps, and norms of the change of parameters and EMA."""
    rows = []
    for _ in range(dpo_setting.CHECKED_STEPS):
      self.step()
      rows.append({name: float(value) for name, value in self.metrics.items()})
    for name, params in {"change": self.state.params, "ema_change": self.state.ema}.items():
      difference = jax.tree.map(lambda x, y: np.asarray(x) - y, params["unet"], self.initial)
      squares = [np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(difference)]
      rows[-1][name] = float(np.sqrt(sum(squares)))
    return rows

  def device(self) -> dict[str, float | str | None]:
    """Kind of the device, and its peak memory in MiB."""
    first = jax.devices()[0]
    peak = (first.memory_stats() or {}).get("peak_bytes_in_use")
    return {"kind": first.device_kind, "peak_mib": peak and peak / 2**20}

  def version(self) -> str:
    """Library and version."""
    return f"jax {jax.__version__}"

  def planned_bytes(self) -> int:
    """Bytes of a step's temporary arrays in XLA's plan."""
    return self.compiled.memory_analysis().temp_size_in_bytes
