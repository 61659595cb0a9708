"""Euler, Euler ancestral and DPM-Solver++ against diffusers' schedulers, step by step."""

import diffusers
import numpy as np
import pytest

from dmpo_jax import diffusion
from dmpo_jax.diffusion import sigmas
from dmpo_jax.errors import InputError
from tests.diffusion.trajectories import check, scheduler_of

NAMES = ("euler", "euler_ancestral", "dpm_solver_pp_2m")
SPACINGS = [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def offered(name, prediction):
  """diffusers' ancestral class does not know the prediction type "sample"."""
  return not (name == "euler_ancestral" and prediction == "sample")


CASES = [
  (name, prediction)
  for name in NAMES
  for prediction in ("epsilon", "v_prediction", "sample")
  if offered(name, prediction)
]


@pytest.mark.parametrize("num_steps", [1, 2, 12])
@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_every_step_is_that_of_diffusers(name, prediction, spacing, offset, num_steps, monkeypatch):
  config = {
    **STABLE,
    "prediction_type": prediction,
    "timestep_spacing": spacing,
    "steps_offset": offset,
  }
  check(name, config, num_steps, monkeypatch)


@pytest.mark.parametrize("num_steps", [1, 2, 12])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", ["euler", "dpm_solver_pp_2m"])
def test_every_step_with_karras_sigmas_is_that_of_diffusers(name, betas, spacing, num_steps):
  config = {
    **STABLE,
    "beta_schedule": betas,
    "timestep_spacing": spacing,
    "use_karras_sigmas": True,
  }
  # Cosine betas reach a noise level of 20,000, and diffusers holds its levels in float32: there it
  # is 2e-5 off a float64 evaluation of these steps, ours 6e-6.
  check(name, config, num_steps, rtol=1e-5 if betas == "scaled_linear" else 4e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", NAMES)
def test_every_step_from_zero_terminal_snr_is_that_of_diffusers(name, spacing, monkeypatch):
  config = {
    **STABLE,
    "prediction_type": "v_prediction",
    "timestep_spacing": spacing,
    "rescale_betas_zero_snr": True,
  }
  # diffusers' Euler subtracts numbers of the size of the first level, 4096, in float32.
  check(name, config, 9, monkeypatch, rtol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_with_the_noise_levels_that_diffusers_rounds_the_steps_differ_by_that_rounding(
  name, monkeypatch
):
  check(name, STABLE, 20, monkeypatch, exact=False, rtol=1e-4)


@pytest.mark.parametrize("total", [37, 1000])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", NAMES)
def test_timesteps_and_levels_are_those_of_diffusers_for_many_numbers_of_steps(
  name, spacing, karras, total
):
  if karras and name == "euler_ancestral":
    return
  config = {"timestep_spacing": spacing, "num_train_timesteps": total}
  config |= {"use_karras_sigmas": True} if karras else {}
  for num_steps in (1, 2, 3, 4, 5, 9, 10, 13, 17, 20, 25, 30):
    scheduler = scheduler_of(name, config, num_steps)
    levels = scheduler.sigmas.numpy()[:num_steps]
    if np.any(np.diff(levels) >= 0):  # what diffusers makes of too many steps is refused here
      with pytest.raises(InputError, match="take fewer"):
        diffusion.make_solver(config, num_steps, name=name)
      continue
    steps = diffusion.make_solver(config, num_steps, name=name).steps
    np.testing.assert_allclose(steps.timestep, scheduler.timesteps[:num_steps], atol=2e-4)
    if name != "dpm_solver_pp_2m":
      np.testing.assert_allclose(steps.input_scale, 1 / np.hypot(1, levels), rtol=1e-6)


def test_karras_levels_are_spaced_by_their_seventh_roots():
  levels = sigmas.karras(14.6, 0.03, 11)
  assert levels[0] == pytest.approx(14.6)
  assert levels[-1] == pytest.approx(0.03)
  roots = levels ** (1 / 7)
  np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 10, rtol=1e-9)


def test_timesteps_of_the_schedules_own_levels_are_whole():
  table = sigmas.table(diffusion.from_config(STABLE))
  np.testing.assert_allclose(sigmas.to_timesteps(table, table), np.arange(1000), atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_with_the_true_clean_image_every_solver_returns_it(name):
  solver = diffusion.make_solver({**STABLE, "prediction_type": "sample"}, 5, name=name)
  rng = np.random.default_rng(0)
  clean, x, noise = rng.standard_normal((3, 2, 3, 3, 1)).astype(np.float32)
  before = diffusion.solver.no_images_before(solver, x)
  for i in range(5):
    constants = type(solver.steps)(*(column[i] for column in solver.steps))
    fresh = noise if solver.stochastic else None
    x, before = diffusion.solver.step(constants, clean, x, before, fresh)
  np.testing.assert_allclose(x, clean, atol=1e-5)


def test_the_ancestral_solver_keeps_the_noise_level():
  config = {**STABLE, "prediction_type": "sample"}
  steps = diffusion.make_solver(config, 12, name="euler_ancestral").steps
  levels = np.append(np.sqrt(1 / steps.input_scale**2 - 1), 0)
  reached = np.hypot(steps.on_x * levels[:-1], steps.on_noise)
  np.testing.assert_allclose(reached, levels[1:], rtol=1e-6)


# --- which solver a file asks for ---


def saved(scheduler, folder):
  scheduler.save_pretrained(folder)
  return scheduler.load_config(folder)


@pytest.mark.parametrize("name", diffusion.CLASSES)
def test_a_file_names_its_solver_by_its_class(name, tmp_path):
  config = saved(getattr(diffusers, diffusion.CLASSES[name])(**STABLE), tmp_path)
  found, expected = (diffusion.make_solver(config, 5, name=n) for n in (None, name))
  for a, b in zip(found.steps, expected.steps, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", diffusion.CLASSES)
def test_another_solver_reads_a_published_file_as_diffusers_from_config_does(name):
  config = {
    "_class_name": "PNDMScheduler",
    **STABLE,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
  }
  source = diffusers.PNDMScheduler.from_config(config)
  scheduler = getattr(diffusers, diffusion.CLASSES[name]).from_config(source.config)
  scheduler.set_timesteps(8)
  solver = diffusion.make_solver(config, 8, name=name)
  np.testing.assert_allclose(solver.steps.timestep, scheduler.timesteps, atol=1e-3)
  assert solver.initial_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-4)


@pytest.mark.parametrize("name", ["DDPMScheduler", "UniPCMultistepScheduler"])
def test_a_class_without_counterpart_asks_for_a_solver_by_name(name):
  with pytest.raises(InputError, match=f"{name}, which is not offered.*dpm_solver_pp_2m"):
    diffusion.make_solver({"_class_name": name}, 5)


def test_karras_levels_can_be_asked_for_and_declined():
  config = {**STABLE, "_class_name": "EulerDiscreteScheduler"}
  asked = diffusion.make_solver(config, 5, karras=True)
  by_file = diffusion.make_solver({**config, "use_karras_sigmas": True}, 5)
  declined = diffusion.make_solver({**config, "use_karras_sigmas": True}, 5, karras=False)
  plain = diffusion.make_solver(config, 5)
  np.testing.assert_array_equal(asked.steps.timestep, by_file.steps.timestep)
  np.testing.assert_array_equal(declined.steps.timestep, plain.steps.timestep)
  assert not np.allclose(asked.steps.timestep, plain.steps.timestep)


@pytest.mark.parametrize(
  ("name", "fields", "options", "message"),
  [
    ("eular", {}, {}, "unknown solver 'eular'; did you mean 'euler'"),
    ("ddim", {}, {"karras": True}, "Karras sigmas .* solver 'ddim' does not have"),
    ("euler_ancestral", {}, {"karras": True}, "solver 'euler_ancestral' does not have"),
    ("euler", {}, {"eta": 0.5}, "eta is 0.5, which solver 'euler' does not have"),
    ("ddim", {}, {"eta": 1.5}, "eta is 1.5; expected 0"),
    ("euler", {"interpolation_type": "log_linear"}, {}, "interpolation_type is 'log_linear'"),
    ("euler", {"sigma_max": 5.0}, {}, "sigma_max is 5.0, which solver 'euler' does not offer"),
    ("euler", {"timestep_type": "continuous"}, {}, "timestep_type is 'continuous'"),
    ("dpm_solver_pp_2m", {"solver_order": 3}, {}, "solver_order is 3"),
    ("dpm_solver_pp_2m", {"algorithm_type": "sde-dpmsolver++"}, {}, "'sde-dpmsolver"),
    ("dpm_solver_pp_2m", {"use_lu_lambdas": True}, {}, "use_lu_lambdas is True"),
    ("dpm_solver_pp_2m", {"final_sigmas_type": "sigma_min"}, {}, "final_sigmas_type is 'sigma_m"),
    ("dpm_solver_pp_2m", {"lambda_min_clipped": -5.1}, {}, "lambda_min_clipped is -5.1"),
  ],
)
def test_what_a_solver_does_not_offer_is_refused_by_name(name, fields, options, message):
  with pytest.raises(InputError, match=message):
    diffusion.make_solver({**STABLE, **fields}, 5, name=name, **options)


@pytest.mark.parametrize("name", diffusion.CLASSES)
@pytest.mark.parametrize("num_steps", [0, 1001])
def test_a_number_of_steps_outside_of_the_schedule_is_refused(name, num_steps):
  with pytest.raises(InputError, match=f"num_steps is {num_steps}; expected 1 to 1000"):
    diffusion.make_solver(STABLE, num_steps, name=name)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "ddim"])
def test_an_offset_past_the_end_of_the_schedule_is_refused(name):
  config = {**STABLE, "timestep_spacing": "leading", "steps_offset": 1}
  with pytest.raises(InputError, match="begins at timestep 1000"):
    diffusion.make_solver(config, 1000, name=name)


def test_a_prediction_of_another_shape_is_refused():
  solver = diffusion.make_solver(STABLE, 1, name="euler")
  x = np.zeros((2, 3, 3, 1), np.float32)
  with pytest.raises(InputError, match=r"the prediction \(2, 3, 3, 2\)"):
    diffusion.solver.step(solver.steps, np.concatenate([x, x], -1), x, x[None])
