"""Classifier-free guidance."""

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError


def guide(unconditional: jax.Array, conditional: jax.Array, scale: float) -> jax.Array:
  """Moves a prediction away from the unconditional one.

      guided = unconditional + scale (conditional - unconditional)

  Args:
    unconditional: The prediction for the empty caption, `[B, ...]`.
    conditional: The prediction for the caption, of the same shape.
    scale: 0 ignores the caption, 1 is the conditional prediction, more exaggerates it.

  Returns:
    The guided prediction, of the same shape, float32 (or wider): the scale would magnify the
    rounding of a narrower type.

  Raises:
    InputError: The shapes differ.

  Source: arXiv 2207.12598, with scale = 1 + w, as diffusers counts it.
  """
  if unconditional.shape != conditional.shape:
    raise InputError(
      f"unconditional has shape {unconditional.shape} and conditional {conditional.shape}; "
      "expected the same"
    )
  dtype = jnp.promote_types(unconditional.dtype, jnp.float32)
  unconditional, conditional = unconditional.astype(dtype), conditional.astype(dtype)
  return unconditional + scale * (conditional - unconditional)
