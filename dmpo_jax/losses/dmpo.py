"""DMPO: the reverse KL from the policy's preference to the target."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from dmpo_jax.losses.base import POSITIVE, Diagnostics, Interval, PairErrors, checked, diagnose

# Gauss-Legendre nodes and weights on [0, 1]; eight of them integrate the slope below to float32's
# last digit over |z - u*| <= 3.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


@checked(beta=POSITIVE, alpha=Interval(0, 0.5))
def dmpo(errors: PairErrors, *, beta: float, alpha: float) -> tuple[jax.Array, Diagnostics]:
  """DMPO: KL(Bernoulli(p) ‖ Bernoulli(1 - alpha)) with the policy's preference p first.

      p = σ(z),   z = -beta/2 ((e_w - e_l) - (r_w - r_l)),   q = 1 - alpha
      loss = p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q))

  The loss is zero at u* = log((1 - alpha)/alpha) and d loss/dz = p (1 - p) (z - u*): pairs that the
  policy misranks badly are nearly ignored, and past u* a weak gradient reduces the margin.

  Args:
    errors: float32 `[pairs]`, all four fields.
    beta: Temperature on mean errors, > 0. The reference implementation uses 2000 for SD1.5 and 6000
      for SDXL (64x64x4 and 128x128x4 latents; smaller images want less).
    alpha: Label-flip probability of the target, in (0, 1/2); published: 0.01.
      At 0 the target is certain and the reverse KL is infinite for every p < 1.

  Returns:
    loss: float32 `[pairs]`, within 1e-6 (relative) of the exact value for |z| <= 1e4.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2507.07510. Reference implementation: AIDC-AI/Diffusion-SDPO,
    `--train_method dmpo`. EXO (arXiv 2402.00856, Eq. 16) is the same form for language models.
  """
  diagnostics = diagnose(errors, beta=beta)
  return _reverse_kl(alpha, diagnostics.logit), diagnostics


def _distance(alpha: float, z: jax.Array) -> jax.Array:
  """z - u*, with u* as a sum of two float32 numbers: one alone would shift the zero of the loss."""
  target = math.log1p(-alpha) - math.log(alpha)
  high = np.float32(target)
  # The barrier keeps the compiler from adding the two constants up.
  return jax.lax.optimization_barrier(z - high) - np.float32(target - float(high))


def _variance(z: jax.Array) -> jax.Array:
  """σ(z) σ(-z) to relative precision, for z of any sign and size."""
  decay = jnp.exp(-jnp.abs(z))
  return decay / jnp.square(1 + decay)


def _reverse_kl(alpha: float, z: jax.Array) -> jax.Array:
  """KL(Bernoulli(σ(z)) ‖ Bernoulli(1 - alpha)), elementwise, with its exact derivative."""

  @jax.custom_jvp
  def divergence(z: jax.Array) -> jax.Array:
    # Near the zero the two terms of the KL cancel, so there the slope is integrated from u* to z,
    # all of whose terms are positive: loss = δ² ∫_0^1 s σ'(u* + s δ) ds.
    delta = _distance(alpha, z)
    near = jnp.zeros_like(z)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
      near += weight * node * _variance(z - (1 - node) * delta)
    log_p, log_not_p = log_sigmoid(z), log_sigmoid(-z)
    far = jnp.exp(log_p) * (log_p - math.log1p(-alpha))
    far += jnp.exp(log_not_p) * (log_not_p - math.log(alpha))
    return jnp.where(jnp.abs(delta) < 3, jnp.square(delta) * near, far)

  @divergence.defjvp
  def _(primals, tangents):
    (z,), (dz,) = primals, tangents
    return divergence(z), _variance(z) * _distance(alpha, z) * dz

  return divergence(z)
