"""The optimizer and the compiled train step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dmpo_jax.models import trees
from dmpo_jax.parallel import sharding
from dmpo_jax.training import gradient
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.objective import EXACT_ROUNDING, Objective, Params


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
  """The optimizer behind a clip of the global gradient norm, with linear warm-up.

  AdamW holds two moments of each parameter. Adafactor (arXiv 1804.04235) holds, for each matrix, a
  row and a column of second moments alone: it is taken without a relative step and without scaling
  by the parameters, so that learning_rate means the same, with its updates clipped to a root mean
  square of 1 and weight decay as in AdamW (lr · weight_decay · parameter). b1, b2 and eps are
  AdamW's.

  Args:
    options: The config's `optimizer` section.

  Returns:
    An optax transformation.
  """
  rate = options["learning_rate"]
  if options["warmup_steps"]:
    rate = optax.warmup_constant_schedule(0.0, rate, options["warmup_steps"])
  if options["name"] == "adafactor":
    inner = (
      optax.scale_by_factored_rms(),
      optax.clip_by_block_rms(1.0),
      optax.add_decayed_weights(options["weight_decay"]),
      optax.scale_by_learning_rate(rate),
    )
  else:
    inner = (
      optax.adamw(
        rate,
        b1=options["b1"],
        b2=options["b2"],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        mu_dtype=options["moment_dtype"],
      ),
    )
  return optax.chain(optax.clip_by_global_norm(options["clip_norm"]), *inner)


def initial_state(params: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> State:
  """The state before the first step; its arrays are copies, for the step donates them."""
  params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
  average = jax.tree.map(jnp.copy, params) if ema else None
  return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def abstract_state(
  params: Params, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> State:
  """The shapes, dtypes and shardings of a run's state, as `sharding.shardings` says.

  Args:
    params: Trained components: arrays or `jax.ShapeDtypeStruct`s.
    optimizer: optax transformation.
    mesh: From `sharding.make_mesh`.
    ema: Whether an average is kept.

  Returns:
    `State` of `jax.ShapeDtypeStruct`s.
  """
  shapes = jax.eval_shape(functools.partial(initial_state, optimizer=optimizer, ema=ema), params)
  return sharding.abstract(mesh, shapes)


def placed_state(
  params: Params, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool
) -> State:
  """The state before the first step, laid out as `abstract_state` says.

  Args:
    params: Trained components, on the host or on devices; they are not donated.
    optimizer: optax transformation.
    mesh: From `sharding.make_mesh`.
    ema: Whether an average is kept.

  Returns:
    `State`; no device holds more than its part of what is made here.
  """
  like = abstract_state(params, optimizer, mesh, ema=ema)
  places = jax.tree.map(lambda x: x.sharding, like)
  make = functools.partial(initial_state, optimizer=optimizer, ema=ema)
  return jax.jit(make, in_shardings=(places.params,), out_shardings=places)(params)


def make_step(
  objective: Objective | Callable,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float,
  grad_accumulation_steps: int = 1,
  constrain: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[..., tuple[State, dict[str, jax.Array], jax.Array]]:
  """One optimizer step as a pure function, to be compiled by `compile_step`.

      g = ∇ mean_i loss_i(params),   params <- AdamW(params, clip(g))
      ema <- λ ema + (1 - λ) params,  λ = min(decay, (1 + step) / (10 + step))

  Args:
    objective: `(trained, frozen, reference, batch, step) -> (loss [examples], metrics)`; an
      `Objective` where a batch is accumulated.
    optimizer: optax transformation.
    ema_decay: Decay of the moving average; not used where the state has none.
    grad_accumulation_steps: Microbatches of a step; see `gradient.accumulated`.
    constrain: Lays a tree that looks like the parameters out over devices, inside a jit.

  Returns:
    `(state, frozen, reference, batch) -> (state, metrics, losses)`: metrics are means over the
    examples, losses is float32 `[examples]` so that a bad example can be named.
  """
  if grad_accumulation_steps == 1:
    grads_of = gradient.full_batch(objective)
  else:
    grads_of = gradient.accumulated(objective, grad_accumulation_steps, constrain)

  def step(state: State, frozen: Params, reference: Params | None, batch: Batch):
    grads, metrics = grads_of(state.params, frozen, reference, batch, state.step)
    grads = constrain(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = None
    if state.ema is not None:
      age = state.step.astype(jnp.float32)
      average = trees.ema(state.ema, params, jnp.minimum(ema_decay, (1 + age) / (10 + age)))
    means = {name: jnp.mean(value) for name, value in metrics.items()}
    means["gradient_norm"] = optax.global_norm(grads)
    means["parameter_norm"] = optax.global_norm(params)
    return State(state.step + 1, params, opt_state, average), means, metrics["loss"]

  return step


def compile_step(
  step: Callable, mesh: Mesh, state: State, frozen: Params, reference: Params | None
) -> Callable:
  """`step` under one jit: arrays where `sharding` puts them, the state donated.

  Args:
    step: From `make_step`.
    mesh: From `sharding.make_mesh`; it must be set (jax.set_mesh) where the result is called.
    state: For its shapes, as the next two: arrays or `jax.ShapeDtypeStruct`s.
    frozen: Parameters that are not trained.
    reference: Those of the reference, or None.

  Returns:
    The jitted `(state, frozen, reference, batch) -> (state, metrics, losses)`.
  """
  held = [sharding.shardings(mesh, tree) for tree in (state, frozen, reference)]
  split, everywhere = sharding.batch(mesh), sharding.replicated(mesh)
  return jax.jit(
    step,
    in_shardings=(*held, split),
    out_shardings=(held[0], everywhere, split),
    donate_argnums=0,
    compiler_options=EXACT_ROUNDING,
  )
