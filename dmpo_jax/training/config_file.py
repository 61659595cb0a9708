"""Config files and the keys set on the command line."""

import ast
import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from dmpo_jax import data, losses
from dmpo_jax.common import choose
from dmpo_jax.errors import InputError
from dmpo_jax.training.config import OPEN_SECTIONS, RENAMED, renamed_key, unknown_key

# Open section -> functions by name, whose keyword-only arguments are the section's keys.
FUNCTIONS = {"data": data.DATASETS, "held_out.data": data.DATASETS, "loss": losses.LOSSES}


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of a file, with keys set by arguments `--config.KEY=VALUE`.

  Args:
    path: A Python file with `get_config()`; `FILE:ARGUMENT` passes an argument to it.
    overrides: Arguments such as `--config.loss.alpha=0.05`.

  Returns:
    The config. Keys that the file has keep their type; in the sections of `OPEN_SECTIONS` an
    argument may also add a key, whose value is a Python literal or else a string.

  Raises:
    InputError: The file is not there or fails, an argument sets no key of the config (with the
      nearest one), or a value has the wrong type.
  """
  file = pathlib.Path(path.split(":")[0])
  if not file.is_file():
    raise InputError(f"no config file {file}; configs/ holds those of the project")
  try:
    config = _parse([f"--config={path}"])
  except (AttributeError, KeyError, TypeError, flags.Error) as error:
    # ml_collections puts a whole traceback into its message; the last line says what was wrong.
    reason = str(error.args[0] if error.args else error).strip().splitlines()[-1]
    reason = reason.removeprefix(f"{InputError.__module__}.{InputError.__name__}: ")
    if (key := reason.strip("\"'")) in RENAMED:
      reason = str(unknown_key(key, ()))
    raise InputError(f"config file {file} fails: {reason}") from error
  fixed, added = [], []
  for argument in overrides:
    (fixed if _exists(config, argument) else added).append(argument)
  try:
    config = _parse([f"--config={path}", *fixed])
  except (flags.Error, TypeError, ValueError) as error:
    raise InputError(f"cannot set {' '.join(fixed)}: {error}") from error
  for argument in added:
    _add(config, argument)
  return config


def _parse(arguments: list[str]) -> ConfigDict:
  values = flags.FlagValues()
  arguments = ["dmpo-jax", *arguments]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
  values(arguments)
  return values["config"].value


def _exists(config: ConfigDict, argument: str) -> bool:
  """Whether the config has the key that an argument sets; False if it is new in an open section."""
  key, separator, _ = argument.partition("=")
  if not key.startswith("--config.") or not separator:
    raise InputError(f"cannot read {argument!r}; keys are set as --config.KEY=VALUE")
  section, prefix = config, ""
  for part in key.removeprefix("--config.").split("."):
    if not isinstance(section, ConfigDict) or part not in section:
      if isinstance(section, ConfigDict) and _is_open(prefix):
        return False
      known = list(section) if isinstance(section, ConfigDict) else []
      raise unknown_key(prefix + part, [prefix + k for k in known])
    section, prefix = section[part], f"{prefix}{part}."
  return True


def _is_open(prefix: str) -> bool:
  """Whether keys under a dotted prefix (ending in a dot) belong to an open section."""
  return any(prefix.startswith(f"{section}.") for section in OPEN_SECTIONS)


def _add(config: ConfigDict, argument: str) -> None:
  """Adds the key that an argument sets."""
  key, _, text = argument.removeprefix("--config.").partition("=")
  *parents, name = key.split(".")
  section, path = config, ".".join(parents)
  for part in parents:
    if part not in section:
      with section.unlocked():
        section[part] = ConfigDict()
    section = section[part]
    if not isinstance(section, ConfigDict):
      raise InputError(f"cannot set config.{key}: {part!r} is a value, not a section")
  if functions := FUNCTIONS.get(path):
    known = choose.keyword_parameters(functions[section.name]) if section.name in functions else ()
    known = {*known, *(losses.CONTROLS if path == "loss" else ())}
    if name not in known:
      if data.RENAMED.get(name) in known:
        raise renamed_key(key, f"{path}.{data.RENAMED[name]}")
      raise unknown_key(key, [f"{path}.{option}" for option in known])
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {"true": True, "false": False}.get(text.lower(), text)
  with section.unlocked():
    section[name] = value
