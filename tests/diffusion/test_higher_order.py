"""PNDM and Heun's method against diffusers' schedulers, evaluation by evaluation."""

import diffusers
import numpy as np
import pytest

from dmpo_jax import diffusion
from dmpo_jax.errors import InputError
from tests.diffusion.trajectories import check

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# The scheduler of Stable Diffusion 1.5 as published.
PUBLISHED = {
  **STABLE,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
}
SPACINGS = [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 12, 50])
def test_pndm_as_stable_diffusion_is_published_takes_the_steps_of_diffusers(num_steps):
  check("pndm", PUBLISHED, num_steps)


@pytest.mark.parametrize("num_steps", [4, 5, 13])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_every_evaluation_of_pndm_is_that_of_diffusers(
  spacing, offset, prediction, skip, num_steps
):
  config = {
    **STABLE,
    "prediction_type": prediction,
    "timestep_spacing": spacing,
    "steps_offset": offset,
    "skip_prk_steps": skip,
    "set_alpha_to_one": skip,
  }
  check("pndm", config, num_steps)


def test_the_default_of_pndm_is_its_runge_kutta_start():
  assert not diffusers.PNDMScheduler().config.skip_prk_steps
  assert len(diffusion.make_solver(STABLE, 10, name="pndm").steps.timestep) == 19
  skipped = diffusion.make_solver({**STABLE, "skip_prk_steps": True}, 10, name="pndm")
  assert len(skipped.steps.timestep) == 11


@pytest.mark.parametrize("num_steps", [1, 2, 3, 12])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_every_evaluation_of_heun_is_that_of_diffusers(
  spacing, offset, prediction, karras, num_steps
):
  config = {
    **STABLE,
    "prediction_type": prediction,
    "timestep_spacing": spacing,
    "steps_offset": offset,
    "use_karras_sigmas": karras,
  }
  # Two steps lead from level 14 to 0.03, and the correction finds the first image from the second.
  check("heun", config, num_steps, rtol=1e-4 if num_steps == 2 else 1e-5)


def test_heun_clips_clean_images_as_diffusers_does():
  check("heun", {**STABLE, "clip_sample": True, "clip_sample_range": 0.6}, 7)


@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_the_class_of_a_file_chooses_the_solver(name):
  config = {**STABLE, "_class_name": diffusion.CLASSES[name]}
  assert diffusion.solver_name(config) == name
  chosen, named = (diffusion.make_solver(config, 6, name=n) for n in (None, name))
  np.testing.assert_array_equal(chosen.steps.on_before, named.steps.on_before)


@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_a_prediction_of_clean_samples_is_refused(name):
  with pytest.raises(InputError, match=f"solver '{name}' is for networks that predict noise or v"):
    diffusion.make_solver({**STABLE, "prediction_type": "sample"}, 5, name=name)


def test_too_few_steps_for_the_runge_kutta_start_are_refused():
  with pytest.raises(InputError, match=r"num_steps is 3; .* at least 4.*skip_prk_steps to true"):
    diffusion.make_solver(STABLE, 3, name="pndm")


def test_pndm_refuses_to_begin_at_zero_terminal_snr():
  config = {**PUBLISHED, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
  config["prediction_type"] = "v_prediction"
  with pytest.raises(InputError, match="where abar is 0"):
    diffusion.make_solver(config, 5, name="pndm")


def test_karras_levels_are_refused_by_pndm():
  with pytest.raises(InputError, match="only 'euler', 'dpm_solver_pp_2m', 'heun' do"):
    diffusion.make_solver(PUBLISHED, 5, name="pndm", karras=True)
