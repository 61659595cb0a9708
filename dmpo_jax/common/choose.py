"""A choice that a config section makes: a name, and the fields that go with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from dmpo_jax.errors import InputError, unknown


def choose(
  kind: str, section: Mapping[str, Any], fields: Mapping[str, Sequence[str]]
) -> tuple[str, dict[str, Any]]:
  """The name in a section, and its fields, all of which it must have and no others.

  Args:
    kind: What is chosen, in words ("timestep sampler").
    section: `name` and fields.
    fields: Name -> the fields that go with it.

  Returns:
    (name, fields).

  Raises:
    InputError: The name or a field is unknown, or a field is missing.
  """
  given = dict(section)
  name = given.pop("name", None)
  if name not in fields:
    raise unknown(kind, name, fields)
  for field in given:
    if field not in fields[name]:
      raise unknown(f"field of {kind} {name!r}", field, fields[name])
  for field in fields[name]:
    if field not in given:
      raise InputError(f"{kind} {name!r} needs the field {field!r}")
  return name, given
