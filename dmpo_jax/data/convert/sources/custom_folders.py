"""One's own pairs in three folders: winner/NAME.png, loser/NAME.png, captions/NAME.txt."""

import hashlib
import pathlib
from collections.abc import Iterator

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources.raw_pair import Draft, swapped
from dmpo_jax.data.convert.tables import Piece, Table
from dmpo_jax.data.images import inside
from dmpo_jax.data.pairs import MAX_PROMPT_CHARACTERS, randomly_ordered
from dmpo_jax.errors import InputError

FOLDERS = ("winner", "loser", "captions")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
VOTES = False


def names(root: pathlib.Path) -> list[str]:
  """File names of the winners in order.

  Raises:
    InputError: One of the three folders is missing, or there is no image.
  """
  missing = [f for f in FOLDERS if not (root / f).is_dir()]
  if missing:
    raise InputError(f"{root} needs the folders {', '.join(FOLDERS)}; missing: {missing}")
  found = sorted(p.name for p in (root / "winner").iterdir() if p.suffix.lower() in SUFFIXES)
  if not found:
    raise InputError(f"{root / 'winner'} holds no image ({', '.join(SUFFIXES)})")
  return found


def plan(root: pathlib.Path, *, rows: int) -> Table:
  """Cuts the folder into pieces of so many pairs; the fingerprint is of names, not of content.

  Args:
    root: The folder.
    rows: Pairs in a piece.

  Returns:
    `Table`.

  Raises:
    InputError: A folder is missing, there is no image, or two winners share a name.
  """
  found = names(root)
  stems = [pathlib.PurePath(name).stem for name in found]
  twice = next((a for a, b in zip(sorted(stems), sorted(stems)[1:], strict=False) if a == b), None)
  if twice is not None:
    raise InputError(f"{root / 'winner'} holds two images named {twice!r}; names must be unique")
  count = len(found)
  pieces = [Piece("winner", i, min(rows, count - i), i, 0) for i in range(0, count, rows)]
  return Table(
    pieces, hashlib.sha256("\0".join(found).encode("utf-8", "surrogateescape")).hexdigest()
  )


def read(root: pathlib.Path, piece: Piece) -> Iterator[tuple[int, dict | InputError]]:
  """The rows of a piece: winner's and loser's path and the caption.

  Args:
    root: The folder.
    piece: From `plan`.

  Yields:
    (number of the pair, its values or what is wrong with it).
  """
  found = names(root)
  if len(found) < piece.first + piece.rows:
    raise InputError(f"{root / 'winner'} lost files since the conversion began")
  for number in range(piece.first, piece.first + piece.rows):
    try:
      yield number, _row(root, found[number])
    except InputError as error:
      yield number, error


def _row(root: pathlib.Path, winner: str) -> dict:
  stem = pathlib.PurePath(winner).stem
  losers = [stem + s for s in SUFFIXES if (root / "loser" / (stem + s)).exists()]
  if (root / "loser" / winner).exists():
    losers = [winner]
  if len(losers) != 1:
    raise InputError(
      f"loser/ must hold one image {stem!r} like winner/{winner}, found {losers or 'none'}"
    )
  try:
    with inside(f"captions/{stem}.txt", root).open("rb") as stream:
      caption = stream.read(4 * MAX_PROMPT_CHARACTERS + 1)
  except OSError as error:
    raise InputError(f"cannot read captions/{stem}.txt: {error.strerror}") from error
  if len(caption) > 4 * MAX_PROMPT_CHARACTERS:
    raise InputError(f"captions/{stem}.txt is longer than {MAX_PROMPT_CHARACTERS} characters")
  return {
    "id": stem,
    "prompt": row_values.text({"caption": caption.strip()}, "caption"),
    "winner": f"winner/{winner}",
    "loser": f"loser/{losers[0]}",
  }


def drafts(row: row_values.Row, where: str, labels: str) -> list[Draft]:
  """The pair of a row, in random order.

  Args:
    row: From `read`.
    where: Not used: names are ids.
    labels: Not used: folders tell the choice alone.

  Returns:
    One draft.

  Raises:
    InputError: A value is missing or of the wrong type.
  """
  name = row_values.text(row, "id")
  winner, loser = row_values.image(row, "winner"), row_values.image(row, "loser")
  draft = Draft(name, row_values.text(row, "prompt"), winner, loser, 1.0)
  return [draft if randomly_ordered(name) else swapped(draft)]
