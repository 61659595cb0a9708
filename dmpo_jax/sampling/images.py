"""From the units of a network to those of a picture."""

import jax
import jax.numpy as jnp


def to_uint8(x: jax.Array) -> jax.Array:
  """Maps images from [-1, 1] to the 256 levels of a picture, rounding and clipping.

      clip(round(127.5 (x + 1)), 0, 255)

  Args:
    x: Images, float, any shape.

  Returns:
    uint8, of x's shape.
  """
  levels = jnp.round((x.astype(jnp.float32) + 1) * 127.5)
  return jnp.clip(levels, 0, 255).astype(jnp.uint8)


def to_floats(images: jax.Array) -> jax.Array:
  """Images as networks take them.

      x = value / 127.5 - 1

  Called on the device, so that a quarter of the bytes are transferred.

  Args:
    images: uint8, or float32 in [-1, 1] already.

  Returns:
    float32 in [-1, 1], of the same shape.
  """
  if images.dtype != jnp.uint8:
    return images
  return images.astype(jnp.float32) / 127.5 - 1
