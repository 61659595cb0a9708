"""Names of a conversion's files before they become the data set's files."""

import pathlib

from dmpo_jax.common import paths
from dmpo_jax.data.resumable import ResumableFolder

WORKING = "conversion"
BAD_ROWS = "bad_rows.jsonl"
PAGE = "report.html"


def folder(out: pathlib.Path) -> ResumableFolder:
  """The folder of a conversion to `out`."""
  out = paths.parse(out)
  return ResumableFolder(out, out / WORKING, out / "dataset_info.json", "conversion")


def as_text(name: str) -> str:
  """A file's name as text that UTF-8 can encode: bytes that are not UTF-8 as escapes."""
  return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def index(working: pathlib.Path, chunk: int) -> pathlib.Path:
  """Entries of a chunk's pairs, see `chunk_index`."""
  return working / f"{chunk:06d}.npy"


def bad_rows(working: pathlib.Path, chunk: int) -> pathlib.Path:
  """Rows of a chunk that were skipped, with the reasons."""
  return working / f"{chunk:06d}.{BAD_ROWS}"


def shard(working: pathlib.Path, chunk: int, split: str) -> pathlib.Path:
  """Records of a chunk's pairs in a split."""
  return working / f"{chunk:06d}-{split}.array_record"


def moves(working: pathlib.Path) -> pathlib.Path:
  """Final names of the chunks' shards, see `moves.write`."""
  return working / "moves.json"


def remove_temporary_files(working: pathlib.Path, chunk: int) -> None:
  """Removes the incomplete files that a killed process left of a chunk."""
  for path in working.glob(f"{chunk:06d}[-.]*.tmp"):
    path.unlink(missing_ok=True)
