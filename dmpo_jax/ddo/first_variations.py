"""First variations dF/dq of RLHF, DPO and KTO at q = exp(-f) p_ref / Z, up to a constant.

Derived here and checked against finite differences; the forms printed in arXiv 2502.02954 are
unknown. With ρ = q/p_ref = exp(-f)/Z, σ the logistic function and P(x>y) the probability that x is
preferred to y.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.common.ranges import Interval, check_number
from dmpo_jax.errors import InputError

GAMMA = Interval(0, 1e6)
TOLERANCE = 1e-3


def first_variation_rlhf(reward: jax.Array) -> jax.Array:
  """First variation of F(q) = -E_q[r], g = -r.

  F is linear, so that the minimiser is known: q* ∝ p_ref exp(r/beta), with
  L(q*) = -beta log E_ref[exp(r/beta)].

  Args:
    reward: r, any shape.

  Returns:
    -r, of the same shape.
  """
  return -reward


def first_variation_dpo(
  f_x: jax.Array,
  f_y: jax.Array,
  preference: jax.Array,
  *,
  gamma: float,
  log_z: jax.Array | float,
  probabilities: jax.Array | None = None,
) -> jax.Array:
  """First variation of the DPO loss over distributions, where x and y are samples of p_ref.

      F(q) = -E[log σ(gamma (log ρ(w) - log ρ(l)))]
      g(x) = -2 gamma Z exp(f(x)) E_{y~p_ref}[P(x>y) - σ(gamma (f(y) - f(x)))]

  g carries 1/ρ = Z exp(f): it is not bounded on samples that q avoids. E_q[g] = 0. F is not convex
  in q. Samples x of another distribution mu need the factor mu/p_ref.

  Args:
    f_x: Potential of x, `[N]`.
    f_y: Potential of y, samples of the reference, `[M]`.
    preference: P(x>y), `[N, M]` in [0, 1].
    gamma: Scale of the log-ratios, > 0; DPO's own beta.
    log_z: log Z, `[]`; see `log_normalizer`.
    probabilities: Masses of y under the reference, `[M]`; None: 1/M each.

  Returns:
    g at x, `[N]`.

  Raises:
    InputError: Shapes do not fit, gamma is out of range, or (where values are known) a preference
      lies outside of [0, 1], or x and y are the same array and the preferences are not
      complementary: P(x>y) + P(y>x) = 1.

  Source: derived here.
  """
  gamma = check_number("gamma", gamma, GAMMA)
  _check_preference(f_x, f_y, preference)
  surplus = preference - jax.nn.sigmoid(gamma * (f_y[None, :] - f_x[:, None]))  # [N, M]
  return -2 * gamma * jnp.exp(log_z + f_x) * _mean(surplus, probabilities)


def first_variation_dpo_pairs(
  f_x: jax.Array, f_y: jax.Array, label: jax.Array, *, gamma: float, log_z: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
  """Unbiased estimates of `first_variation_dpo` at both images of labelled pairs.

      t(x) = -2 gamma Z exp(f(x)) (c - σ(gamma (f(y) - f(x)))),   E[t(x) | x] = g(x)

  and t(y) with 1 - c, where both images are independent samples of p_ref and c is the label.

  Args:
    f_x: Potential of the first images, `[P]`.
    f_y: Potential of the second images, `[P]`.
    label: c, 1 where the first image was preferred, 0 where the second was, or P(x>y); `[P]`.
    gamma: Scale of the log-ratios, > 0.
    log_z: log Z, `[]`.

  Returns:
    t at the first and at the second images, `[P]` each.

  Raises:
    InputError: gamma is out of range, or shapes differ.

  Source: derived here.
  """
  gamma = check_number("gamma", gamma, GAMMA)
  if not f_x.shape == f_y.shape == label.shape:
    raise InputError(
      f"f_x {f_x.shape}, f_y {f_y.shape} and label {label.shape}; expected the same shape"
    )
  surplus = label - jax.nn.sigmoid(gamma * (f_y - f_x))
  return (
    -2 * gamma * jnp.exp(log_z + f_x) * surplus,
    2 * gamma * jnp.exp(log_z + f_y) * surplus,
  )


def first_variation_kto(
  f: jax.Array,
  desirable: jax.Array,
  undesirable: jax.Array,
  *,
  gamma: float,
  log_z: jax.Array | float,
  kl: jax.Array | float,
  through_kl: bool = False,
  probabilities: jax.Array | None = None,
) -> jax.Array:
  """First variation of KTO over distributions, at samples of p_ref.

      F(q) = E_ref[d (1 - σ(a)) + u (1 - σ(-a))],   a = gamma log ρ - z0,  z0 = gamma KL(q||p_ref)
      g    = -(gamma/ρ) (d σ'(a) - u σ'(-a))
             + E_ref[d σ'(a) - u σ'(-a)] gamma (1 + log ρ)      where the gradient passes z0

  d and u hold the weights of desirable and undesirable examples and their densities over p_ref:
  d = c_D λ_D p_D/p_ref. Where labels are given to samples of p_ref, d(x) = λ_D P(desirable | x) and
  u(x) = λ_U (1 - P(desirable | x)).

  Args:
    f: Potential of samples, `[N]`.
    desirable: d, >= 0, `[N]`.
    undesirable: u, >= 0, `[N]`.
    gamma: Scale of the log-ratios, > 0.
    log_z: log Z, `[]`.
    kl: KL(q||p_ref), `[]`; see `kl_divergence`.
    through_kl: Whether the gradient passes through z0. KTO's published code stops it.
    probabilities: Masses of the samples under the reference, `[N]`; None: 1/N each.

  Returns:
    g, `[N]`.

  Raises:
    InputError: gamma is out of range, or shapes differ.

  Source: derived here, for the loss of arXiv 2402.01306.
  """
  gamma = check_number("gamma", gamma, GAMMA)
  if not f.shape == desirable.shape == undesirable.shape:
    raise InputError(
      f"f {f.shape}, desirable {desirable.shape} and undesirable {undesirable.shape}; expected "
      "the same shape"
    )
  log_rho = -f - log_z
  sigma = jax.nn.sigmoid(gamma * (log_rho - kl))
  slope = (desirable - undesirable) * sigma * (1 - sigma)  # σ' is even
  g = -gamma * jnp.exp(-log_rho) * slope
  return g + gamma * (1 + log_rho) * _mean(slope, probabilities) if through_kl else g


def dpo_loss(
  f_x: jax.Array,
  f_y: jax.Array,
  preference: jax.Array,
  *,
  gamma: float,
  probabilities_x: jax.Array | None = None,
  probabilities: jax.Array | None = None,
) -> jax.Array:
  """F of `first_variation_dpo`, 2 E_{x,y~p_ref}[P(x>y) softplus(-gamma (f(y) - f(x)))].

  Args:
    f_x: Potential of x, `[N]`.
    f_y: Potential of y, `[M]`.
    preference: P(x>y), `[N, M]`; complementary, so that each pair counts once in each order.
    gamma: Scale of the log-ratios, > 0.
    probabilities_x: Masses of x under the reference, `[N]`; None: 1/N each.
    probabilities: Masses of y, `[M]`; None: 1/M each.

  Returns:
    float `[]`.
  """
  losses = 2 * preference * jax.nn.softplus(-gamma * (f_y[None, :] - f_x[:, None]))  # [N, M]
  return _mean(_mean(losses, probabilities), probabilities_x)


def kto_loss(
  f: jax.Array,
  desirable: jax.Array,
  undesirable: jax.Array,
  *,
  gamma: float,
  log_z: jax.Array | float,
  kl: jax.Array | float,
  probabilities: jax.Array | None = None,
) -> jax.Array:
  """F of `first_variation_kto`, whose arguments it takes; float `[]`."""
  a = gamma * (-f - log_z - kl)
  losses = desirable * jax.nn.sigmoid(-a) + undesirable * jax.nn.sigmoid(a)
  return _mean(losses, probabilities)


def _mean(values: jax.Array, probabilities: jax.Array | None) -> jax.Array:
  """Mean over the last axis, under masses where there are some."""
  return jnp.mean(values, axis=-1) if probabilities is None else values @ probabilities


def _check_preference(f_x: jax.Array, f_y: jax.Array, preference: jax.Array) -> None:
  expected = (*jnp.shape(f_x), *jnp.shape(f_y))
  if jnp.shape(preference) != expected or len(expected) != 2:
    raise InputError(
      f"preference has shape {jnp.shape(preference)}; expected [N, M] = {list(expected)}, as f_x "
      f"{jnp.shape(f_x)} and f_y {jnp.shape(f_y)} say"
    )
  if any(isinstance(x, jax.core.Tracer) for x in (f_x, f_y, preference)):
    return
  values = np.asarray(preference)
  if not (np.all(values >= 0) and np.all(values <= 1)):
    raise InputError(
      f"preferences run from {values.min():g} to {values.max():g}; expected probabilities P(x>y)"
    )
  # The same samples on both sides: the two orders of each pair can be compared.
  if f_x is f_y and (gap := np.abs(values + values.T - 1).max()) > TOLERANCE:
    raise InputError(
      f"preferences are not complementary: P(x>y) + P(y>x) is off 1 by up to {gap:.3g}; give "
      "probabilities of one order, 1/2 for ties and for a sample against itself"
    )
