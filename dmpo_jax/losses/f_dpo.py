"""f-DPO: DPO whose penalty on leaving the reference is another f-divergence."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dmpo_jax.errors import InputError, unknown
from dmpo_jax.losses.base import POSITIVE, Diagnostics, Interval, PairErrors, checked, diagnose

# float32 overflows at exp(88.7); the range above exp(80) is left for the factors before it.
LARGEST_EXPONENT = 80.0

_UNUSABLE = "0 lies in the domain of its f', so the partition function does not cancel in a pair"
REFUSED = {
  "chi_squared": f"{_UNUSABLE}, and a density ratio that should be negative is cut to 0",
  "total_variation": f"{_UNUSABLE}, and f' is constant on either side of 1, so it has no gradient",
}


@checked(beta=POSITIVE, inner_scale=POSITIVE, divergence_alpha=Interval(0, 1))
def f_dpo(
  errors: PairErrors,
  *,
  divergence: str,
  beta: float,
  inner_scale: float,
  divergence_alpha: float = 0.5,
) -> tuple[jax.Array, Diagnostics]:
  """f-DPO: the log-ratio of DPO is replaced by the derivative of f at the ratio.

      loss = -log σ(beta [g(s_w) - g(s_l)]),   s = -inner_scale/2 (e - r),   g(s) = f'(exp s)

      reverse_kl  g = s              forward_kl  g = -exp(-s)       jeffreys  g = s - exp(-s)
      js          g = log σ(s)       alpha       g = -exp(-a s)/a,  a = divergence_alpha

  Slopes of g at s = 0 are 1, 1, 2, 1/2 and 1. Errors move by about 1e-3, so with inner_scale 1 g is
  linear and all of them are DPO with another beta; only where inner_scale (e - r) is of order 1 do
  they differ. reverse_kl is `dpo` with beta_dpo = beta · inner_scale for every inner_scale.

  Args:
    errors: float32 `[pairs]`, all four fields.
    divergence: "reverse_kl", "forward_kl", "js", "alpha" or "jeffreys".
    beta: Temperature before the difference, > 0. To compare with DPO at beta_dpo, beta_dpo divided
      by inner_scale: 5000/16384 for SD1.5 at 512 px.
    inner_scale: c, > 0. With c = d = H·W·C of what is denoised (16384 for SD1.5 at 512 px, 65536
      for SDXL at 1024 px) s is the log-ratio of the path; that is the value to start from.
    divergence_alpha: a in (0, 1), for "alpha" alone: near 1 it is forward_kl, near 0 reverse_kl.

  Returns:
    loss: float32 `[pairs]`. Exponents are cut at 80: an image with s < -80 (-80/a for alpha) adds a
      large constant without gradient. Up to there values and gradients are finite in float32 as
      long as beta and beta · inner_scale/2 are below 6000 (6000 a for alpha).
    diagnostics: `Diagnostics` of DPO at the same beta · inner_scale, float32 `[pairs]`; the sign of
      the logit is that of the argument of σ, for g increases.

  Raises:
    InputError: The divergence is unknown, or chi_squared or total_variation (the message says why);
      a hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2309.16240 (f-DPO for language models), with log-ratios replaced by errors; arXiv
    2409.09774 is the paper for diffusion.
  """
  if divergence in REFUSED:
    raise InputError(f"divergence {divergence!r} cannot be used: {REFUSED[divergence]}")
  if divergence not in _DERIVATIVES:
    raise unknown("divergence", divergence, _DERIVATIVES)
  diagnostics = diagnose(errors, beta=beta * inner_scale)
  if divergence == "reverse_kl":  # g is linear, so both factors are one: DPO to the last bit
    return -log_sigmoid(diagnostics.logit), diagnostics
  ratio = diagnose(errors, beta=inner_scale)  # its rewards are s
  g, a = _DERIVATIVES[divergence], divergence_alpha
  return -log_sigmoid(beta * (g(ratio.reward_w, a) - g(ratio.reward_l, a))), diagnostics


def _growth(x: jax.Array) -> jax.Array:
  """exp(x) - 1, the exponent cut."""
  return jnp.expm1(jnp.minimum(x, LARGEST_EXPONENT))


def _js(s: jax.Array) -> jax.Array:
  """log σ(s) + log 2, in a form whose terms do not cancel around 0."""
  # Not minimum and abs: jax's derivatives of theirs at 0 add up to 1 there, where the slope is 1/2.
  negative = s < 0
  decay = jnp.expm1(jnp.where(negative, s, -s))
  return jnp.where(negative, s, 0.0) - jnp.log1p(decay / 2)


# g up to a constant, which the difference of two drops: each is 0 at s = 0, where small differences
# would drown in the constant.
_DERIVATIVES = {
  "reverse_kl": lambda s, a: s,
  "forward_kl": lambda s, a: -_growth(-s),
  "js": lambda s, a: _js(s),
  "alpha": lambda s, a: -_growth(-a * s) / a,
  "jeffreys": lambda s, a: s - _growth(-s),
}
