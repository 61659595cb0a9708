"""Pixels of a batch as floats in [-1, 1]."""

import jax
import numpy as np

from dmpo_jax.sampling import to_floats


def test_bytes_become_floats_with_black_at_minus_one_and_white_at_one():
  levels = np.arange(256, dtype=np.uint8).reshape(2, 2, 8, 8, 1)
  floats = jax.jit(to_floats)(levels)
  assert floats.dtype == np.float32
  np.testing.assert_allclose(floats, np.float64(levels) / 127.5 - 1, atol=1.2e-7)
  assert (floats.min(), floats.max()) == (-1, 1)


def test_floats_stay_as_they_are():
  images = np.float32([-1, 0.25, 1])
  assert to_floats(images) is images
