"""Solvers of flow matching against diffusers' schedulers, step by step."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

from dmpo_jax import diffusion
from dmpo_jax.diffusion import flow_config
from dmpo_jax.errors import InputError
from tests.diffusion.trajectories import SHAPE, network, ours

EULER, HEUN, DPM = (flow_config.CLASSES[name] for name in ("euler", "heun", "dpm_solver_pp_2m"))
TOKENS = 1024
DYNAMIC = {"use_dynamic_shifting": True}


def scheduler_of(class_name, config, num_steps, tokens=TOKENS):
  scheduler = getattr(diffusers, class_name)(**config)
  if config.get("use_dynamic_shifting"):
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    defaults = (256, 4096, 0.5, 1.15)
    values = [config.get(n, d) for n, d in zip(names, defaults, strict=True)]
    scheduler.set_timesteps(num_steps, mu=calculate_shift(tokens, *values))
  else:
    scheduler.set_timesteps(num_steps)
  return scheduler


def theirs(scheduler, start, noises, monkeypatch):
  x, seen, found = torch.from_numpy(start), [], []
  for t, noise in zip(scheduler.timesteps, noises, strict=True):
    seen.append(x.numpy())
    with monkeypatch.context() as patch:
      patch.setattr(
        "diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor",
        lambda *_, noise=noise, **__: torch.from_numpy(noise),
      )
      velocity = network(x, t / scheduler.config.num_train_timesteps, torch)
      x = scheduler.step(velocity, t, x, return_dict=False)[0]
    found.append(x.numpy())
  return np.stack(seen), np.stack(found)


def check(class_name, config, num_steps, monkeypatch, rtol=1e-5):
  """Asserts that times, the network's inputs and the images agree after every single step."""
  scheduler = scheduler_of(class_name, config, num_steps)
  solver = flow_config.make_solver({"_class_name": class_name, **config}, num_steps, tokens=TOKENS)
  times = scheduler.timesteps.double().numpy() / scheduler.config.num_train_timesteps
  np.testing.assert_allclose(solver.steps.timestep, times, rtol=1e-6)
  rng = np.random.default_rng(0)
  start = rng.standard_normal(SHAPE).astype(np.float32)
  noises = rng.standard_normal((len(times), *SHAPE)).astype(np.float32)
  for a, b in zip(
    ours(solver, start, noises), theirs(scheduler, start, noises, monkeypatch), strict=True
  ):
    scale = np.abs(b).max(axis=(1, 2, 3, 4), keepdims=True)
    np.testing.assert_allclose(a / scale, b / scale, atol=rtol)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 28])
@pytest.mark.parametrize(
  "config",
  [
    {},
    {"shift": 3.0},
    {"shift": 3.0, "num_train_timesteps": 500},
    DYNAMIC,
    {**DYNAMIC, "base_shift": 0.3, "max_shift": 2.0, "base_image_seq_len": 64, "shift": 3.0},
    {**DYNAMIC, "time_shift_type": "linear"},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"shift": 3.0, "use_exponential_sigmas": True},
    {"shift": 3.0, "use_beta_sigmas": True},
    {"shift": 3.0, "stochastic_sampling": True},
  ],
  ids=str,
)
def test_every_step_of_euler_is_that_of_diffusers(config, num_steps, monkeypatch):
  if config.get("use_beta_sigmas") and num_steps == 1:
    return  # there the one level is the highest, as in diffusers
  check(EULER, config, num_steps, monkeypatch)


@pytest.mark.parametrize("num_steps", [2, 3, 28])
def test_every_step_of_euler_with_a_last_level_is_that_of_diffusers(num_steps, monkeypatch):
  check(EULER, {**DYNAMIC, "shift_terminal": 0.1}, num_steps, monkeypatch)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 14])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_evaluation_of_heun_is_that_of_diffusers(shift, num_steps, monkeypatch):
  # diffusers divides a difference of nearly equal numbers by the last level, 0.001.
  rtol = 5e-5 if (num_steps, shift) == (2, 1.0) else 1e-5
  check(HEUN, {"shift": shift}, num_steps, monkeypatch, rtol)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 14, 28])
@pytest.mark.parametrize("config", [{"flow_shift": 1.0}, {"flow_shift": 3.0}, DYNAMIC], ids=str)
def test_every_step_of_dpm_solver_is_that_of_diffusers(config, num_steps, monkeypatch):
  flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
  check(DPM, {**flow, **config}, num_steps, monkeypatch)


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096])
def test_the_shift_depends_on_the_number_of_tokens_as_in_diffusers(tokens):
  scheduler = scheduler_of(EULER, DYNAMIC, 5, tokens)
  solver = flow_config.make_solver({"_class_name": EULER, **DYNAMIC}, 5, tokens=tokens)
  np.testing.assert_allclose(solver.steps.timestep, scheduler.sigmas[:-1], rtol=1e-6)


@pytest.mark.parametrize("name", flow_config.CLASSES)
def test_with_the_true_velocity_every_solver_ends_at_the_clean_image(name):
  solver = flow_config.make_solver({"shift": 3.0}, 6, name=name)
  rng = np.random.default_rng(0)
  clean, noise = rng.standard_normal((2, *SHAPE)).astype(np.float32)
  level = 1.0 if name == "heun" else -solver.steps.clean_f[0]
  x, before = np.float32((1 - level) * clean + level * noise), clean[None]
  for row in zip(*solver.steps, strict=True):
    x, before = diffusion.solver.step(type(solver.steps)(*row), noise - clean, x, before)
  np.testing.assert_allclose(x, clean, atol=1e-5)


@pytest.mark.parametrize("name", flow_config.CLASSES)
def test_a_file_names_its_solver_by_its_class(name, tmp_path):
  flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
  scheduler = getattr(diffusers, flow_config.CLASSES[name])(
    **(flow if name == "dpm_solver_pp_2m" else {"shift": 2.0})
  )
  scheduler.save_pretrained(tmp_path)
  config = scheduler.load_config(tmp_path)
  assert flow_config.solver_name(config) == name
  by_file = flow_config.make_solver(config, 5)
  by_name = flow_config.make_solver({"shift": 2.0}, 5, name=name)
  for a, b in zip(by_file.steps, by_name.steps, strict=True):
    np.testing.assert_array_equal(a, b)


def test_karras_levels_can_be_asked_for_and_declined():
  asked = flow_config.make_solver({"shift": 3.0}, 5, karras=True)
  by_file = flow_config.make_solver({"shift": 3.0, "use_karras_sigmas": True}, 5)
  declined = flow_config.make_solver({"shift": 3.0, "use_karras_sigmas": True}, 5, karras=False)
  np.testing.assert_array_equal(asked.steps.timestep, by_file.steps.timestep)
  plain = flow_config.make_solver({"shift": 3.0}, 5)
  np.testing.assert_array_equal(declined.steps.timestep, plain.steps.timestep)
  assert not np.allclose(asked.steps.timestep, plain.steps.timestep)


def test_fields_without_effect_are_no_obstacle():
  config = {"shift": 3.0, "base_shift": "x", "max_image_seq_len": 256, "a_new_field": False}
  plain, idle = (flow_config.make_solver(c, 4) for c in ({"shift": 3.0}, config))
  np.testing.assert_array_equal(plain.steps.timestep, idle.steps.timestep)


def test_fields_that_are_null_have_the_default():
  config = {"shift": 3.0, "shift_terminal": None, "base_shift": None, "invert_sigmas": None}
  assert flow_config.read(config) == flow_config.FlowSchedule(shift=3.0)


@pytest.mark.parametrize(
  ("fields", "options", "message"),
  [
    ({"_class_name": "DDIMScheduler"}, {}, "DDIMScheduler, of a network that predicts noise"),
    ({"_class_name": DPM}, {}, "needs FlowMatchEulerDiscreteScheduler"),
    ({"_class_name": "FlowMatchLCMScheduler"}, {}, "scheduler of flow matching 'FlowMatchLCM"),
    ({"prediction_type": "epsilon"}, {}, "prediction_type is 'epsilon'"),
    ({"shfit": 3.0}, {}, "'shfit'; did you mean 'shift'"),
    ({"shift": 0.0}, {}, "shift is 0.0; expected a number > 0"),
    ({"shift": float("inf")}, {}, "shift is inf"),
    ({"shift": "3"}, {}, "shift is '3'"),
    ({"shift": 10**400}, {}, "shift is 1000"),
    ({"_class_name": ["FlowMatchEulerDiscreteScheduler"]}, {}, "expected the name of a class"),
    ({"num_train_timesteps": 0}, {}, "num_train_timesteps is 0"),
    ({"use_dynamic_shifting": "yes"}, {}, "expected true or false"),
    ({"time_shift_type": "log"}, {}, "time_shift_type is 'log'"),
    ({"shift_terminal": 1.0}, {}, "shift_terminal is 1.0"),
    ({"invert_sigmas": True}, {}, "invert_sigmas is True, which solver 'euler' of flow"),
    ({"use_karras_sigmas": True, "use_beta_sigmas": True}, {}, "expected one at most"),
    ({**DYNAMIC, "max_image_seq_len": 256}, {}, "another number than base_image_seq_len"),
    (DYNAMIC, {}, "give the size"),
    ({**DYNAMIC, "time_shift_type": "linear", "base_shift": -3.0}, {"tokens": 16}, "the shift -3"),
    ({}, {"name": "ddim"}, "unknown solver of flow matching 'ddim'"),
    ({}, {"name": "euler_ancestral"}, "did you mean 'euler'"),
    (DYNAMIC, {"name": "heun", "tokens": 16}, "use_dynamic_shifting is True, which solver 'heun'"),
    ({}, {"name": "heun", "karras": True}, "use_karras_sigmas is True, which solver 'heun'"),
    ({"stochastic_sampling": True}, {"name": "dpm_solver_pp_2m"}, "stochastic_sampling is True"),
    ({"shift_terminal": 0.1}, {"num_steps": 1}, "at least 2 steps"),
    ({}, {"num_steps": 0}, "num_steps is 0; expected 1 to 1000"),
    ({}, {"num_steps": 1001}, "num_steps is 1001; expected 1 to 1000"),
  ],
)
def test_what_is_not_offered_is_refused_by_name(fields, options, message):
  with pytest.raises(InputError, match=message):
    flow_config.make_solver(fields, **{"num_steps": 5, **options})


def test_a_flow_scheduler_is_refused_where_a_network_predicts_noise():
  with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler, of flow matching"):
    diffusion.from_config({"_class_name": EULER, "shift": 3.0})
