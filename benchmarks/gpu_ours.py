"""Our side of the GPU benchmark: a run's train step with random arrays made on the device."""

import functools
import math
import pathlib
from typing import Any

import gpu_kernels
import gpu_setting
import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

from dmpo_jax.parallel import sharding
from dmpo_jax.planning import train_step


class Side:
  """The step with its state and a batch.

  Args:
    model: A key of `gpu_setting.MODELS`.
    options: Config keys and their values as text; `layout`, "default" or "ohwi": how the kernels of
      k x k convolutions lie in memory, in parameters, moments, EMA and gradients.
  """

  def __init__(self, model: str, options: dict[str, str]):
    options = dict(options)
    layout = options.pop("layout", "default")
    if layout not in ("default", "ohwi"):
      raise ValueError(f"layout must be default or ohwi, got {layout!r}")
    settings = gpu_setting.config(model, options)
    self.mesh = sharding.make_mesh(1)
    self.step_of = train_step.abstract(
      settings, gpu_setting.load(model), self.mesh, gpu_setting.inputs(model)
    )
    self.function = self.step_of.function
    if layout == "ohwi":
      self.function = _with_layout(self.step_of)
    self.pairs = settings.batch_size

  def compile(self) -> None:
    """Traces, lowers and compiles the step."""
    with jax.set_mesh(self.mesh):
      self.compiled = self.function.lower(*self.step_of.arguments).compile()
    state, frozen, reference, batch = self.step_of.arguments
    formats = self.compiled.input_formats[0]
    with jax.set_mesh(self.mesh):
      # Policy and reference are the same numbers: the first loss of a full fine-tuning is ln 2.
      params, ema = _random(state.params, 0), None
      if state.ema is not None:
        ema = jax.tree.map(jnp.copy, params)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.step, state.opt_state))
      self.state = _put(
        state._replace(step=zeros[0], params=params, opt_state=zeros[1], ema=ema), formats[0]
      )
      others = (_random(frozen, 1), _random(reference, 0), _random(batch, 2))
      self.others = _put(others, formats[1:])

  def first_loss(self) -> float:
    """The loss of the first step, ln 2 where policy and reference round alike."""
    self.step()
    return self.wait()

  def step(self) -> None:
    """Dispatches a step."""
    self.state, self.metrics, _ = self.compiled(self.state, *self.others)

  def wait(self) -> float:
    """Waits for all steps; returns the loss of the last."""
    jax.block_until_ready(self.state)
    return float(self.metrics["loss"])

  def memory(self) -> float | None:
    """Peak memory of the device in GiB, where it says so."""
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peak and peak / 2**30

  def about(self) -> dict[str, Any]:
    """The device, the version, and the program's plan of memory."""
    plan = self.compiled.memory_analysis()
    return {
      "device": jax.devices()[0].device_kind,
      "version": f"jax {jax.__version__}",
      "state_gib": plan.argument_size_in_bytes / 2**30,
      "temporaries_gib": plan.temp_size_in_bytes / 2**30,
    }

  def twice_alike(self) -> bool:
    """Whether the step from one state gives the same bits twice."""
    results = []
    for _ in range(2):
      copy = jax.tree.map(lambda x: jax.device_put(jnp.copy(x), x.format), self.state)
      results.append(self.compiled(copy, *self.others)[0].params)
    equal = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), *results)
    return all(jax.tree.leaves(equal))

  def profile(self, folder: pathlib.Path, steps: int) -> list[str]:
    """Profiles steps; returns the table of kinds of kernels."""
    with jax.profiler.trace(str(folder)):
      for _ in range(steps):
        self.step()
      self.wait()
    return gpu_kernels.table(gpu_kernels.read(folder), steps)


def _with_layout(step: train_step.TrainStep) -> Any:
  """The step whose state has the kernels of k x k convolutions, HWIO, in the order O, H, W, I."""

  def format_of(x: jax.ShapeDtypeStruct) -> Any:
    is_kernel = len(x.shape) == 4 and x.shape[0] > 1
    return Format(Layout((3, 0, 1, 2)), x.sharding) if is_kernel else x.sharding

  formats = [jax.tree.map(format_of, tree) for tree in (step.state, step.frozen, step.reference)]
  inner = step.function.__wrapped__
  batch = jax.tree.map(lambda x: x.sharding, step.batch)
  return jax.jit(
    inner,
    in_shardings=(*formats, batch),
    out_shardings=(formats[0], None, None),
    donate_argnums=0,
    compiler_options={"xla_allow_excess_precision": False},
  )


def _put(tree: Any, formats: Any) -> Any:
  """Arrays in the layouts and shardings that a program takes."""
  return jax.tree.map(jax.device_put, tree, formats)


def _random(tree: Any, seed: int) -> Any:
  """Arrays of given shapes: floats normal with deviation 0.02, scales around 1, integers counted.

  One call of the generator makes the numbers of a whole tree: a program per shape would take longer
  to compile than the step.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  sizes = [math.prod(x.shape) for _, x in leaves]

  @functools.partial(jax.jit, out_shardings=[x.sharding for _, x in leaves])
  def make(key: jax.Array) -> list[jax.Array]:
    result, start = [], 0
    flat = 0.02 * jax.random.normal(key, (sum(sizes),))
    for (path, x), size in zip(leaves, sizes, strict=True):
      if jnp.issubdtype(x.dtype, jnp.floating):
        mean = float(bool(path) and getattr(path[-1], "key", "") == "scale")
        part = mean + flat[start : start + size]
      else:
        part = jnp.arange(size)
      result.append(part.reshape(x.shape).astype(x.dtype))
      start += size
    return result

  return jax.tree.unflatten(structure, make(jax.random.key(seed)))
