"""Folders of InstructPix2Pix read as a table: NAME/prompt.json, NAME/SEED_0.jpg, NAME/SEED_1.jpg.

Every NAME and SEED is a row with the columns id (NAME/SEED), edit_prompt, original_image (SEED_0)
and edited_image (SEED_1). seeds.json lists them as [[NAME, [SEED, ...]], ...]; without it they are
the files that exist. A row that lacks a file is a bad row.
"""

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from dmpo_jax.common import files
from dmpo_jax.data import image_paths
from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.tables.chunk import Chunk, Table
from dmpo_jax.errors import InputError, short

TABLE = "."  # the root stands for the table
SEEDS, PROMPT = "seeds.json", "prompt.json"
IMAGE = re.compile(r"([0-9]+)_[01]\.jpg")
MAX_SEEDS_BYTES = 2**28
MAX_PROMPT_BYTES = 2**20


def is_one(root: pathlib.Path) -> bool:
  """Whether a folder has seeds.json, or folders with prompt.json."""
  if (root / SEEDS).is_file():
    return True
  return root.is_dir() and any((root / n / PROMPT).is_file() for n in sorted(os.listdir(root)))


def plan(
  root: pathlib.Path, file: str, columns: Sequence[str], *, optional: Sequence[str], rows: int
) -> Table:
  """Divides the edits into chunks.

  Args:
    root: Folder that holds the folders.
    file: `TABLE`.
    columns: Not used: the columns are fixed.
    optional: Not used.
    rows: Edits of a chunk.

  Returns:
    `Table`. Its fingerprint covers the names, not the content of the files.

  Raises:
    InputError: seeds.json is damaged, or there is no edit.
  """
  del columns, optional
  names = _edits(root)
  if not names:
    raise InputError(f"{root} holds no edit, NAME/{PROMPT} with NAME/SEED_0.jpg and SEED_1.jpg")
  count = len(names)
  chunks = [Chunk(file, i, min(rows, count - i), i, 0) for i in range(0, count, rows)]
  digest = hashlib.sha256("\0".join(f"{n}/{s}" for n, s in names).encode("utf-8", "replace"))
  return Table(chunks, digest.hexdigest())


def read(
  root: pathlib.Path, chunk: Chunk, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk; arguments and results as `tables.read` describes them."""
  del columns, scratch
  names = _edits(root)
  if len(names) < chunk.first + chunk.rows:
    raise InputError(f"{root} lost folders since the conversion began; start a new one")
  for number in range(chunk.first, chunk.first + chunk.rows):
    try:
      yield number, _row(root, *names[number])
    except InputError as error:
      yield number, error


def _edits(root: pathlib.Path) -> list[tuple[str, str]]:
  """(NAME, SEED) of all edits in order."""
  listed = root / SEEDS
  return _listed(listed, listed.stat().st_mtime_ns) if listed.is_file() else _found(root)


@functools.lru_cache(maxsize=1)
def _listed(path: pathlib.Path, changed: int) -> list[tuple[str, str]]:
  """The edits that seeds.json lists, read once for each time of its last change."""
  del changed
  names = files.read_json(path, kind=list, max_bytes=MAX_SEEDS_BYTES)
  result = []
  for entry in names:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], list):
      raise InputError(f"{path}: {short(entry)} is not [NAME, [SEED, ...]]")
    parts = [entry[0], *entry[1]]
    if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
      raise InputError(
        f"{path}: {short(entry)} holds names and seeds that are neither text nor int"
      )
    result += [(str(entry[0]), str(seed)) for seed in entry[1]]
  return result


@functools.lru_cache(maxsize=1)
def _found(root: pathlib.Path) -> list[tuple[str, str]]:
  """The edits of which a file exists, in the order of their names."""
  result = []
  for name in sorted(os.listdir(root)):
    if not (root / name).is_dir():
      continue
    matches = (IMAGE.fullmatch(file) for file in os.listdir(root / name))
    seeds = {match[1] for match in matches if match}
    result += [(name, seed) for seed in sorted(seeds)]
  return result


def _row(root: pathlib.Path, name: str, seed: str) -> dict:
  path = image_paths.inside(f"{name}/{PROMPT}", root)
  prompt = files.read_json(path, max_bytes=MAX_PROMPT_BYTES)
  return {
    "id": f"{name}/{seed}",
    "edit_prompt": row_values.text(prompt, "edit").strip(),
    "original_image": f"{name}/{seed}_0.jpg",
    "edited_image": f"{name}/{seed}_1.jpg",
  }
