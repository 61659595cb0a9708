"""Alpha-divergence from the policy's preference to certainty."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from dmpo_jax.losses.base import POSITIVE, Diagnostics, Interval, PairErrors, checked, diagnose

# Gauss-Legendre nodes and weights on [0, 1]; eight of them integrate `alpha_divergence` to
# float32's last digit for lengths up to 3.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


@checked(beta=POSITIVE, divergence_alpha=Interval(0, 1, closed_low=True, closed_high=True))
def alpha_dpo(
  errors: PairErrors, *, beta: float, divergence_alpha: float
) -> tuple[jax.Array, Diagnostics]:
  """Alpha-DPO: the alpha-divergence from the policy's preference to a certain one.

      loss = (p^a - (1 - a) - a p)/(a (a - 1)),   p = σ(z),   a = divergence_alpha
      d loss/dz = -(1 - p) (p^a - p)/(1 - a)

  The ends are limits: a = 0 gives -log p - (1 - p), which is DPO's loss less (1 - p) (with slope
  -(1 - p)² where DPO has -(1 - p)); a = 1 gives p log p + (1 - p), whose slope p (1 - p) log p
  vanishes on badly misranked pairs as DMPO's does. The minimum is at p = 1 for every a.

  Args:
    errors: float32 `[pairs]`, all four fields.
    beta: Temperature on mean errors, > 0; published: 4000 to 5000 (4000 for SDXL in the launch
      script).
    divergence_alpha: a in [0, 1]; published: 0.9999.

  Returns:
    loss: float32 `[pairs]`, within 2e-6 (relative) of the exact value for |z| <= 1e4, except where
      it is below float32's smallest normal number (z > 43).
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: Diffusion alpha-DPO. Reference implementation: yangli-lab/Diffusion_alpha-DPO_ICLR2026,
    which evaluates the formula literally; near a = 1 its three terms cancel.
  """
  diagnostics = diagnose(errors, beta=beta)
  return alpha_divergence(diagnostics.logit, jnp.float32(divergence_alpha)), diagnostics


@jax.custom_jvp
def alpha_divergence(z: jax.Array, a: jax.Array) -> jax.Array:
  """The alpha-divergence as a function of the logit, without cancellation for any a in [0, 1].

  With l = -log p the divergence is l ∫_0^1 (1 - exp(-l t)) exp(-a l (1 - t)) dt, all of whose terms
  are positive; integrated, l [φ(a l) - exp(-a l) φ((1 - a) l)] with φ(x) = (1 - exp(-x))/x, two
  terms that cancel for small l alone.

  Args:
    z: float32, any shape.
    a: float32 scalar in [0, 1]. No gradient passes.

  Returns:
    float32, the shape of z.
  """
  length = -log_sigmoid(z)
  near = jnp.zeros_like(z)
  for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
    near -= weight * jnp.expm1(-node * length) * jnp.exp(-(1 - node) * a * length)
  far = _mean_decay(a * length) - jnp.exp(-a * length) * _mean_decay((1 - a) * length)
  return length * jnp.where(length < 3, near, far)


@alpha_divergence.defjvp
def _(primals, tangents):
  (z, a), (dz, _) = primals, tangents
  length = -log_sigmoid(z)
  slope = -jax.nn.sigmoid(-z) * jnp.exp(-a * length) * length * _mean_decay((1 - a) * length)
  return alpha_divergence(z, a), slope * dz


def _mean_decay(x: jax.Array) -> jax.Array:
  """(1 - exp(-x))/x, the mean of exp(-u) over u in [0, x]; 1 at x = 0."""
  small = x < 1e-4
  return jnp.where(small, 1 - x / 2, -jnp.expm1(-x) / jnp.where(small, 1.0, x))
