"""Classifier-free guidance."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

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


# --- guidance rescale ---


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(strength):
  guided = diffusion.guide(NULL, FULL, 7.5)
  expected = rescale_noise_cfg(
    torch.from_numpy(np.array(guided)), torch.from_numpy(np.array(FULL)), strength
  )
  np.testing.assert_allclose(diffusion.rescale(guided, FULL, strength), expected, atol=1e-5)


def test_rescaling_at_full_strength_gives_each_image_the_deviation_of_its_conditional_prediction():
  rescaled = np.asarray(diffusion.rescale(diffusion.guide(NULL, FULL, 7.5), FULL, 1.0))
  np.testing.assert_allclose(rescaled.std((1, 2, 3)), np.std(FULL, (1, 2, 3)), rtol=1e-5)


def test_rescaling_to_another_shape_is_refused():
  with pytest.raises(InputError, match=r"guided has shape \(1, 3, 3, 1\)"):
    diffusion.rescale(NULL[:1], FULL, 0.5)
