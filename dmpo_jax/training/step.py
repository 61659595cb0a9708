"""The training state and the compiled train step."""

import functools
from collections.abc import Callable
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
from dmpo_jax.training.reference import FROZEN, ReferenceUpdate


class State(NamedTuple):
  """The training state, which a step changes and a checkpoint saves.

  Attributes:
    step: int32 scalar, the number of optimizer steps taken.
    params: Trained components, by name.
    opt_state: optax's state.
    ema: EMA of `params`, or None.
    reference: What a moving reference has in place of `params`, float32; None where it is frozen.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  ema: Params | None
  reference: Params | None = None


def initial_state(
  params: Params,
  optimizer: optax.GradientTransformation,
  *,
  ema: bool,
  reference: bool = False,
) -> State:
  """The state before the first step; its arrays are copies, because the step donates them."""
  params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
  copies = [jax.tree.map(jnp.copy, params) if wanted else None for wanted in (ema, reference)]
  return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), *copies)


def abstract_state(
  params: Params,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  ema: bool,
  reference: bool = False,
) -> State:
  """Shapes, dtypes and shardings of a run's state; see `sharding.shardings`.

  Args:
    params: Trained components: arrays or `jax.ShapeDtypeStruct`s.
    optimizer: optax transformation.
    mesh: From `sharding.make_mesh`.
    ema: Whether there is an EMA.
    reference: Whether there is a moving reference.

  Returns:
    `State` of `jax.ShapeDtypeStruct`s.
  """
  make = functools.partial(initial_state, optimizer=optimizer, ema=ema, reference=reference)
  return sharding.abstract(mesh, jax.eval_shape(make, params))


def sharded_initial_state(
  params: Params,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  ema: bool,
  reference: bool = False,
) -> State:
  """The state before the first step, sharded over the mesh as `abstract_state` says.

  Args:
    params: Trained components, on the host or on devices; they are not donated.
    optimizer: optax transformation.
    mesh: From `sharding.make_mesh`.
    ema: Whether there is an EMA.
    reference: Whether there is a moving reference.

  Returns:
    `State`; no device allocates more than its shards.
  """
  like = abstract_state(params, optimizer, mesh, ema=ema, reference=reference)
  shardings = jax.tree.map(lambda x: x.sharding, like)
  make = functools.partial(initial_state, optimizer=optimizer, ema=ema, reference=reference)
  return jax.jit(make, in_shardings=(shardings.params,), out_shardings=shardings)(params)


def make_step(
  objective: Objective | Callable,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float,
  reference_update: ReferenceUpdate = FROZEN,
  grad_accumulation_steps: int = 1,
  constrain: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[..., tuple[State, dict[str, jax.Array], jax.Array]]:
  """One optimizer step as a pure function, to be compiled by `compile_step`.

      g = ∇ mean_i loss_i(params),   params <- AdamW(params, clip(g))
      ema <- λ ema + (1 - λ) params,  λ = min(decay, (1 + step) / (10 + step))
      reference <- reference_update(reference, params)

  Args:
    objective: `(trained, frozen, reference, batch, step) -> (loss [examples], metrics)`; an
      `Objective` with gradient accumulation.
    optimizer: optax transformation.
    ema_decay: Decay of the EMA; unused where the state has none.
    reference_update: How the state's reference moves; unused where the state has none.
    grad_accumulation_steps: Microbatches of a step; see `gradient.accumulated`.
    constrain: Shards a tree like the parameters over devices, inside a jit.

  Returns:
    `(state, frozen, reference, batch) -> (state, metrics, losses)`: metrics are means over the
    examples; losses, float32 `[examples]`, name the example that is not finite. A reference in the
    state takes the place of the argument.
  """
  if grad_accumulation_steps == 1:
    grads_of = gradient.full_batch(objective)
  else:
    grads_of = gradient.accumulated(objective, grad_accumulation_steps, constrain)

  def step(state: State, frozen: Params, reference: Params | None, batch: Batch):
    if state.reference is not None:
      reference = state.reference
    grads, metrics = grads_of(state.params, frozen, reference, batch, state.step)
    grads = constrain(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None
    if state.ema is not None:
      age = state.step.astype(jnp.float32)
      ema = trees.ema(state.ema, params, jnp.minimum(ema_decay, (1 + age) / (10 + age)))
    moved = state.reference
    if moved is not None:
      moved = reference_update(moved, params, state.step + 1)
    means = {name: jnp.mean(value) for name, value in metrics.items()}
    means["gradient_norm"] = optax.global_norm(grads)
    means["parameter_norm"] = optax.global_norm(params)
    return State(state.step + 1, params, opt_state, ema, moved), means, metrics["loss"]

  return step


def compile_step(
  step: Callable, mesh: Mesh, state: State, frozen: Params, reference: Params | None
) -> Callable:
  """The jitted step: sharded by the rules of `parallel.sharding`, with the state donated.

  Args:
    step: From `make_step`.
    mesh: From `sharding.make_mesh`; it must be set (jax.set_mesh) where the result is called.
    state: The state, or its `jax.ShapeDtypeStruct`s.
    frozen: Parameters that are not trained, or their `jax.ShapeDtypeStruct`s.
    reference: A frozen reference's parameters, or their `jax.ShapeDtypeStruct`s, or None.

  Returns:
    `(state, frozen, reference, batch) -> (state, metrics, losses)`.
  """
  inputs = [sharding.shardings(mesh, tree) for tree in (state, frozen, reference)]
  examples = sharding.batch(mesh)
  return jax.jit(
    step,
    in_shardings=(*inputs, examples),
    out_shardings=(inputs[0], sharding.replicated(mesh), examples),
    donate_argnums=0,
    compiler_options=EXACT_ROUNDING,
  )
