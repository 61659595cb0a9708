"""JSON files, and the place of an error in its message."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from dmpo_jax.errors import InputError


@contextlib.contextmanager
def located(where: object) -> Iterator[None]:
  """Puts the place in front of the message of an InputError."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{where}: {error}") from error


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; raises InputError if there is none."""
  if not file.is_file():
    raise InputError(f"{file} is missing; complete the folder or export the pipeline again")
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise InputError(f"{file} is no valid JSON: {error}") from error
  if not isinstance(content, dict):
    raise InputError(f"{file} is a {type(content).__name__}, expected a JSON object")
  return content


def write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes an object as diffusers and transformers do: sorted, indented by two."""
  try:
    text = json.dumps(dict(content), indent=2, sort_keys=True)
  except TypeError as error:
    raise InputError(f"{file.parent.name}/{file.name} cannot be written: {error}") from error
  file.write_text(text + "\n", encoding="utf-8")


def class_name(config: Mapping[str, Any], where: object) -> str:
  """The class of a config: `_class_name` (diffusers) or the first of `architectures`."""
  name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
  if not isinstance(name, str):
    raise InputError(f"{where}: the config names no class (_class_name or architectures)")
  return name
