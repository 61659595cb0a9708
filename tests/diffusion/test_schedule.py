"""Noise schedules against diffusers' schedulers and their closed forms."""

import inspect

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dmpo_jax import diffusion
from dmpo_jax.errors import InputError

BETAS = {
  "linear": {"beta_schedule": "linear"},
  "scaled_linear": {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
  },
  "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
  "short": {"beta_schedule": "linear", "num_train_timesteps": 50, "beta_end": 0.3},
  "trained": {
    "trained_betas": [0.001, 0.01, 0.1, 0.3, 0.2, 0.5],
    "num_train_timesteps": 6,
  },
}
CASES = [(name, zero) for name in BETAS for zero in (False, True)]
# diffusers holds abar in float32, which blurs 1 - abar at the cleanest levels.
CLOSE = 5e-5
PREDICTIONS = ("epsilon", "sample", "v_prediction")
CLASSES = [
  "DDIMScheduler",
  "DDPMScheduler",
  "PNDMScheduler",
  "EulerDiscreteScheduler",
  "EulerAncestralDiscreteScheduler",
  "DPMSolverMultistepScheduler",
  "DPMSolverSinglestepScheduler",
  "DEISMultistepScheduler",
  "UniPCMultistepScheduler",
  "LMSDiscreteScheduler",
  "HeunDiscreteScheduler",
]


def config(name, zero, **more):
  return {
    **BETAS[name],
    "rescale_betas_zero_snr": zero,
    "prediction_type": "v_prediction",
    **more,
  }


def batch(schedule, seed=0):
  """x_0, noise and every level from the first to the last."""
  rng = np.random.default_rng(seed)
  t = np.linspace(0, schedule.num_timesteps - 1, 6).round().astype(np.int32)
  x0, noise = rng.standard_normal((2, 6, 3, 5, 2)).astype(np.float32)
  return jnp.asarray(x0), jnp.asarray(noise), jnp.asarray(t)


def torches(*arrays):
  return [torch.from_numpy(np.array(a)) for a in arrays]


@pytest.mark.parametrize(("name", "zero"), CASES)
def test_alphas_cumprod_are_those_of_diffusers(name, zero):
  ours = diffusion.from_config(config(name, zero)).alphas_cumprod
  theirs = diffusers.DDPMScheduler(**config(name, zero)).alphas_cumprod.numpy()
  # diffusers multiplies up to a thousand factors in float32.
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize(("name", "zero"), CASES)
def test_add_noise_is_that_of_diffusers(name, zero):
  schedule = diffusion.from_config(config(name, zero))
  arrays = batch(schedule)
  x0, noise, t = torches(*arrays)
  theirs = diffusers.DDPMScheduler(**config(name, zero)).add_noise(x0, noise, t.long())
  np.testing.assert_allclose(schedule.add_noise(*arrays), theirs, atol=CLOSE)


@pytest.mark.parametrize(("name", "zero"), CASES)
def test_velocity_is_that_of_diffusers(name, zero):
  schedule = diffusion.from_config(config(name, zero))
  arrays = batch(schedule)
  x0, noise, t = torches(*arrays)
  theirs = diffusers.DDPMScheduler(**config(name, zero)).get_velocity(x0, noise, t.long())
  np.testing.assert_allclose(schedule.velocity(*arrays), theirs, atol=CLOSE)


def test_alphas_cumprod_of_linear_betas_are_the_running_product_in_float64():
  schedule = diffusion.from_config({})
  exact = np.exp(np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000))))
  np.testing.assert_allclose(schedule.alphas_cumprod, exact, rtol=1e-12)


@pytest.mark.parametrize(("name", "zero"), CASES)
def test_add_noise_agrees_with_the_formula_in_float64(name, zero):
  schedule = diffusion.from_config(config(name, zero))
  arrays = batch(schedule)
  x0, noise, t = (np.asarray(a, np.float64) for a in arrays)
  abar = schedule.alphas_cumprod[t.astype(int), None, None, None]
  exact = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
  np.testing.assert_allclose(schedule.add_noise(*arrays), exact, atol=1e-6)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_level():
  plain = diffusion.from_config(config("scaled_linear", False))
  zero = diffusion.from_config(config("scaled_linear", True))
  assert zero.alphas_cumprod[-1] == 0
  assert zero.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0], rel=1e-12)


def test_add_noise_at_zero_terminal_snr_returns_the_noise_itself():
  schedule = diffusion.from_config(config("linear", True))
  x0, noise, _ = batch(schedule)
  np.testing.assert_array_equal(schedule.add_noise(x0, noise, jnp.array(999)), noise)


@pytest.mark.parametrize(("name", "zero"), CASES)
def test_snr_is_the_ratio_of_the_powers(name, zero):
  schedule = diffusion.from_config(config(name, zero))
  t = np.arange(schedule.num_timesteps)
  abar = schedule.alphas_cumprod
  np.testing.assert_allclose(schedule.snr(jnp.asarray(t)), abar / (1 - abar), rtol=1e-6)


def test_snr_of_constant_betas_has_its_closed_form():
  schedule = diffusion.from_config({"beta_start": 0.01, "beta_end": 0.01})
  kept = 0.99 ** np.arange(1, 1001)
  np.testing.assert_allclose(schedule.snr(jnp.arange(1000)), kept / (1 - kept), rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "short", "trained"])
def test_the_clean_sample_comes_back_from_the_target(name, prediction):
  schedule = diffusion.from_config({**BETAS[name], "prediction_type": prediction})
  x0, noise, t = batch(schedule)
  x_t = schedule.add_noise(x0, noise, t)
  target = schedule.target(x0, noise, t)
  np.testing.assert_allclose(schedule.to_x0(target, x_t, t), x0, atol=2e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "short", "trained"])
def test_the_noise_comes_back_from_the_target(name, prediction):
  schedule = diffusion.from_config({**BETAS[name], "prediction_type": prediction})
  x0, noise, t = batch(schedule)
  x_t = schedule.add_noise(x0, noise, t)
  target = schedule.target(x0, noise, t)
  np.testing.assert_allclose(schedule.to_epsilon(target, x_t, t), noise, atol=2e-4)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_sample_and_noise_come_back_at_zero_terminal_snr(prediction):
  schedule = diffusion.from_config(config("linear", True, prediction_type=prediction))
  x0, noise, _ = batch(schedule)
  t = jnp.full(6, 999)
  x_t = schedule.add_noise(x0, noise, t)
  target = schedule.target(x0, noise, t)
  np.testing.assert_allclose(schedule.to_x0(target, x_t, t), x0, atol=1e-6)
  np.testing.assert_allclose(schedule.to_epsilon(target, x_t, t), noise, atol=1e-6)


def test_the_target_of_epsilon_prediction_is_the_noise():
  schedule = diffusion.from_config({"prediction_type": "epsilon"})
  x0, noise, t = batch(schedule)
  np.testing.assert_array_equal(schedule.target(x0, noise, t), noise)


def test_the_target_of_sample_prediction_is_the_clean_sample():
  schedule = diffusion.from_config({"prediction_type": "sample"})
  x0, noise, t = batch(schedule)
  np.testing.assert_array_equal(schedule.target(x0, noise, t), x0)


def test_the_target_of_v_prediction_is_the_velocity():
  schedule = diffusion.from_config({"prediction_type": "v_prediction"})
  x0, noise, t = batch(schedule)
  theirs = diffusers.DDPMScheduler().get_velocity(*torches(x0, noise, np.asarray(t, np.int64)))
  np.testing.assert_allclose(schedule.target(x0, noise, t), theirs, atol=CLOSE)


def test_a_scalar_timestep_serves_the_whole_batch():
  schedule = diffusion.from_config({})
  x0, noise, _ = batch(schedule)
  np.testing.assert_array_equal(
    schedule.add_noise(x0, noise, jnp.array(300)),
    schedule.add_noise(x0, noise, jnp.full(6, 300)),
  )


def test_bfloat16_samples_are_noised_in_float32():
  schedule = diffusion.from_config({})
  x0, noise, t = batch(schedule)
  x0 = x0.astype(jnp.bfloat16)
  x_t = schedule.add_noise(x0, noise.astype(jnp.bfloat16), t)
  assert x_t.dtype == jnp.float32


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_outside_of_the_schedule_gives_nan_and_no_wrong_level(t):
  schedule = diffusion.from_config({})
  x0, noise, _ = batch(schedule)
  assert np.all(np.isnan(schedule.add_noise(x0, noise, jnp.array(t))))


def test_the_schedule_can_be_closed_over_by_a_jitted_function():
  schedule = diffusion.from_config({})
  arrays = batch(schedule)
  jitted = jax.jit(lambda *a: schedule.add_noise(*a))(*arrays)
  np.testing.assert_allclose(jitted, schedule.add_noise(*arrays), atol=1e-6)


def test_the_tables_of_a_schedule_cannot_be_written():
  with pytest.raises(ValueError, match="read-only"):
    diffusion.from_config({}).alphas_cumprod[0] = 0.5


# --- reading diffusers' files ---


@pytest.mark.parametrize("name", CLASSES)
def test_the_config_that_a_diffusers_scheduler_saves_is_read(name, tmp_path):
  scheduler = getattr(diffusers, name)(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
  )
  scheduler.save_pretrained(tmp_path)
  saved = scheduler.load_config(tmp_path)
  schedule = diffusion.from_config(saved)
  theirs = scheduler.alphas_cumprod.numpy()
  np.testing.assert_allclose(schedule.alphas_cumprod, theirs, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("name", CLASSES)
def test_a_field_left_out_has_the_default_of_the_class_that_is_named(name):
  parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
  defaults = {key: p.default for key, p in parameters.items() if key != "self"}
  kept = {k: v for k, v in defaults.items() if isinstance(v, str | bool | int | float)}
  assert vars_of({"_class_name": name}) == vars_of({"_class_name": name, **kept})


def vars_of(fields):
  schedule = diffusion.from_config(fields)
  return {**vars(schedule), "alphas_cumprod": schedule.alphas_cumprod.tolist()}


def test_the_scheduler_file_of_stable_diffusion_1_5_is_read():
  schedule = diffusion.from_config(
    {
      "_class_name": "PNDMScheduler",
      "_diffusers_version": "0.6.0",
      "beta_end": 0.012,
      "beta_schedule": "scaled_linear",
      "beta_start": 0.00085,
      "num_train_timesteps": 1000,
      "set_alpha_to_one": False,
      "skip_prk_steps": True,
      "steps_offset": 1,
      "trained_betas": None,
      "clip_sample": False,
    }
  )
  assert schedule.prediction_type == "epsilon"
  assert schedule.steps_offset == 1
  assert not schedule.clip_sample
  # 0.99915 = 1 - 0.00085; 0.0047 is the well-known residual signal of Stable Diffusion.
  assert schedule.final_alpha_cumprod == pytest.approx(0.99915)
  assert schedule.alphas_cumprod[-1] == pytest.approx(0.00466, abs=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"beta_shedule": "linear"}, "unknown scheduler field 'beta_shedule'.*'beta_schedule'"),
    ({"beta_schedule": "cosine"}, "unknown beta_schedule 'cosine'"),
    ({"beta_schedule": "sigmoid"}, "unknown beta_schedule 'sigmoid'"),
    ({"prediction_type": "v"}, "unknown prediction_type 'v'"),
    ({"timestep_spacing": "trailling"}, "timestep_spacing 'trailling'.*'trailing'"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch.* of flow matching"),
    ({"thresholding": True}, "thresholding is True"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
    ({"variance_type": "learned_range"}, "variance_type is 'learned_range'"),
    ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
    ({"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5"),
    ({"steps_offset": -1}, "steps_offset is -1"),
    ({"beta_start": "0.1"}, "beta_start is '0.1'"),
    ({"beta_start": 0.0}, "beta_start is 0.0"),
    ({"beta_end": 1.5}, "beta at timestep .* expected every beta in"),
    ({"beta_end": float("nan")}, "beta_end is nan"),
    ({"clip_sample": "yes"}, "clip_sample is 'yes'"),
    ({"clip_sample_range": -1.0}, "clip_sample_range is -1.0"),
    ({"num_train_timesteps": 2**31}, "num_train_timesteps is 2147483648; .* to 100000"),
    ({"beta_start": 10**400}, "beta_start is 1000"),
    ({"trained_betas": "x"}, "trained_betas is 'x'; expected a list of numbers"),
    ({"trained_betas": [[0.1], 0.2]}, "trained_betas is .* a list of numbers"),
    ({"trained_betas": {}}, "trained_betas is {}; expected a list of numbers"),
    ({"prediction_type": ["epsilon"]}, "unknown prediction_type"),
    ({"beta_schedule": ["linear"]}, "unknown beta_schedule"),
    ({"predict_epsilon": False}, "predict_epsilon is False"),
    ({"_class_name": ["DDIMScheduler"]}, "_class_name is .* the name of a class"),
    ({"new_field": 0.5}, "unknown scheduler field 'new_field'"),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas has shape .*1000"),
    ({"trained_betas": [0.1, 0.0], "num_train_timesteps": 2}, "beta at timestep 1 is 0"),
    (
      {"num_train_timesteps": 1, "rescale_betas_zero_snr": True},
      "rescale_betas_zero_snr needs more",
    ),
  ],
)
def test_a_scheduler_file_that_cannot_be_used_is_refused_by_field_and_value(fields, message):
  with pytest.raises(InputError, match=message):
    diffusion.from_config(fields)


def test_unknown_fields_that_are_off_are_passed_over_and_listed(caplog):
  plain = diffusion.from_config({})
  odd = diffusion.from_config({"new_a": None, "new_b": False, "_note": "x", "clip_sample": None})
  np.testing.assert_array_equal(odd.alphas_cumprod, plain.alphas_cumprod)
  assert not odd.clip_sample
  assert (
    "scheduler config: unknown fields that are null or false are passed over: new_a, new_b"
    in (caplog.text)
  )


@pytest.mark.parametrize(
  "name",
  [
    "LCMScheduler",
    "TCDScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
  ],
)
def test_the_noise_process_of_a_class_without_its_solver_is_that_of_diffusers(name):
  import json

  import diffusers

  theirs = getattr(diffusers, name)()
  written = json.loads(theirs.to_json_string())
  for config in (written, {"_class_name": name}):
    actual = diffusion.from_config(config).alphas_cumprod
    np.testing.assert_allclose(actual, theirs.alphas_cumprod, rtol=1e-4)


def test_epsilon_prediction_with_zero_terminal_snr_is_refused():
  with pytest.raises(InputError, match=r"zero terminal SNR.*'v_prediction'"):
    diffusion.from_config({"rescale_betas_zero_snr": True})


def test_epsilon_prediction_with_a_last_trained_beta_of_one_is_refused():
  with pytest.raises(InputError, match="zero terminal SNR"):
    diffusion.from_config({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2})


def test_alphas_that_do_not_fall_are_refused():
  with pytest.raises(InputError, match="fall strictly"):
    diffusion.DiscreteProcess(alphas_cumprod=np.array([0.5, 0.5]))


def test_noise_of_another_shape_is_refused():
  schedule = diffusion.from_config({})
  x0, noise, t = batch(schedule)
  with pytest.raises(InputError, match=r"x0 has shape \(6, 3, 5, 2\) and noise \(5, 3, 5, 2\)"):
    schedule.add_noise(x0, noise[:5], t)


def test_timesteps_of_another_batch_are_refused():
  schedule = diffusion.from_config({})
  x0, noise, t = batch(schedule)
  with pytest.raises(InputError, match=r"timesteps have shape \(5,\)"):
    schedule.add_noise(x0, noise, t[:5])


def test_timesteps_that_are_not_integers_are_refused():
  schedule = diffusion.from_config({})
  x0, noise, t = batch(schedule)
  with pytest.raises(InputError, match="dtype float32"):
    schedule.add_noise(x0, noise, t.astype(jnp.float32))


def test_bins_cover_all_timesteps_with_lengths_equal_to_within_one():
  edges = diffusion.from_config({"num_train_timesteps": 1000}).bins(3)
  assert edges.tolist() == [0, 333, 666, 1000]
  assert edges.dtype == np.int32


def test_a_timestep_between_two_edges_is_uniform_among_those_from_the_first_to_before_the_second():
  schedule = diffusion.from_config({})
  keys = jax.random.split(jax.random.key(0), 4000)
  t = jax.jit(jax.vmap(lambda key: schedule.sample_between(key, 250, 254)))(keys)
  assert t.dtype == jnp.int32
  values, counts = np.unique(t, return_counts=True)
  assert values.tolist() == [250, 251, 252, 253]
  np.testing.assert_allclose(counts, 1000, atol=120)
