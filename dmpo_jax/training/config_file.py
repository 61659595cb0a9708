"""Config files and the keys set on the command line."""

import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from dmpo_jax.errors import InputError
from dmpo_jax.training.config import RENAMED, unknown_key


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of a file, with keys set by arguments `--config.KEY=VALUE`.

  Args:
    path: A Python file with `get_config()`; `FILE:ARGUMENT` passes an argument to it.
    overrides: Arguments such as `--config.loss.alpha=0.05`.

  Returns:
    The config; types are those of the file.

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
  for argument in overrides:
    _check_key(config, argument)
  try:
    return _parse([f"--config={path}", *overrides])
  except (flags.Error, TypeError, ValueError) as error:
    raise InputError(f"cannot set {' '.join(overrides)}: {error}") from error


def _parse(arguments: list[str]) -> ConfigDict:
  values = flags.FlagValues()
  arguments = ["dmpo-jax", *arguments]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
  values(arguments)
  return values["config"].value


def _check_key(config: ConfigDict, argument: str) -> None:
  key, separator, _ = argument.partition("=")
  if not key.startswith("--config.") or not separator:
    raise InputError(f"cannot read {argument!r}; keys are set as --config.KEY=VALUE")
  section, prefix = config, ""
  for part in key.removeprefix("--config.").split("."):
    if not isinstance(section, ConfigDict) or part not in section:
      known = list(section) if isinstance(section, ConfigDict) else []
      raise unknown_key(prefix + part, [prefix + k for k in known])
    section, prefix = section[part], f"{prefix}{part}."
