"""Doob's drift u(x, t) = ∇ log E[exp(-f(X_0)) | X_t = x], which turns p_ref's score into q's.

    q_t(x) = p_t(x) h(x, t)/Z,  h = E[exp(-f(X_0)) | X_t = x]   =>   ∇ log q_t = ∇ log p_t + u

All estimators have one interface: they return a `Drift`, `u(x_t, t, key)`. The covariance form is

    u = (a_t/s_t²) (E_w[X_0 | x] - E[X_0 | x]),   w = exp(-f(X_0))

with E_w the expectation reweighted by w. Derived here; that arXiv 2502.02954 simulates the
reference backward inside of each step is known from its public reviews, its formula is not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.common.ranges import Integers, check_integer
from dmpo_jax.ddo.processes import clean_and_noise, levels, reverse_times
from dmpo_jax.errors import InputError, unknown

# (x_t [B, ...], t [B] or [], key [] or [B]) -> u [B, ...]
Drift = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Predict = Callable[[jax.Array, jax.Array], jax.Array]
FORMS = ("covariance", "reinforce")
COUNTS = Integers(1, 10**6)


def drift_nested(
  process: Any,
  predict: Predict,
  potential: Callable[[jax.Array], jax.Array],
  *,
  particles: int,
  num_steps: int,
  form: str = "covariance",
) -> Drift:
  """The drift by nested Monte Carlo: M simulations of the reference from x_t to x_0.

      covariance:  u = (a/s²) (Σ w_m x_m / Σ w_m - Σ x_m / M)
      reinforce:   u = Σ w_m (-(x - a x_m)/s²) / Σ w_m - ∇ log p_t(x)

  Both divide by the sum of the weights, so that their bias is O(1/M), towards the reference; the
  second has the larger spread. A call costs M · num_steps evaluations of the network.

  Args:
    process: The noise process, see `levels`.
    predict: The reference's network, (x `[B, ...]`, t `[B]`) -> prediction `[B, ...]`; it is
      mapped over the particles by jax.vmap.
    potential: f, from x_0 `[B, ...]` to `[B]`.
    particles: M; 64 and more, see docs/ddo.md.
    num_steps: Steps of each simulation.
    form: "covariance" or "reinforce".

  Returns:
    `Drift`. A key per image makes the drift of an image independent of its batch.

  Raises:
    InputError: A number is out of range, the form is not known, or the process has no known score.

  Source: derived here; the second form is Lemma 2.2 of "Steepest Guidance" (Takakura et al.).
  """
  particles = check_integer("particles", particles, COUNTS)
  if form not in FORMS:
    raise unknown("form of the nested drift", form, FORMS)
  sample = posterior_sampler(process, predict, num_steps=num_steps)

  def drift(x: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
    t = jnp.broadcast_to(t, x.shape[:1])
    keys = jax.vmap(lambda k: jax.random.split(k, particles))(_per_image(key, x)).T  # [M, B]
    x0 = jax.vmap(lambda keys: sample(x, t, keys))(keys)  # [M, B, ...]
    weights = jax.nn.softmax(-jax.vmap(potential)(x0), axis=0)  # [M, B]
    weights = weights.reshape(weights.shape + (1,) * (x.ndim - 1))
    a, s = levels(process, t, x)
    if form == "covariance":
      return a / s**2 * jnp.sum((weights - 1 / particles) * x0, axis=0)
    _, noise = clean_and_noise(process, predict(x, t), x, t)
    return jnp.sum(weights * -(x[None] - a[None] * x0), axis=0) / s**2 + noise / s

  return drift


def posterior_sampler(
  process: Any, predict: Predict, *, num_steps: int
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Samples X_0 given X_t = x by simulating the reference backward.

      x_r = a_r x_0 + sqrt(s_r² - v) eps + sqrt(w) z
      d = s_t² - (a_t/a_r)² s_r²,   v = (s_r²/s_t²) d
      w = min((s_r/s_t) (a_r/a_t) d, v + a_r²)

  with x_0 and eps as the network predicts them at x_t, and x_0 itself at the last time. w = v is an
  ancestral step, DDIM's with eta = 1, which takes x_0 as known and spreads too little: at 15 steps
  the drift of a Gaussian falls short by a quarter. w = (a_r/a_t)² d spreads too much. Their
  geometric mean falls short by 7%. Where the signal vanishes it is bounded by the spread of data of
  unit scale.

  Args:
    process: The noise process, see `levels`.
    predict: (x `[B, ...]`, t `[B]`) -> prediction `[B, ...]`.
    num_steps: Evaluations of the network.

  Returns:
    `(x_t [B, ...], t [B], keys [B]) -> x_0 [B, ...]`.

  Raises:
    InputError: The number of steps is out of range.

  Source: derived here; arXiv 2006.11239, section 3.2, has the two variances.
  """
  num_steps = check_integer("num_steps", num_steps, COUNTS)

  def sample(x: jax.Array, t: jax.Array, keys: jax.Array) -> jax.Array:
    times = reverse_times(process, t, num_steps)  # [num_steps, B]

    def advance(x: jax.Array, inputs: tuple):
      here, there, index = inputs
      clean, noise = clean_and_noise(process, predict(x, here), x, here)
      (a, s), (a_next, s_next) = levels(process, here, x), levels(process, there, x)
      gap = jnp.maximum(s**2 - (a / a_next) ** 2 * s_next**2, 0)
      known = (s_next / s) ** 2 * gap
      spread = jnp.minimum(s_next / s * (a_next / a) * gap, known + a_next**2)
      fresh = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(
        jax.vmap(lambda k: jax.random.fold_in(k, index))(keys)
      )
      direction = jnp.sqrt(jnp.maximum(s_next**2 - known, 0))
      return a_next * clean + direction * noise + jnp.sqrt(spread) * fresh, None

    steps = (times[:-1], times[1:], jnp.arange(num_steps - 1))
    x, _ = jax.lax.scan(advance, x, steps)
    return clean_and_noise(process, predict(x, times[-1]), x, times[-1])[0]

  return sample


def drift_stored(process: Any, samples: jax.Array, potential: jax.Array) -> Drift:
  """The drift by a stored set of samples of the reference; for few dimensions.

      u = (a/s²) (Σ w_i κ_i x_i / Σ w_i κ_i - Σ κ_i x_i / Σ κ_i),   κ_i = N(x; a x_i, s²)

  In many dimensions κ has one winner, both means agree, and u vanishes.

  Args:
    process: The noise process, see `levels`.
    samples: x_i, samples of the reference, `[n, ...]`.
    potential: f(x_i), `[n]`.

  Returns:
    `Drift`; the key has no effect.

  Raises:
    InputError: There is not one value of the potential for each sample.
  """
  if jnp.shape(potential) != jnp.shape(samples)[:1]:
    raise InputError(
      f"the potential has shape {jnp.shape(potential)} for samples {jnp.shape(samples)}; expected "
      f"one value each"
    )
  flat = samples.reshape(len(samples), -1)  # [n, D]

  def drift(x: jax.Array, t: jax.Array, key: jax.Array | None = None) -> jax.Array:
    rows = x.reshape(len(x), -1)  # [B, D]
    a, s = levels(process, jnp.broadcast_to(t, x.shape[:1]), rows)  # [B, 1]
    squares = (
      jnp.sum(rows**2, axis=1, keepdims=True)
      - 2 * a * (rows @ flat.T)
      + a**2 * jnp.sum(flat**2, axis=1)[None, :]
    )
    logits = -squares / (2 * s**2)  # [B, n]
    tilted = jax.nn.softmax(logits - potential[None, :], axis=1)
    moved = (tilted - jax.nn.softmax(logits, axis=1)) @ flat  # [B, D]
    return (a / s**2 * moved).reshape(x.shape)

  return drift


def drift_log_h(log_h: Callable[[jax.Array, jax.Array], jax.Array]) -> Drift:
  """The drift of a learned A(x, t) ≈ log h(x, t), u = ∇_x A; see `log_h_loss`.

  Args:
    log_h: A, from (x_t `[B, ...]`, t `[B]`) to `[B]`.

  Returns:
    `Drift`; the key has no effect.
  """

  def drift(x: jax.Array, t: jax.Array, key: jax.Array | None = None) -> jax.Array:
    t = jnp.broadcast_to(t, x.shape[:1])
    return jax.grad(lambda x: jnp.sum(log_h(x, t)))(x)

  return drift


def drift_denoising(field: Callable[[jax.Array, jax.Array], jax.Array]) -> Drift:
  """The drift of a learned field u(x, t); see `denoising_loss`.

  Args:
    field: u, from (x_t `[B, ...]`, t `[B]`) to `[B, ...]`.

  Returns:
    `Drift`; the key has no effect.
  """

  def drift(x: jax.Array, t: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return field(x, jnp.broadcast_to(t, x.shape[:1]))

  return drift


def _per_image(key: jax.Array, x: jax.Array) -> jax.Array:
  """Keys `[B]` from one for all or one for each."""
  if jnp.shape(key) == ():
    return jax.random.split(key, len(x))
  if jnp.shape(key) != x.shape[:1]:
    raise InputError(f"keys have shape {jnp.shape(key)}; expected [] or [{len(x)}]")
  return key
