"""Constants per timestep, looked up inside a jit."""

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.errors import InputError


def lookup(table: np.ndarray, t: jax.Array) -> jax.Array:
  """`table[t]` in float32, with NaN where t lies outside of the table.

  Args:
    table: Constants per timestep, `[T]`.
    t: Timesteps, integer, any shape.

  Returns:
    float32, of t's shape.

  Raises:
    InputError: t is not an integer array.
  """
  t = jnp.asarray(t)
  if not jnp.issubdtype(t.dtype, jnp.integer):
    raise InputError(f"timesteps have dtype {t.dtype}; expected integers, such as int32")
  # jax would clamp an index that is too large and wrap a negative one: a wrong noise level without
  # a word. NaN is noticed at the first loss.
  return (
    jnp.asarray(table, jnp.float32)
    .at[t]
    .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
  )
