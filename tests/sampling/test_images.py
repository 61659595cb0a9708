"""Conversion to pictures."""

import jax.numpy as jnp
import numpy as np

from dmpo_jax import sampling


def test_the_ends_and_the_middle_of_the_range_map_to_their_levels():
  x = jnp.array([-1.0, 0.0, 1.0])
  assert sampling.to_uint8(x).tolist() == [0, 128, 255]


def test_every_level_comes_back_exactly():
  levels = np.arange(256)
  x = jnp.asarray(levels / 127.5 - 1, jnp.float32)
  np.testing.assert_array_equal(sampling.to_uint8(x), levels)


def test_values_are_rounded_to_the_nearest_level():
  x = jnp.asarray((np.arange(256) + np.tile([0.4, -0.4], 128)) / 127.5 - 1, jnp.float32)
  np.testing.assert_array_equal(sampling.to_uint8(x), np.arange(256))


def test_values_outside_of_the_range_are_clipped_and_do_not_wrap():
  assert sampling.to_uint8(jnp.array([-7.0, -1.01, 1.01, 7.0])).tolist() == [0, 0, 255, 255]


def test_the_picture_is_uint8_of_the_same_shape():
  picture = sampling.to_uint8(jnp.zeros((2, 3, 4, 1)))
  assert picture.dtype == jnp.uint8
  assert picture.shape == (2, 3, 4, 1)
