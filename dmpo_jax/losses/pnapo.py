"""PNAPO: beta of each pair from its gap of scores, and of each step from a schedule."""

import jax
import jax.numpy as jnp

# Losses that see beta times errors alone, so that a factor of the errors is a factor of beta.
PRODUCT_OF_BETA = ("alpha_dpo", "dmpo", "dpo")


def beta_factor(
  gap: jax.Array | None,
  step: jax.Array,
  *,
  temperature: float = 1.0,
  decay_start: int = 0,
  decay_end: int = 0,
) -> jax.Array:
  """Factor of beta of each pair in a step.

      factor = (2 σ(|gap| / temperature) - 1) g(step)
      g = 1 up to decay_start, 1/2 from decay_end on, between them
          3/4 + 1/4 cos(π (step - decay_start)/(decay_end - decay_start))

  A pair of equal scores has the factor 0, and one of very different scores g.

  Args:
    gap: Score of the preferred image less that of the rejected one, float32 `[pairs]`. Its sign is
      not used, since the label may contradict the scores. None: the first factor is 1.
    step: int32 scalar, steps taken before.
    temperature: Unit of the gap, > 0; 1 in the source.
    decay_start: Step up to which g is 1.
    decay_end: Step from which g is 1/2; 0: g is 1.

  Returns:
    float32 in [0, 1], `[pairs]`, or a scalar without gaps.

  Source: arXiv 2605.09433, beta(δ_r, n); the temperature and the absolute value are derived here.
  """
  factor = jnp.float32(1.0)
  if gap is not None:
    # 2 σ(x) - 1 = tanh(x/2), exact for small x.
    factor = jnp.tanh(jnp.abs(gap.astype(jnp.float32)) / (2 * temperature))
  if decay_end:
    progress = jnp.asarray(step - decay_start, jnp.float32) / (decay_end - decay_start)
    factor *= 0.75 + 0.25 * jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))
  return factor
