"""The exact iteration on a finite set."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.common.ranges import Integers, check_integer, check_number
from dmpo_jax.ddo.density import kl_divergence, log_normalizer
from dmpo_jax.ddo.weights import POSITIVE
from dmpo_jax.errors import InputError


class TabularSolution(NamedTuple):
  """The iterates of K steps.

  Attributes:
    potentials: f_1 = 0, f_2, ..., f_{K+1}, `[K + 1, N]`.
    probabilities: q_1 = p_ref, ..., q_{K+1}, `[K + 1, N]`.
    losses: L(q) = F(q) + beta KL(q||p_ref) of each, `[K + 1]`.
  """

  potentials: jax.Array
  probabilities: jax.Array
  losses: jax.Array


def solve_tabular(
  loss: Callable[[jax.Array], jax.Array],
  weights: Callable[[int], tuple[float, float]],
  reference: jax.Array,
  *,
  beta: float,
  num_steps: int,
  stop_when_rising: bool = True,
) -> TabularSolution:
  """Minimises F(q) + beta KL(q||p_ref) over the distributions on a finite set.

      g_k = dF/dq(q_k),   f_{k+1} = a_k f_k + b_k g_k,   q_k ∝ exp(-f_k) p_ref,   f_1 = 0

  The first variation is the gradient of F, by automatic differentiation, in the dtype of the
  reference.

  Args:
    loss: F, from probabilities `[N]` to a scalar; differentiable by jax.
    weights: k -> (a_k, b_k) for k = 1, 2, ..., such as
      `functools.partial(averaging_weights, beta=0.5, beta_prime=0.5)`.
    reference: p_ref, probabilities > 0, `[N]`.
    beta: Weight of the KL divergence, > 0; 0 only where `weights` use none.
    num_steps: K.
    stop_when_rising: Whether a loss that rises is an error; see `check_descent`.

  Returns:
    `TabularSolution`.

  Raises:
    InputError: The reference is no distribution, a number is out of range, or the loss rises.
  """
  num_steps = check_integer("num_steps", num_steps, Integers(1, 10**6))
  if beta != 0:
    beta = check_number("beta", beta, POSITIVE)
  p = jnp.asarray(reference)
  masses = np.asarray(p, np.float64)
  if masses.ndim != 1 or not (masses > 0).all() or abs(masses.sum() - 1) > 1e-4:
    raise InputError(
      f"the reference has shape {masses.shape}, sum {masses.sum():g} and smallest mass "
      f"{masses.min(initial=np.inf):g}; expected probabilities > 0 of sum 1, [N]"
    )
  table = jnp.asarray([weights(k) for k in range(1, num_steps + 1)], p.dtype)  # [K, 2]

  def distribution(f: jax.Array) -> jax.Array:
    return jnp.exp(jnp.log(p) - f - log_normalizer(f, probabilities=p))

  def objective(f: jax.Array) -> jax.Array:
    return loss(distribution(f)) + beta * kl_divergence(f, probabilities=p)

  def advance(f: jax.Array, weight: jax.Array):
    f = weight[0] * f + weight[1] * jax.grad(loss)(distribution(f))
    return f, (f, objective(f))

  @jax.jit
  def run(table: jax.Array):
    start = jnp.zeros_like(p)
    _, (potentials, values) = jax.lax.scan(advance, start, table)
    potentials = jnp.concatenate([start[None], potentials])
    return potentials, jax.vmap(distribution)(potentials), jnp.append(objective(start), values)

  solution = TabularSolution(*run(table))
  if stop_when_rising:
    check_descent(np.asarray(solution.losses))
  return solution


def check_descent(losses: Sequence[float] | np.ndarray, *, tolerance: float = 1e-5) -> None:
  """Raises where the loss of an iteration rises: its steps are too long.

  Dual averaging may pass its aim once at the start. So a loss counts as rising where it is not
  finite, ends above its value at the reference, or rises in two steps in a row.

  Args:
    losses: L(q_1), L(q_2), ...; the first is that of the reference.
    tolerance: Rises up to this are rounding or noise.

  Raises:
    InputError: The loss rises; the message says at which step.
  """
  values = np.asarray(losses, np.float64)
  rises = ~(np.diff(values) <= tolerance)
  for k in range(1, len(values)):
    twice = k > 1 and rises[k - 1] and rises[k - 2]
    if twice or not np.isfinite(values[k]) or (k == len(values) - 1 and values[k] > values[0]):
      if abs(values[k] - values[0]) <= tolerance:
        continue
      raise InputError(
        f"the loss rises to {values[k]:.6g} in step {k} (step {k - 1}: {values[k - 1]:.6g}, "
        f"reference: {values[0]:.6g}): the steps are too long for this loss. Raise beta_prime "
        "(with proximal weights: lower tau), or raise beta"
      )
