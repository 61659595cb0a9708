"""JSON files of pipelines."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dmpo_jax.common import files
from dmpo_jax.common.files import located
from dmpo_jax.errors import InputError

__all__ = ["class_name", "located", "read_json", "write_json"]


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; raises InputError if there is none."""
  return files.read_json(file, advice="complete the folder or export the pipeline again")


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
