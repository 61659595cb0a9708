"""Three folders read as a table: winner/NAME.png, loser/NAME.png, captions/NAME.txt.

A row has the columns of a custom table: id (NAME), prompt, image_0, image_1 and label_0. The order
of the two images is random, because a position that gives away the label teaches nothing else.
"""

import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.tables.chunk import Chunk, Table
from dmpo_jax.data.images import inside
from dmpo_jax.data.pairs import MAX_PROMPT_CHARACTERS, preferred_first
from dmpo_jax.errors import InputError

PREFERRED, REJECTED, CAPTIONS = FOLDERS = ("winner", "loser", "captions")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


def plan(root: pathlib.Path, file: str, columns: Sequence[str], *, rows: int) -> Table:
  """Divides the pairs into chunks.

  Args:
    root: Folder that holds the three folders.
    file: Folder of the preferred images relative to `root`.
    columns: Not used: the columns are fixed.
    rows: Pairs of a chunk.

  Returns:
    `Table`. Its fingerprint covers the images' names, not their content.

  Raises:
    InputError: A folder is missing, there is no image, or two preferred images share a name.
  """
  del columns
  names = _names(root)
  stems = sorted(pathlib.PurePath(name).stem for name in names)
  repeated = next((a for a, b in itertools.pairwise(stems) if a == b), None)
  if repeated is not None:
    raise InputError(f"{root / PREFERRED} holds two images named {repeated!r}; rename one of them")
  count = len(names)
  chunks = [Chunk(file, i, min(rows, count - i), i, 0) for i in range(0, count, rows)]
  digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
  return Table(chunks, digest.hexdigest())


def read(
  root: pathlib.Path, chunk: Chunk, columns: Sequence[str], *, scratch: pathlib.Path | None = None
) -> Iterator[tuple[int, dict | InputError]]:
  """Rows of a chunk; arguments and results as `tables.read` describes them."""
  del columns, scratch
  names = _names(root)
  if len(names) < chunk.first + chunk.rows:
    raise InputError(f"{root / PREFERRED} lost files since the conversion began; start a new one")
  for number in range(chunk.first, chunk.first + chunk.rows):
    try:
      yield number, _row(root, names[number])
    except InputError as error:
      yield number, error


def _names(root: pathlib.Path) -> list[str]:
  """File names of the preferred images, sorted."""
  missing = [folder for folder in FOLDERS if not (root / folder).is_dir()]
  if missing:
    raise InputError(f"{root} needs the folders {', '.join(FOLDERS)}; missing: {missing}")
  names = sorted(p.name for p in (root / PREFERRED).iterdir() if p.suffix.lower() in SUFFIXES)
  if not names:
    raise InputError(f"{root / PREFERRED} holds no image ({', '.join(SUFFIXES)})")
  return names


def _row(root: pathlib.Path, preferred: str) -> dict:
  stem = pathlib.PurePath(preferred).stem
  rejected = [stem + s for s in SUFFIXES if (root / REJECTED / (stem + s)).exists()]
  if (root / REJECTED / preferred).exists():
    rejected = [preferred]
  if len(rejected) != 1:
    raise InputError(
      f"{REJECTED}/ must hold one image {stem!r} like {PREFERRED}/{preferred}, "
      f"found {rejected or 'none'}"
    )
  try:
    with inside(f"{CAPTIONS}/{stem}.txt", root).open("rb") as stream:
      caption = stream.read(4 * MAX_PROMPT_CHARACTERS + 1)
  except OSError as error:
    raise InputError(f"cannot read {CAPTIONS}/{stem}.txt: {error.strerror}") from error
  if len(caption) > 4 * MAX_PROMPT_CHARACTERS:
    raise InputError(f"{CAPTIONS}/{stem}.txt is longer than {MAX_PROMPT_CHARACTERS} characters")
  images = f"{PREFERRED}/{preferred}", f"{REJECTED}/{rejected[0]}"
  first = preferred_first(stem)
  return {
    "id": stem,
    "prompt": row_values.text({"caption": caption.strip()}, "caption"),
    "image_0": images[0 if first else 1],
    "image_1": images[1 if first else 0],
    "label_0": 1.0 if first else 0.0,
  }
