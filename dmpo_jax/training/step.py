"""The optimizer and the compiled train step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmpo_jax.models import trees
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.objective import Params

Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


class State(NamedTuple):
  """What training changes, and what a checkpoint holds.

  Attributes:
    step: int32 scalar, the number of optimizer steps taken.
    params: Trained components, by name.
    opt_state: optax's state.
    ema: Moving average of `params`, or None.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  ema: Params | None


def make_optimizer(options: Mapping[str, Any]) -> optax.GradientTransformation:
  """AdamW behind a clip of the global gradient norm, with linear warm-up to a constant rate.

  Args:
    options: The config's `optimizer` section.

  Returns:
    An optax transformation.
  """
  rate = optax.warmup_constant_schedule(0.0, options["learning_rate"], options["warmup_steps"])
  return optax.chain(
    optax.clip_by_global_norm(options["clip_norm"]),
    optax.adamw(
      rate if options["warmup_steps"] else options["learning_rate"],
      b1=options["b1"],
      b2=options["b2"],
      eps=options["eps"],
      weight_decay=options["weight_decay"],
    ),
  )


def initial_state(params: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> State:
  """The state before the first step; its arrays are copies, for the step donates them."""
  params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
  average = jax.tree.map(jnp.copy, params) if ema else None
  return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def make_step(
  objective: Objective, optimizer: optax.GradientTransformation, *, ema_decay: float
) -> Callable[..., tuple[State, dict[str, jax.Array], jax.Array]]:
  """One optimizer step as a pure function, to be compiled by `compile_step`.

      g = ∇ mean_i loss_i(params),   params <- AdamW(params, clip(g))
      ema <- λ ema + (1 - λ) params,  λ = min(decay, (1 + step) / (10 + step))

  Args:
    objective: `(trained, frozen, reference, batch, step) -> (loss [examples], metrics)`.
    optimizer: optax transformation.
    ema_decay: Decay of the moving average; not used where the state has none.

  Returns:
    `(state, frozen, reference, batch) -> (state, metrics, losses)`: metrics are means over the
    examples, losses is float32 `[examples]` so that a bad example can be named.
  """

  def step(state: State, frozen: Params, reference: Params | None, batch: Batch):
    def mean_loss(params: Params):
      loss, metrics = objective(params, frozen, reference, batch, state.step)
      return jnp.mean(loss), metrics

    (_, metrics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = None
    if state.ema is not None:
      age = state.step.astype(jnp.float32)
      average = trees.ema(state.ema, params, jnp.minimum(ema_decay, (1 + age) / (10 + age)))
    means = {name: jnp.mean(value) for name, value in metrics.items()}
    means["gradient_norm"] = optax.global_norm(gradient)
    means["parameter_norm"] = optax.global_norm(params)
    return State(state.step + 1, params, opt_state, average), means, metrics["loss"]

  return step


def make_mesh(num_devices: int) -> Mesh:
  """A mesh of one axis, "data", over the first `num_devices` devices (0: all)."""
  count = num_devices or jax.device_count()
  return jax.make_mesh(
    (count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:count]
  )


def compile_step(step: Callable, mesh: Mesh) -> Callable:
  """`step` under one jit: examples split over the mesh, the rest on every device, state donated."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  split = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(
    step,
    in_shardings=(everywhere, everywhere, everywhere, split),
    out_shardings=(everywhere, everywhere, split),
    donate_argnums=0,
  )
