"""Final names of the chunks' shards, by which an interrupted conversion knows its finished files.

The last step of a conversion gives each shard its final name, or writes it anew without the dropped
records. Before it begins, `moves.json` lists the names. A shard that is written anew loses the
checksum that its chunk's completion marker has; a file beside it in the working folder has its own.
"""

import json
import pathlib
from collections.abc import Mapping

from dmpo_jax.common import files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data import resumable
from dmpo_jax.data.convert import paths
from dmpo_jax.data.resumable import Fingerprint, ResumableFolder
from dmpo_jax.errors import InputError


def write(working: pathlib.Path, names: Mapping[str, str]) -> None:
  """Writes the final names.

  Args:
    working: The working folder.
    names: Name of a chunk's shard -> its name in the data set.
  """
  write_atomically(paths.moves(working), json.dumps(dict(names), sort_keys=True), scratch=working)


def write_fingerprint(working: pathlib.Path, final: pathlib.Path) -> None:
  """Writes the fingerprint of a shard that was written anew."""
  path = _fingerprint_path(working, final.name)
  write_atomically(path, json.dumps(resumable.fingerprint(final)), scratch=working)


def restart_damaged(folder: ResumableFolder, chunks: list[int]) -> list[int]:
  """Takes back the completion of chunks whose files are damaged or gone.

  Args:
    folder: The conversion's folder.
    chunks: Numbers of the chunks to check.

  Returns:
    Numbers of the chunks that must be converted again.
  """
  names = _read(folder.working)

  def is_whole(path: pathlib.Path, expected: Fingerprint) -> bool:
    if path.exists() or path.name not in names:
      return resumable.matches(path, expected)
    final = folder.out / names[path.name]
    anew = _fingerprint_path(folder.working, final.name)
    if anew.exists():
      expected = Fingerprint(*files.read_json(anew, kind=list))
    return resumable.matches(final, expected)

  def remove(chunk: int) -> None:
    for name, final in names.items():
      if name.startswith(f"{chunk:06d}-"):
        (folder.out / final).unlink(missing_ok=True)
        _fingerprint_path(folder.working, final).unlink(missing_ok=True)

  return folder.restart_damaged(chunks, is_whole, remove)


def _fingerprint_path(working: pathlib.Path, final: str) -> pathlib.Path:
  return working / f"{final}.sha256"


def _read(working: pathlib.Path) -> Mapping[str, str]:
  """The final names; none if they are not written yet, or damaged."""
  try:
    names = files.read_json(paths.moves(working))
  except InputError:
    return {}
  return {k: v for k, v in names.items() if isinstance(v, str) and "/" not in v}
