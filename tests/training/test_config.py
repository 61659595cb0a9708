"""Configs: what is refused, and with which words."""

import functools
import math

import pytest
from ml_collections import ConfigDict, config_dict

from dmpo_jax import data, losses
from dmpo_jax.common.choose import select
from dmpo_jax.configs import (
  digits_dmpo,
  digits_flow_dmpo,
  digits_flow_dpo,
  digits_flow_reference,
  digits_reference,
  sd3_dmpo_lora,
  sd15_dmpo,
  sd35_dmpo,
  sd35_dmpo_lora,
  sdxl_dmpo,
  sdxl_dmpo_lora,
)
from dmpo_jax.diffusion import FlowProcess
from dmpo_jax.errors import InputError
from dmpo_jax.training import setup
from dmpo_jax.training.config import OPEN_SECTIONS, RENAMED, check, default
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.config_ranges import RANGES

DMPO = digits_dmpo.__file__


STABLE_DIFFUSION = [sd15_dmpo, sdxl_dmpo, sdxl_dmpo_lora, sd3_dmpo_lora, sd35_dmpo, sd35_dmpo_lora]
DIGITS = [digits_dmpo, digits_reference, digits_flow_reference, digits_flow_dmpo, digits_flow_dpo]


@pytest.mark.parametrize("module", [*DIGITS, *STABLE_DIFFUSION])
def test_the_projects_configs_pass_the_check(module):
  check(module.get_config())


@pytest.mark.parametrize("module", STABLE_DIFFUSION)
def test_the_configs_of_stable_diffusion_read_cached_latents(module):
  config = load_config(f"{module.__file__}:cached_latents", ["--config.data.folder=data/latents"])
  assert check(config).data.name == "cached_latents"
  select("data set", config.data, data.DATASETS)
  with pytest.raises(ValueError, match="did you mean 'cached_latents'"):
    load_config(f"{module.__file__}:latents")
  with pytest.raises(ValueError, match="'encoded' is called 'cached_latents' now"):
    load_config(f"{module.__file__}:encoded")


@pytest.mark.parametrize("module", [sd3_dmpo_lora, sd35_dmpo, sd35_dmpo_lora])
def test_the_configs_of_stable_diffusion_3_train_by_flow_matching(module):
  config = module.get_config()
  process = FlowProcess(shift=3.0)
  process.timestep_sampler(config.timesteps.to_dict())
  assert process.weights(config.timestep_weights.to_dict()) is None
  # A LoRA's rate goes with a small beta, the whole network's with a large one.
  assert (
    (config.loss.beta < 1000) == (config.lora.rank > 0) == (config.optimizer.learning_rate > 1e-5)
  )


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
    check(load_config(str(file)))


@pytest.mark.parametrize(("former", "current"), RENAMED.items())
def test_each_renamed_key_is_refused_with_its_new_name(former, current):
  message = rf"config\.{former} is called config\.{current} now; rename it"
  config = digits_dmpo.get_config().unlock()
  *parents, key = former.split(".")
  functools.reduce(lambda section, part: section[part], parents, config)[key] = 1
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


def changed(key, value):
  """The config of the digits with one key of any value, of whatever type."""
  config = digits_dmpo.get_config().unlock()
  *sections, name = key.split(".")
  section = functools.reduce(lambda section, part: section[part], sections, config)
  with section.ignore_type():
    section[name] = value
  return config


def leaves(section, prefix=""):
  for key, value in section.items():
    if not isinstance(value, ConfigDict):
      yield prefix + key, value
    elif prefix + key not in OPEN_SECTIONS:
      yield from leaves(value, f"{prefix}{key}.")


def test_every_number_of_the_config_has_a_range():
  numbers = {key for key, value in leaves(default()) if type(value) in (int, float)}
  assert numbers <= set(RANGES) <= {key for key, _ in leaves(default())}


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e300, 1e300, "1"])
def test_a_number_that_is_absurd_is_refused_by_name_and_range(key, value):
  with pytest.raises(InputError, match=rf"^config\.{key} must be an? \w+ (in|from) .*, got ."):
    check(changed(key, value))


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("batch_size", 0),
    ("batch_size", True),
    ("batch_size", 4.0),
    ("batch_size", None),
    ("batch_size", 10**40),
    ("seed", 2**32),
    ("num_steps", -1),
    ("num_steps", 2**31),
    ("caption_dropout", 1.0),
    ("caption_dropout", 0.99999999999),
    ("ema_decay", 1.5),
    ("ema_decay", 0.99999999999),
    ("lora.rank", 10**9),
    ("optimizer.b2", 0.99999999999),
    ("optimizer.eps", -1.0),
    ("optimizer.eps", 0.0),
    ("optimizer.learning_rate", 0.0),
    ("optimizer.learning_rate", 1e-50),
    ("optimizer.clip_norm", -1.0),
    ("optimizer.clip_norm", 1e-300),
    ("optimizer.warmup_steps", 10**14),
    ("checkpoint.every", 0),
    ("dtype", "float16"),
    ("held_out.every", -1),
    ("held_out.bins", 0),
    ("samples.seeds", 0),
    ("profile.steps", -1),
  ],
)
def test_a_value_out_of_range_is_named(key, value):
  with pytest.raises(InputError, match=rf"^config\.{key} must be .*{value}"):
    check(changed(key, value))


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("optimizer", 3, "a section"),
    ("data", "digits", "a section"),
    ("loss.name", 3, "a text, got 3"),
    ("loss.name", ConfigDict({"x": 1}), "a text, got {'x': 1}"),
    ("reference", False, "a section .* got False: the loss says whether it uses a reference"),
    ("pipeline", None, "a text, got None"),
    ("trained", "unet", "a tuple of texts, got 'unet'"),
    ("trained", ("unet", 3), "a tuple of texts"),
    ("samples.prompts", "a fox", "a tuple of texts"),
    ("lora.targets.unet", 3, "a tuple of texts, got 3"),
    ("lora.alpha", 4.0, "0 without a rank"),
    ("optimizer.weight_decay", 1e5, r"below 1/learning_rate \(.*is 5e-05\)"),
    ("reference_dtype", "bfloat16", "'float32' where"),
    ("grad_accumulation_steps", 3, "a divisor of config.batch_size 32"),
  ],
)
def test_a_value_of_another_kind_is_named(key, value, expected):
  with pytest.raises(InputError, match=rf"^config\.{key} must be {expected}"):
    check(changed(key, value))


@pytest.mark.parametrize("key", ["ema_decay", "caption_dropout", "optimizer.weight_decay"])
def test_an_integer_may_stand_for_a_float(key):
  check(changed(key, 0))


def test_patterns_of_a_component_may_be_one_text():
  check(changed("lora.targets.unet", "*"))


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"name": "dmpo", "beta": math.nan, "alpha": 0.01}, r"config\.loss: beta must be a number in"),
    ({"name": "dmpo", "beta": 1e39, "alpha": 0.01}, r"config\.loss: beta must be a number in"),
    ({"name": "dmpo", "beta": 1e-300, "alpha": 0.01}, r"config\.loss: beta must be a number in"),
    ({"name": "dmpo", "beta": 2.0, "alpha": 0.5}, r"config\.loss: alpha must be .*\(0, 0\.5\)"),
    ({"name": "dmpo", "beta": "2", "alpha": 0.1}, r"loss 'dmpo': beta must be a number, got '2'"),
    ({"name": "mapo", "beta": 1.0}, r"config\.loss: snr must be a number"),
    (
      {"name": "sdpo", "mu": 0.5, "base": {"name": "dpo", "beta": math.inf}},
      r"config\.loss: beta must be",
    ),
    (
      {"name": "f_dpo", "divergence": "kl", "beta": 1.0, "inner_scale": 1.0},
      "unknown divergence 'kl'",
    ),
  ],
)
def test_hyperparameters_of_the_loss_are_checked_with_the_config(section, message):
  with pytest.raises(InputError, match=message):
    check(changed("loss", ConfigDict(section)))


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("seed", -1, "seed must be an integer from 0 to 1844"),
    ("num_pairs", 10**11, "num_pairs must be an integer from 1 to 1000000, got 100000000000"),
    ("temperature", math.nan, "temperature must be a number in"),
    ("temperature", 1e-300, "temperature must be a number in"),
    ("split_seed", -1, "split_seed must be an integer"),
    ("test_fraction", math.nan, r"test_fraction must be a number in \(0, 1\)"),
    ("split", 3, "split must be a text, got 3"),
  ],
)
def test_numbers_of_the_digits_are_checked_before_anything_is_made(key, value, message):
  with pytest.raises(InputError, match=message):
    setup.load_examples(changed(f"data.{key}", value))


def test_a_placeholder_without_a_value_is_named():
  config = changed("num_steps", config_dict.required_placeholder(int))
  with pytest.raises(InputError, match=r"^config\.num_steps is not set"):
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


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("prediction_type", "v_prediction"),
    ("trained_betas", [0.1, 0.2]),
    ("timestep_values", [3]),
    ("rescale_betas_zero_snr", True),
  ],
)
def test_every_field_of_the_scheduler_is_set_from_the_command_line(tmp_path, key, value):
  file = tmp_path / "config.py"
  file.write_text(
    "from ml_collections import ConfigDict\n"
    "from dmpo_jax.training.config import default\n\n\n"
    "def get_config():\n  config = default()\n  config.model.scheduler = ConfigDict(\n"
    '    {"trained_betas": None, "prediction_type": "epsilon", "timestep_values": [1, 2]}\n  )\n'
    "  return config\n"
  )
  config = load_config(str(file), [f"--config.model.scheduler.{key}={value}"])
  assert config.model.scheduler[key] == value


def test_a_key_below_a_value_is_refused():
  with pytest.raises(InputError, match=r"unknown config key 'loss\.beta\.high'"):
    load_config(DMPO, ["--config.loss.beta.high=1"])


def test_a_renamed_option_of_a_data_set_is_refused_with_its_new_name():
  with pytest.raises(
    InputError, match=r"config\.data\.time_ids is called .*micro_conditioning now"
  ):
    load_config(sd15_dmpo.__file__, ["--config.data.time_ids=True"])


GOOD = "from dmpo_jax.configs import digits_dmpo\n"
IN_FUNCTION = "def get_config():\n  "
BROKEN = {
  "syntax": ("def get_config(:\n", "line 1: SyntaxError: invalid syntax"),
  "indentation": ("def get_config():\nreturn 1\n", "line 2: IndentationError"),
  "encoding": ("# a\nx = '\udcff'\n", "line 2: SyntaxError.*utf-8"),
  "nul": ("x = 1\n\0", ": SyntaxError: source code string cannot contain null bytes"),
  "nesting": ("x = " + "(" * 5000, "line 1: SyntaxError: too many nested"),
  "import": ("import no_such_module\n", "line 1: ModuleNotFoundError: .*no_such_module"),
  "index": (f"{IN_FUNCTION}return [][1]\n", "line 2: IndexError: list index"),
  "zero": (f"{IN_FUNCTION}return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
  "recursion": (f"{IN_FUNCTION}return get_config()\n", "line 2: RecursionError"),
  "file": (f"{IN_FUNCTION}open('/absent')\n", "line 2: FileNotFoundError"),
  "assert": (f"{IN_FUNCTION}assert False\n", "line 2: AssertionError$"),
  "lines": (f"{IN_FUNCTION}raise ValueError('a\\nb\\x1b[2J')\n", r"line 2: ValueError: a b\\x1b"),
  "exit": ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
  "base": ("class E(BaseException): pass\nraise E('no')\n", "line 2: E: no"),
  "mute": (
    "class E(Exception):\n  def __str__(self):\n    return 1 / 0\nraise E\n",
    "line 4: E$",
  ),
  "three": (f"{IN_FUNCTION}return 3\n", r": get_config\(\) returns 3, and not"),
  "none": (f"{IN_FUNCTION}pass\n", r": get_config\(\) returns None"),
  "empty": ("", r": there is no function get_config\(\)"),
  "no function": ("get_config = 3\n", r": there is no function get_config\(\)"),
  "type": (
    f"{GOOD}{IN_FUNCTION}c = digits_dmpo.get_config()\n  c.batch_size = 'x'\n  return c\n",
    "line 4: TypeError: .*batch_size",
  ),
  "argument": (f"{IN_FUNCTION}return 3\n", r": TypeError: get_config\(\) takes 0", ":all"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_file_gives_file_line_and_reason(name, tmp_path):
  source, reason, *argument = BROKEN[name]
  file = tmp_path / "mine.py"
  file.write_bytes(source.encode(errors="surrogateescape"))
  with pytest.raises(InputError, match=rf"^config file {file}(, )?{reason}") as error:
    load_config(f"{file}{''.join(argument)}")
  assert "\n" not in str(error.value)


def test_a_reference_that_is_true_or_false_is_refused_with_what_to_do(tmp_path):
  message = r"config\.reference is a section now.*: the loss says whether it uses a reference"
  with pytest.raises(InputError, match=message):
    load_config(DMPO, ["--config.reference=False"])
  file = tmp_path / "mine.py"
  file.write_text(
    f"{GOOD}{IN_FUNCTION}c = digits_dmpo.get_config()\n  c.reference = False\n  return c\n"
  )
  with pytest.raises(InputError, match=message):
    load_config(str(file))


def test_an_interrupt_in_a_config_file_is_an_interrupt(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("raise KeyboardInterrupt\n")
  with pytest.raises(KeyboardInterrupt):
    load_config(str(file))


def test_a_config_file_that_changes_is_read_again(tmp_path):
  file = tmp_path / "mine.py"
  for steps in (111, 222):  # of one size, within one second
    file.write_text(
      f"{GOOD}{IN_FUNCTION}c = digits_dmpo.get_config()\n  c.num_steps = {steps}\n  return c\n"
    )
    assert load_config(str(file)).num_steps == steps
  assert [f.name for f in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize("kind", ["dict", "FrozenConfigDict"])
def test_a_config_file_may_return_another_kind_of_mapping(kind, tmp_path):
  file = tmp_path / "mine.py"
  make = "c.to_dict()" if kind == "dict" else "FrozenConfigDict(c)"
  file.write_text(
    f"{GOOD}from ml_collections import FrozenConfigDict\n"
    f"{IN_FUNCTION}c = digits_dmpo.get_config()\n  return {make}\n"
  )
  config = check(load_config(str(file), ["--config.num_steps=7"]))
  assert (config.num_steps, config.loss.name) == (7, "dmpo")


def test_a_config_file_may_define_dataclasses(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    "import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: 'int' = 1\n"
    f"{GOOD}get_config = digits_dmpo.get_config\n"
  )
  assert load_config(str(file)).num_steps > 0


@pytest.mark.parametrize(
  ("argument", "reason"),
  [
    ("num_steps=1e3", r"invalid literal for int\(\) with base 10: '1e3'"),
    ("num_steps=" + "9" * 5000, "Exceeds the limit"),
    ("loss.beta=x", "could not convert string to float: 'x'"),
    ("optimizer=3", "Failed to parse '3' as a ConfigDict"),
    ("loss={", "Failed to parse '{' as a ConfigDict"),
  ],
)
def test_an_argument_that_cannot_be_read_is_refused_in_one_short_line(argument, reason):
  with pytest.raises(InputError, match=rf"^cannot set --config\..*: .*{reason}") as error:
    load_config(DMPO, [f"--config.{argument}"])
  assert len(str(error.value)) < 600
  assert "\n" not in str(error.value)


def test_a_number_that_may_be_none_is_set_to_none_on_the_command_line(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    f"{GOOD}{IN_FUNCTION}c = digits_dmpo.get_config()\n  c.samples.guidance = 5.0\n  return c\n"
  )
  assert load_config(str(file)).samples.guidance == 5
  config = load_config(str(file), ["--config.samples.guidance=None", "--config.num_steps=7"])
  assert check(config).samples.guidance is None
  with pytest.raises(InputError, match=r"cannot set --config\.num_steps=None"):
    load_config(str(file), ["--config.num_steps=None"])


def test_a_new_key_of_many_brackets_is_a_text():
  config = load_config(DMPO, ["--config.data.split_seed=" + "(" * 5000])
  with pytest.raises(InputError, match="split_seed must be an integer"):
    setup.load_examples(config)
