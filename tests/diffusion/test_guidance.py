"""Classifier-free guidance."""

import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import diffusion
from dmpo_jax.errors import InputError

RNG = np.random.default_rng(0)
NULL, FULL = jnp.asarray(RNG.standard_normal((2, 2, 3, 3, 1)), jnp.float32)


def test_guidance_extrapolates_along_the_difference():
  expected = np.asarray(NULL) + 7.5 * (np.asarray(FULL) - np.asarray(NULL))
  np.testing.assert_allclose(diffusion.guide(NULL, FULL, 7.5), expected, rtol=1e-6)


def test_scale_zero_ignores_the_caption():
  np.testing.assert_array_equal(diffusion.guide(NULL, FULL, 0.0), NULL)


def test_scale_one_is_the_conditional_prediction():
  np.testing.assert_allclose(diffusion.guide(NULL, FULL, 1.0), FULL, atol=1e-6)


def test_bfloat16_predictions_are_combined_in_float32():
  null, full = NULL.astype(jnp.bfloat16), FULL.astype(jnp.bfloat16)
  expected = diffusion.guide(null.astype(jnp.float32), full.astype(jnp.float32), 7.5)
  np.testing.assert_array_equal(diffusion.guide(null, full, 7.5), expected)


def test_predictions_of_different_shapes_are_refused():
  with pytest.raises(InputError, match=r"unconditional has shape \(1, 3, 3, 1\)"):
    diffusion.guide(NULL[:1], FULL, 2.0)
