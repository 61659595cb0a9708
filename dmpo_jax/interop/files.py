"""JSON files of pipelines, and the files in a folder that a stranger may have made."""

import json
import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any

from dmpo_jax.common import files
from dmpo_jax.common.files import located
from dmpo_jax.errors import InputError
from dmpo_jax.models import config_fields

__all__ = ["class_name", "contents", "located", "names", "read_json", "write_json"]


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
  with located(where):
    classes = config_fields.class_names(config)
    if not classes:
      raise InputError("the config names no class (_class_name or architectures)")
  return classes[0]


def contents(root: pathlib.Path, name: str = "") -> list[str]:
  """The files of a folder in a pipeline, at every depth; none of them lies elsewhere.

  Args:
    root: The pipeline's folder.
    name: A folder in it; empty: the pipeline's folder itself.

  Returns:
    Paths relative to the folder, with slashes, sorted.

  Raises:
    InputError: A link leaves the pipeline's folder or leads to a folder or to nothing, or something
      is neither a file nor a folder.
  """
  top = files.inside(root, name, "folder") if name else root.resolve()
  result = []
  for parent, folders, leaves in os.walk(top, onerror=_raise):
    for leaf in (*folders, *leaves):
      path = pathlib.Path(parent, leaf)
      relative = path.relative_to(top).as_posix()
      if leaf in folders:
        if path.is_symlink():
          raise InputError(f"{path} is a link to a folder; put a copy of the folder in its place")
        continue
      # A snapshot in the hub's cache has links to blobs; what they hold is a file.
      target = files.inside(root, (pathlib.PurePosixPath(name) / relative).as_posix(), "file")
      if not target.exists():
        raise InputError(f"{path} is a link to nothing; download the pipeline again")
      if not stat.S_ISREG(target.stat().st_mode):
        raise InputError(f"{path} is neither a file nor a folder; remove it")
      result.append(relative)
  return sorted(result)


def names(folder: pathlib.Path) -> list[str]:
  """Names of the files directly in a folder, sorted; pipes and devices are no files."""
  return sorted(path.name for path in folder.iterdir() if path.is_file())


def _raise(error: OSError) -> None:
  raise error
