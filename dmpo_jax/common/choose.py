"""Config sections that choose a function by its name and give its keyword arguments."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dmpo_jax.errors import InputError, unknown


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
    InputError: The name or a key is unknown, or an argument without default is missing.
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
  return function, arguments


def keyword_parameters(function: Callable) -> dict[str, inspect.Parameter]:
  """The keyword-only parameters of a function by name: the keys that a section may have."""
  return {
    key: parameter
    for key, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }
