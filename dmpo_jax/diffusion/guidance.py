"""Classifier-free guidance, by captions and by source images, and the contrast it adds."""

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError


def has_guidance(scale: float) -> bool:
  """Whether a guidance scale asks for guidance: above 1, as diffusers reads it.

  At and below 1 the caption alone conditions. Distilled models are published with a scale of 0.
  """
  return scale > 1


def guide(unconditional: jax.Array, conditional: jax.Array, scale: float) -> jax.Array:
  """Moves a prediction away from the unconditional one.

      guided = unconditional + scale (conditional - unconditional)

  Args:
    unconditional: The prediction for the empty caption, `[B, ...]`.
    conditional: The prediction for the caption, of the same shape.
    scale: 0 ignores the caption, 1 is the conditional prediction, more exaggerates it. Sampling
      calls this above 1 only; see `has_guidance`.

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


def guide_edit(
  null: jax.Array,
  source: jax.Array,
  conditional: jax.Array,
  scale: float,
  image_scale: float,
) -> jax.Array:
  """Moves a prediction toward the source image and the instruction, each by a scale of its own.

      guided = e(∅, ∅) + image_scale (e(I, ∅) - e(∅, ∅)) + scale (e(I, T) - e(I, ∅))

  Args:
    null: e(∅, ∅), the prediction without source and with the empty caption, `[B, ...]`.
    source: e(I, ∅), that with the source and the empty caption, of the same shape.
    conditional: e(I, T), that with both, of the same shape.
    scale: s_T, guidance by the instruction.
    image_scale: s_I, guidance by the source; 1 leaves `guide(source, conditional, scale)`.

  Returns:
    The guided prediction, of the same shape, float32 (or wider).

  Raises:
    InputError: The shapes differ.

  Source: arXiv 2211.09800, equation 3.
  """
  shapes = [x.shape for x in (null, source, conditional)]
  if len(set(shapes)) > 1:
    raise InputError(f"null, source and conditional have shapes {shapes}; expected the same")
  dtype = jnp.promote_types(null.dtype, jnp.float32)
  null, source, conditional = (x.astype(dtype) for x in (null, source, conditional))
  return null + image_scale * (source - null) + scale * (conditional - source)


def rescale(guided: jax.Array, conditional: jax.Array, strength: float) -> jax.Array:
  """Takes back some of the contrast that guidance adds.

      strength guided std(conditional) / std(guided) + (1 - strength) guided

  with the standard deviation over all axes of one image.

  Args:
    guided: What `guide` returns, `[B, ...]`.
    conditional: The prediction for the caption, of the same shape.
    strength: phi; 0 leaves `guided` as it is, 1 gives it the conditional prediction's deviation.

  Returns:
    The rescaled prediction, of guided's shape, float32 (or wider).

  Raises:
    InputError: The shapes differ.

  Source: arXiv 2305.08891, Eq. 15 and 16.
  """
  if guided.shape != conditional.shape:
    raise InputError(
      f"guided has shape {guided.shape} and conditional {conditional.shape}; expected the same"
    )
  dtype = jnp.promote_types(guided.dtype, jnp.float32)
  guided, conditional = guided.astype(dtype), conditional.astype(dtype)
  axes = tuple(range(1, guided.ndim))
  ratio = jnp.std(conditional, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
  return guided * (strength * ratio + (1 - strength))
