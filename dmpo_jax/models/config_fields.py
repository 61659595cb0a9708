"""Fields of a model's config.json, with defaults filled in and unsupported values refused."""

import functools
import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

from dmpo_jax.common.idle import is_off, tell
from dmpo_jax.errors import InputError, short, unknown

LOGGER = logging.getLogger(__name__)

# Largest values that are believed: a config is read before anything is compared with its weights.
MAX_SIZE, MAX_LAYERS = 1 << 24, 256


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
  """The classes that a config names: `_class_name` (diffusers), then `architectures`.

  Args:
    config: The mapping read from config.json.

  Returns:
    The names; empty where the config names no class.

  Raises:
    InputError: One of the two fields is no name or list of names.
  """
  name, architectures = config.get("_class_name"), config.get("architectures") or ()
  if name is not None and not isinstance(name, str):
    raise InputError(f"_class_name = {short(name)} is not supported, expected the name of a class")
  if not isinstance(architectures, list | tuple) or not all(
    isinstance(each, str) for each in architectures
  ):
    raise InputError(
      f"architectures = {short(architectures)} is not supported, expected a list of class names"
    )
  return (*([name] if name else []), *architectures)


def to_tuples(value: Any) -> Any:
  """The value with lists as tuples, at every depth, so that configs compare and hash by value."""
  return tuple(to_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def read(
  model: str,
  config: Mapping[str, Any],
  *,
  defaults: Mapping[str, Any],
  constants: Mapping[str, Any],
  ignored: Collection[str] = frozenset(),
  dropouts: Collection[str] = frozenset(),
) -> dict[str, Any]:
  """The fields that shape the network, with defaults for absent ones.

  An unknown field that is switched off (null, false, or a list or object of nothing else) cannot
  change the network: it is passed over, and a warning lists all of them once.

  Args:
    model: The model's name, for messages.
    config: The mapping read from config.json; keys with a leading underscore are ignored.
    defaults: Supported fields and their default values.
    constants: Fields with one supported value, and that value. A list of that value, one for each
      block, is supported too.
    ignored: Fields that do not change the network's arithmetic.
    dropouts: Probabilities of dropout, which is never applied; a warning names those above 0.

  Returns:
    A value per key of `defaults`.

  Raises:
    InputError: A field is unknown and not switched off, or one of `constants` has another value.
  """
  idle = []
  for name, value in config.items():
    if name.startswith("_") or name in defaults or name in ignored:
      continue
    if name in dropouts:
      check_number(model, name, value, most=1)
      if value:
        _warn_of_dropout(model, name, value)
    elif name not in constants:
      if not is_off(value):
        raise unknown(f"field of a {model} config", name, [*defaults, *constants, *ignored])
      idle.append(name)
    elif not _equals(to_tuples(value), to_tuples(constants[name])):
      raise unsupported(model, name, value, repr(constants[name]))
  tell(f"{model} config", idle)
  return {name: to_tuples(config.get(name, default)) for name, default in defaults.items()}


def _equals(value: Any, constant: Any) -> bool:
  """Whether a field, or each entry of its list, has the one supported value or is off like it."""
  if is_off(value) and is_off(constant):
    return True
  if isinstance(value, bool) != isinstance(constant, bool) and not isinstance(value, tuple):
    return False
  return value == constant or (
    isinstance(value, tuple) and value != () and all(_equals(v, constant) for v in value)
  )


@functools.cache
def _warn_of_dropout(model: str, name: str, value: float) -> None:
  LOGGER.warning(
    "%s config: %s is %g, and no dropout is applied, in training neither", model, name, value
  )


def unsupported(model: str, name: str, value: object, expected: str) -> InputError:
  """The error for a known field with a value that is not supported."""
  return InputError(
    f"{model} config: {name} = {short(value)} is not supported, expected {expected}"
  )


def check_count(model: str, name: str, value: object, *, most: int = MAX_SIZE) -> int:
  """A positive integer field of at most `most`; raises InputError for other values."""
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
    expected = f"at most {most}" if isinstance(value, int) and value > most else ""
    raise unsupported(model, name, value, expected or "a positive integer")
  return value


def check_number(model: str, name: str, value: object, *, most: float = math.inf) -> None:
  """Raises InputError unless the value is a finite number from 0 to `most`."""
  number = not isinstance(value, bool) and isinstance(value, int | float)
  if not number or not 0 <= value < math.inf:
    raise unsupported(model, name, value, "a number that is not negative")
  if value > most:
    raise unsupported(model, name, value, f"a number of at most {most:g}")


def check_flag(model: str, name: str, value: object) -> bool:
  """A field that is true or false; null means false, as in diffusers. Else raises InputError."""
  if value is not None and not isinstance(value, bool):
    raise unsupported(model, name, value, "true or false")
  return bool(value)


def check_choice(model: str, name: str, value: object, options: tuple[object, ...]) -> None:
  """Raises InputError unless the value is among the options."""
  if value not in options:
    raise unsupported(model, name, value, "one of " + ", ".join(map(repr, options)))
