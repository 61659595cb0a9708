"""Config sections that choose a function by its name and give its keyword arguments."""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from dmpo_jax.errors import InputError, short, unknown


def select(
  kind: str,
  section: Mapping[str, Any],
  options: Mapping[str, Callable],
  *,
  renamed: Mapping[str, str] | None = None,
  also: Iterable[str] = (),
) -> tuple[Callable, dict[str, Any]]:
  """The function that a section names, and the section's other keys as its keyword arguments.

  Args:
    kind: What the section selects, in words ("loss").
    section: A mapping with `name` and the function's keyword-only arguments.
    options: Functions by name.
    renamed: Former name of a function or a key -> its name.
    also: Keys of the section beside the function's that were taken out of it, for messages.

  Returns:
    (function, keyword arguments).

  Raises:
    InputError: The name or a key is unknown, an argument without default is missing, or a value has
      another type than its parameter.
  """
  arguments = dict(section)
  name = arguments.pop("name", None)
  if name not in options:
    raise unknown(kind, name, options, renamed=renamed)
  function = options[name]
  parameters = keyword_parameters(function)
  for key in arguments:
    if key not in parameters:
      raise unknown(f"key of {kind} {name!r}:", key, [*parameters, *also], renamed=renamed)
  for key, parameter in parameters.items():
    if parameter.default is inspect.Parameter.empty and key not in arguments:
      raise InputError(f"{kind} {name!r} needs the key {key!r}; it has no default")
    if key in arguments and not _has_type(arguments[key], parameter.annotation):
      raise InputError(
        f"{kind} {name!r}: {key} must be {_in_words(parameter.annotation)}, "
        f"got {short(arguments[key])}"
      )
  return function, arguments


def keyword_parameters(function: Callable) -> dict[str, inspect.Parameter]:
  """The keyword-only parameters of a function by name: the keys that a section may have."""
  return {
    key: parameter
    for key, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }


def _has_type(value: Any, annotation: Any) -> bool:
  """Whether a value of a config can be the argument of a parameter with that annotation.

  A number of a config is no bool, an integer may stand for a float, and a list for any sequence.
  Annotations of other kinds (a wrapped function) accept everything.
  """
  if isinstance(annotation, types.UnionType):
    return any(_has_type(value, option) for option in typing.get_args(annotation))
  origin = typing.get_origin(annotation) or annotation
  if origin is Sequence:
    is_sequence = isinstance(value, tuple | list)
    return is_sequence and all(_has_type(x, *typing.get_args(annotation)) for x in value)
  if origin in (int, float):
    number = Integral if origin is int else Real
    return isinstance(value, number) and not isinstance(value, bool)
  return isinstance(value, origin) if origin in (bool, str, types.NoneType) else True


def _in_words(annotation: Any) -> str:
  if isinstance(annotation, types.UnionType):
    return " or ".join(_in_words(option) for option in typing.get_args(annotation))
  if typing.get_origin(annotation) is Sequence:
    return f"a tuple, each of its elements {_in_words(*typing.get_args(annotation))}"
  words = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}
  return words.get(annotation, "None")
