"""Fields of a model's config.json, with defaults filled in and unsupported values refused."""

import math
from collections.abc import Mapping
from typing import Any

from dmpo_jax.errors import InputError, unknown


def to_tuples(value: Any) -> Any:
  """The value with lists as tuples, at every depth, so that configs compare and hash by value."""
  return tuple(to_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def read(
  model: str,
  config: Mapping[str, Any],
  *,
  defaults: Mapping[str, Any],
  constants: Mapping[str, Any],
  ignored: frozenset[str] = frozenset(),
) -> dict[str, Any]:
  """The fields that shape the network, with defaults for absent ones.

  Args:
    model: The model's name, for messages.
    config: The mapping read from config.json; keys with a leading underscore are ignored.
    defaults: Supported fields and their default values.
    constants: Fields with one supported value, and that value.
    ignored: Fields that do not change the network's arithmetic.

  Returns:
    A value per key of `defaults`.

  Raises:
    InputError: A field is unknown, or one of `constants` has another value.
  """
  for name, value in config.items():
    if name.startswith("_") or name in defaults or name in ignored:
      continue
    if name not in constants:
      raise unknown(f"field of a {model} config", name, [*defaults, *constants, *ignored])
    if to_tuples(value) != to_tuples(constants[name]):
      raise unsupported(model, name, value, repr(constants[name]))
  return {name: to_tuples(config.get(name, default)) for name, default in defaults.items()}


def unsupported(model: str, name: str, value: object, expected: str) -> InputError:
  """The error for a known field with a value that is not supported."""
  return InputError(f"{model} config: {name} = {value!r} is not supported, expected {expected}")


def check_count(model: str, name: str, value: object) -> int:
  """A positive integer field; raises InputError for other values."""
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise unsupported(model, name, value, "a positive integer")
  return value


def check_number(model: str, name: str, value: object) -> None:
  """Raises InputError unless the value is a number and not negative."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
    raise unsupported(model, name, value, "a number that is not negative")


def check_flag(model: str, name: str, value: object) -> None:
  """Raises InputError unless the value is true or false."""
  if not isinstance(value, bool):
    raise unsupported(model, name, value, "true or false")


def check_choice(model: str, name: str, value: object, options: tuple[object, ...]) -> None:
  """Raises InputError unless the value is among the options."""
  if value not in options:
    raise unsupported(model, name, value, "one of " + ", ".join(map(repr, options)))
