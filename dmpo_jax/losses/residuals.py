"""The residual tensors of a pair, for losses that need more than the four errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError


class Residuals(NamedTuple):
  """prediction - target of the policy and the frozen reference on a batch of preference pairs.

  Each field is `[pairs, ...]` in any floating dtype; the mean of its squares over all axes but the
  first is the field of the same name in `PairErrors`.

  Attributes:
    policy_w: The policy's residual on the preferred images.
    policy_l: The policy's residual on the rejected images.
    reference_w: The reference's residual on the preferred images; None for reference-free losses.
    reference_l: The reference's residual on the rejected images; None for reference-free losses.
  """

  policy_w: jax.Array
  policy_l: jax.Array
  reference_w: jax.Array | None = None
  reference_l: jax.Array | None = None


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
  """Mean over elements of the product of two tensors, for each pair, reduced in float32.

      <a, b>_i = (1/d) Σ_j a_ij b_ij

  Args:
    a: `[pairs, ...]`, any floating dtype.
    b: `[pairs, ...]`, the same shape.

  Returns:
    float32 `[pairs]`.
  """
  product = a.astype(jnp.float32) * b.astype(jnp.float32)
  return jnp.mean(product, axis=tuple(range(1, product.ndim)))


def check_residuals(residuals: Residuals, loss: str, *, fields: list[str], pairs: int) -> None:
  """Raises if residuals lack a field, or if their shapes do not fit the errors.

  Args:
    residuals: The residuals.
    loss: Name of the loss, for the message.
    fields: Fields that the loss needs.
    pairs: Number of pairs in the errors.

  Raises:
    InputError: A needed field is None or no floating array, or shapes differ from one
      `[pairs, ...]`.
  """
  for name in fields:
    value = getattr(residuals, name, None)
    if value is None:
      raise InputError(
        f"{loss} needs the residuals {name} (prediction - target, [pairs, ...]), got None"
      )
    if value.ndim < 2 or value.shape[0] != pairs or value.shape != residuals.policy_w.shape:
      shapes = {k: v.shape for k, v in residuals._asdict().items() if v is not None}
      raise InputError(
        f"{loss} takes residuals of one shape [{pairs}, ...] for errors of {pairs} pairs; "
        f"{name} differs: {shapes}"
      )
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise InputError(f"{loss} takes residuals of floating point; {name} is {value.dtype}")
