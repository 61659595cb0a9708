"""Config files and the keys set on the command line."""

import ast
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from dmpo_jax import data, losses
from dmpo_jax.common import choose
from dmpo_jax.errors import InputError, cut, short
from dmpo_jax.training.config import (
  NOW_SECTIONS,
  NULLABLE,
  OPEN_SECTIONS,
  RENAMED,
  renamed_key,
  unknown_key,
)

# Open section -> functions by name, whose keyword-only arguments are the section's keys.
FUNCTIONS = {"data": data.DATASETS, "held_out.data": data.DATASETS, "loss": losses.LOSSES}


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of a file, with keys set by arguments `--config.KEY=VALUE`.

  The file is a program, which runs: it can do what its user can.

  Args:
    path: A Python file with `get_config()`; `FILE:ARGUMENT` passes an argument to it.
    overrides: Arguments such as `--config.loss.alpha=0.05`.

  Returns:
    The config. Keys that the file has keep their type; in the sections of `OPEN_SECTIONS` an
    argument may also add a key, whose value is a Python literal or else a string.

  Raises:
    InputError: The file is not there or fails in any way (with the line), an argument sets no key
      of the config (with the nearest one), or a value has the wrong type.
  """
  config = _run(*path.split(":", 1))
  fixed, added = [], []
  for argument in overrides:
    (fixed if _exists(config, argument) else added).append(argument)
  config = _override(config, fixed)
  for argument in added:
    _add(config, argument)
  return config


def _run(path: str, *arguments: str) -> ConfigDict:
  """The result of a config file's get_config(*arguments)."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise InputError(f"no config file {file}; configs/ holds those of the project")
  source = file.read_bytes()
  # Compiled here and not imported, which would read the cache of an earlier version of a file that
  # changed within the same second.
  module = types.ModuleType("dmpo_jax_config")
  module.__file__ = str(file)
  sys.modules[module.__name__] = module  # as dataclasses expect
  try:
    exec(compile(source, str(file), "exec"), module.__dict__)
    if not callable(get_config := getattr(module, "get_config", None)):
      raise InputError("there is no function get_config()")
    config = get_config(*arguments)
    if not isinstance(config, Mapping | ConfigDict):
      raise InputError(
        f"get_config() returns {short(config)}, and not the ConfigDict that "
        "dmpo_jax.training.config.default() makes, with changes"
      )
    return ConfigDict(config).unlock().lock()
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # also sys.exit(0), which would end a command as if it were done
    line = _line(error, str(file))
    where = f"{file}, line {line}" if line else str(file)
    raise InputError(f"config file {where}: {_reason(error)}") from error
  finally:
    sys.modules.pop(module.__name__, None)


def _line(error: BaseException, file: str) -> int | None:
  """The last line of a file that an error passed through; None if there is none."""
  if isinstance(error, SyntaxError) and error.filename == file:
    return error.lineno
  frames = traceback.extract_tb(error.__traceback__)
  return next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)


def _reason(error: BaseException) -> str:
  """An error in one line."""
  if isinstance(error, InputError):
    return str(error)
  try:
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
  except Exception:  # an error of the config file's own may fail to say what it is
    message = ""
  if isinstance(error, AttributeError | KeyError) and (key := message.strip("\"'")) in RENAMED:
    return str(unknown_key(key, ()))
  field = re.match(r"Could not override field '(\w+)'", message)
  if isinstance(error, TypeError) and field and field[1] in NOW_SECTIONS:
    return f"config.{field[1]} is a section now: {NOW_SECTIONS[field[1]]}"
  if isinstance(error, flags.Error):  # flag --config.KEY=VALUE: reason
    return message.partition(": ")[2] or message
  return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
  """The config with existing keys set by arguments."""
  values = flags.FlagValues()
  arguments = ["dmpo-jax", *arguments]
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    values(arguments)
  except Exception as error:
    shown = " ".join(cut(argument, 100) for argument in arguments[1:])
    raise InputError(f"cannot set {shown}: {_reason(error)}") from error
  return values["config"].value


def _exists(config: ConfigDict, argument: str) -> bool:
  """Whether the config has the key that an argument sets, with a type that the value must have.

  False in an open section for a new key, and for one that is None or a list; and for a number that
  is set to None, where that has a meaning.
  """
  key, separator, text = argument.partition("=")
  if not key.startswith("--config.") or not separator:
    raise InputError(f"cannot read {argument!r}; keys are set as --config.KEY=VALUE")
  key = key.removeprefix("--config.")
  section, prefix = config, ""
  for part in key.split("."):
    if not isinstance(section, ConfigDict) or part not in section:
      if isinstance(section, ConfigDict) and _is_open(prefix):
        return False
      known = list(section) if isinstance(section, ConfigDict) else []
      raise unknown_key(prefix + part, [prefix + k for k in known])
    section, prefix = section[part], f"{prefix}{part}."
  if key in NOW_SECTIONS:
    raise InputError(f"config.{key} is a section now, got {short(text)}: {NOW_SECTIONS[key]}")
  if text == "None" and key in NULLABLE:
    return False
  return not (_is_open(prefix) and (section is None or isinstance(section, list)))


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
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    value = {"true": True, "false": False}.get(text.lower(), text)
  with section.unlocked(), section.ignore_type():
    section[name] = value
