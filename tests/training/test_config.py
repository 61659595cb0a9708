"""Configs: what is refused, and with which words."""

import functools

import pytest

from dmpo_jax import data, losses
from dmpo_jax.common.choose import select
from dmpo_jax.configs import digits_dmpo, digits_reference, sd15_dmpo, sdxl_dmpo, sdxl_dmpo_lora
from dmpo_jax.errors import InputError
from dmpo_jax.training.config import RENAMED, check
from dmpo_jax.training.config_file import load_config

DMPO = digits_dmpo.__file__


@pytest.mark.parametrize(
  "module", [digits_dmpo, digits_reference, sd15_dmpo, sdxl_dmpo, sdxl_dmpo_lora]
)
def test_the_projects_configs_pass_the_check(module):
  check(module.get_config())


@pytest.mark.parametrize("module", [sd15_dmpo, sdxl_dmpo, sdxl_dmpo_lora])
def test_the_configs_of_stable_diffusion_read_cached_latents(module):
  config = load_config(f"{module.__file__}:cached_latents", ["--config.data.folder=data/latents"])
  assert check(config).data.name == "cached_latents"
  select("data set", config.data, data.DATASETS)
  with pytest.raises(ValueError, match="did you mean 'cached_latents'"):
    load_config(f"{module.__file__}:latents")
  with pytest.raises(ValueError, match="'encoded' is called 'cached_latents' now"):
    load_config(f"{module.__file__}:encoded")


def test_a_key_is_set_from_the_command_line():
  config = load_config(DMPO, ["--config.loss.alpha=0.2", "--config.num_steps=7"])
  assert (config.loss.alpha, config.num_steps) == (0.2, 7)


@pytest.mark.parametrize(
  ("argument", "suggestion"),
  [
    ("--config.loss.alhpa=0.01", "loss.alpha"),
    ("--config.optimiser.b1=0.9", "optimizer"),
    ("--config.optimizer.learning_rat=1", "optimizer.learning_rate"),
  ],
)
def test_a_misspelt_key_on_the_command_line_is_refused_with_a_suggestion(argument, suggestion):
  with pytest.raises(ValueError, match=f"did you mean '{suggestion}'"):
    load_config(DMPO, [argument])


def test_a_renamed_key_is_refused_with_its_new_name(tmp_path):
  message = r"config\.health.* is called config\.held_out.* now"
  with pytest.raises(InputError, match=message):
    load_config(DMPO, ["--config.health.every=10"])
  config = digits_dmpo.get_config().unlock()
  config.health = {"every": 10}
  with pytest.raises(InputError, match=message):
    check(config)
  file = tmp_path / "mine.py"
  file.write_text(
    "from dmpo_jax.configs import digits_dmpo\n"
    "def get_config():\n"
    "  c = digits_dmpo.get_config()\n"
    "  c.health.every = 10\n"
    "  return c\n"
  )
  with pytest.raises(InputError, match=message):
    load_config(str(file))


@pytest.mark.parametrize(("former", "current"), RENAMED.items())
def test_each_renamed_key_is_refused_with_its_new_name(former, current):
  message = rf"config\.{former} is called config\.{current} now; rename it"
  config = digits_dmpo.get_config().unlock()
  config[former] = 1
  with pytest.raises(InputError, match=message):
    check(config)
  with pytest.raises(InputError, match=message):
    load_config(DMPO, [f"--config.{former}=1"])


def test_a_value_of_the_wrong_type_is_refused():
  with pytest.raises(ValueError, match=r"batch_size.*many"):
    load_config(DMPO, ["--config.batch_size=many"])


def test_a_misspelt_key_in_a_config_file_is_refused_with_a_suggestion(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    "from dmpo_jax.configs import digits_dmpo\n"
    "def get_config():\n"
    "  c = digits_dmpo.get_config()\n"
    "  with c.unlocked():\n"
    "    c.optimizer.learningrate = 1.0\n"
    "  return c\n"
  )
  with pytest.raises(ValueError, match=r"did you mean 'optimizer.learning_rate'"):
    check(load_config(str(file)))


def test_a_config_file_that_is_not_there_is_named():
  with pytest.raises(ValueError, match=r"no config file .*absent\.py"):
    load_config("absent.py")


def test_a_missing_key_is_named():
  config = digits_dmpo.get_config()
  with config.unlocked():
    del config.ema_decay
  with pytest.raises(ValueError, match=r"config\.ema_decay is missing"):
    check(config)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("batch_size", 0),
    ("num_steps", -1),
    ("caption_dropout", 1.0),
    ("ema_decay", 1.5),
    ("optimizer.learning_rate", 0.0),
    ("optimizer.clip_norm", -1.0),
    ("checkpoint.every", 0),
    ("dtype", "float16"),
    ("held_out.every", -1),
    ("held_out.bins", 0),
    ("samples.seeds", 0),
    ("profile.steps", -1),
  ],
)
def test_a_number_out_of_range_is_named(key, value):
  config = digits_dmpo.get_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=rf"config\.{key} must be .*{value}"):
    check(config)


@pytest.mark.parametrize("key", ["revision", "variant"])
def test_a_choice_of_weights_without_a_pipeline_is_refused(key):
  config = digits_dmpo.get_config()
  config.pipeline, config[key] = "", "fp16"
  with pytest.raises(ValueError, match=rf"config\.{key} must be empty without a pipeline"):
    check(config)


def test_an_unknown_objective_is_refused_with_a_suggestion():
  with pytest.raises(ValueError, match="unknown objective 'dmop'; did you mean 'dmpo'"):
    select("objective", {"name": "dmop"}, losses.LOSSES)


def test_a_key_that_the_objective_does_not_take_is_refused():
  with pytest.raises(ValueError, match=r"'dpo'.*'alpha'.*beta, label_smoothing"):
    select("objective", {"name": "dpo", "beta": 1.0, "alpha": 0.1}, losses.LOSSES)


def test_a_key_that_the_objective_needs_is_asked_for():
  with pytest.raises(ValueError, match="'dmpo' needs the key 'alpha'"):
    select("objective", {"name": "dmpo", "beta": 1.0}, losses.LOSSES)


@pytest.mark.parametrize(
  ("argument", "value"),
  [
    ("--config.data.split_seed=3", 3),
    ("--config.lora.targets.unet=('*.to_q',)", ("*.to_q",)),
    ("--config.model.scheduler.beta_end=0.01", 0.01),
    ("--config.model.scheduler.prediction_type=v_prediction", "v_prediction"),
    ("--config.timesteps.low=200", 200),
  ],
)
def test_a_key_that_the_file_leaves_out_of_an_open_section_can_be_added(argument, value):
  config = load_config(DMPO, [argument])
  path = argument.removeprefix("--config.").split("=")[0].split(".")
  assert functools.reduce(lambda section, key: section[key], path, config) == value
  check(config)


def test_a_key_below_a_value_is_refused():
  with pytest.raises(InputError, match=r"unknown config key 'loss\.beta\.high'"):
    load_config(DMPO, ["--config.loss.beta.high=1"])


def test_a_renamed_option_of_a_data_set_is_refused_with_its_new_name():
  with pytest.raises(
    InputError, match=r"config\.data\.time_ids is called .*micro_conditioning now"
  ):
    load_config(sd15_dmpo.__file__, ["--config.data.time_ids=True"])
