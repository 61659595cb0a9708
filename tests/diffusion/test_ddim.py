"""DDIM against diffusers' DDIMScheduler, over whole trajectories."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import diffusion
from dmpo_jax.diffusion import ddim
from dmpo_jax.errors import InputError
from tests.diffusion import trajectories

SHAPE = (2, 3, 4, 2)


def check(config, num_steps=7, eta=0.0):
  trajectories.check("ddim", config, num_steps, eta=eta, rtol=2e-5)


def step(solver, i, *arrays):
  constants = type(solver.steps)(*(column[i] for column in solver.steps))
  return diffusion.solver.step(constants, *arrays, clip=solver.clip)[0]


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_trajectories_agree_for_every_beta_schedule_and_prediction_type(
  betas, prediction, clip, eta
):
  check({"beta_schedule": betas, "prediction_type": prediction, "clip_sample": clip}, eta=eta)


SPACINGS = [("leading", 0), ("leading", 1), ("leading", 5), ("trailing", 0), ("linspace", 0)]


@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_trajectories_agree_for_every_timestep_spacing(prediction, spacing, offset, to_one):
  config = {
    "prediction_type": prediction,
    "timestep_spacing": spacing,
    "steps_offset": offset,
    "set_alpha_to_one": to_one,
    "clip_sample": False,
  }
  for eta in (0.0, 0.5):
    check(config, eta=eta)


@pytest.mark.parametrize("eta", [0.0, 0.9])  # at 1 diffusers takes the root of a negative rounding
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_trajectories_agree_from_zero_terminal_snr(prediction, spacing, eta):
  config = {
    "beta_schedule": "scaled_linear",
    "prediction_type": prediction,
    "timestep_spacing": spacing,
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
  }
  check(config, eta=eta)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_trajectories_agree_for_betas_that_are_given(eta):
  config = {
    "trained_betas": np.linspace(0.01, 0.3, 20).tolist(),
    "num_train_timesteps": 20,
    "clip_sample": False,
  }
  check(config, num_steps=5, eta=eta)


def test_trajectories_agree_for_another_clipping_range():
  check({"clip_sample": True, "clip_sample_range": 0.3})


@pytest.mark.parametrize("total", [10, 37, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers_for_every_number_of_steps(spacing, total):
  config = {"timestep_spacing": spacing, "num_train_timesteps": total}
  scheduler, schedule = diffusers.DDIMScheduler(**config), diffusion.from_config(config)
  for num_steps in range(1, total + 1, 1 if total < 100 else 3):
    scheduler.set_timesteps(num_steps)
    # In "trailing", rounding in diffusers adds a step at timestep -1 for a few numbers.
    theirs = scheduler.timesteps.numpy()[:num_steps]
    np.testing.assert_array_equal(ddim.timesteps(schedule, num_steps), theirs)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_fall_strictly_within_the_schedule(spacing):
  schedule = diffusion.from_config({"timestep_spacing": spacing, "num_train_timesteps": 100})
  for num_steps in range(1, 101):
    steps = ddim.timesteps(schedule, num_steps)
    assert steps.dtype == np.int32
    assert steps.shape == (num_steps,)
    assert steps[0] <= 99
    assert steps[-1] >= 0
    assert np.all(np.diff(steps) < 0)


def test_with_the_noise_levels_that_diffusers_rounds_the_steps_differ_by_that_rounding():
  trajectories.check("ddim", {"clip_sample": False}, 20, exact=False, rtol=1e-4)


def test_ancestral_sampling_from_pure_noise_lands_on_the_clean_sample_with_fresh_noise():
  schedule = diffusion.from_config(
    {
      "prediction_type": "sample",
      "rescale_betas_zero_snr": True,
      "clip_sample": False,
      "timestep_spacing": "trailing",
    }
  )
  rng = np.random.default_rng(0)
  x0, start, noise = jnp.asarray(rng.standard_normal((3, *SHAPE)), jnp.float32)
  for num_steps in (2, 10, 1000):
    solver = ddim.make(schedule, num_steps, eta=1.0)
    x = step(solver, 0, x0, start, jnp.zeros((1, *x0.shape)), noise)
    t_prev = jnp.array(ddim.previous(schedule, num_steps)[0])
    np.testing.assert_allclose(x, schedule.add_noise(x0, noise, t_prev), atol=1e-6)


@pytest.mark.parametrize("zero", [False, True])
def test_a_step_behind_the_last_level_returns_the_clean_sample(zero):
  schedule = diffusion.from_config(
    {
      "rescale_betas_zero_snr": zero,
      "prediction_type": "v_prediction",
      "timestep_spacing": "trailing",
      "clip_sample": False,
    }
  )
  rng = np.random.default_rng(0)
  x0, noise = jnp.asarray(rng.standard_normal((2, *SHAPE)), jnp.float32)
  for num_steps in (1, 2, 1000):
    solver = ddim.make(schedule, num_steps)
    t = jnp.array(solver.steps.timestep[-1])
    x_t = schedule.add_noise(x0, noise, t)
    output = schedule.target(x0, noise, t)
    x = step(solver, -1, output, x_t, jnp.zeros((1, *x0.shape)))
    np.testing.assert_allclose(x, x0, atol=1e-5)


def test_with_the_true_target_a_step_lands_on_the_noised_sample_of_the_level_below():
  schedule = diffusion.from_config({"clip_sample": False})
  rng = np.random.default_rng(0)
  x0, noise = jnp.asarray(rng.standard_normal((2, *SHAPE)), jnp.float32)
  solver = ddim.make(schedule, 10)
  x_t = schedule.add_noise(x0, noise, jnp.array(700))
  assert solver.steps.timestep[2] == 700
  np.testing.assert_allclose(
    step(solver, 2, noise, x_t, jnp.zeros((1, *x0.shape))),
    schedule.add_noise(x0, noise, jnp.array(600)),
    atol=1e-5,
  )


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_a_number_of_steps_outside_of_the_schedule_is_refused(num_steps):
  with pytest.raises(InputError, match=f"num_steps is {num_steps}; expected 1 to 1000"):
    ddim.timesteps(diffusion.from_config({}), num_steps)


def test_an_offset_past_the_end_of_the_schedule_is_refused():
  schedule = diffusion.from_config({"steps_offset": 1})
  with pytest.raises(InputError, match="begins at timestep 1000"):
    ddim.timesteps(schedule, 1000)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_of_zero_to_one_is_refused(eta):
  with pytest.raises(InputError, match=f"eta is {eta}"):
    ddim.make(diffusion.from_config({}), 9, eta=eta)
