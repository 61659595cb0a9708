"""Prompt sets as their authors publish them: text, TSV, CSV, JSON, JSON lines and parquet."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import files, paths
from dmpo_jax.data.convert import tables
from dmpo_jax.errors import InputError, short

FORMATS = (".txt", ".tsv", ".csv", ".json", ".jsonl", ".parquet")
# Names of the columns, in any case; the first one that a file has is read.
PROMPT_COLUMNS = ("prompt", "prompts", "caption", "text", "instruction", "edit_prompt", "edit")
CATEGORY_COLUMNS = ("category", "tag", "style")
# Of edits: the file of the source image, and captions of source and of the edit that is asked for.
# The last name of a source is also that of other columns: it counts where it names an image file.
SOURCE_COLUMNS = ("source_image", "input_image", "source")
CAPTION_COLUMNS = (
  ("source_caption", "input_caption", "original_prompt"),
  ("target_caption", "output_caption", "edited_prompt"),
)
# HPSv2's benchmark as one list: 800 prompts of each style, in this order, without a column for it.
HPSV2_STYLES, HPSV2_BLOCK = ("anime", "concept-art", "paintings", "photo"), 800
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
LARGEST_FILE = 2**26
ROWS_AT_A_TIME = 100_000

# (place in the file, values by column)
Rows = Iterable[tuple[str, Mapping[str, Any]]]


class PromptSet(NamedTuple):
  """Different prompts in the order of their file.

  Attributes:
    prompts: The prompts, without white space at their ends.
    categories: Category of each; "" where the file has none.
    places: Place of each in its file, for messages: "FILE, line 3".
    repeated: Number of rows that repeat an earlier prompt and were left out.
    sources: Of edits, file of the source image of each, as the set names it; None for others.
    captions: Of edits, captions of source and target of each; None where the file has none.
  """

  prompts: list[str]
  categories: list[str]
  places: list[str]
  repeated: int
  sources: list[str] | None = None
  captions: list[tuple[str, str]] | None = None


def read(path: paths.Path, *, category: str | None = None, limit: int | None = None) -> PromptSet:
  """Reads a prompt set.

  - .txt: a prompt per line; empty lines are skipped.
  - .tsv: tab-separated with a header line, quotation marks are part of the text (PartiPrompts).
  - .csv: comma-separated with a header line, with quoting.
  - .json: a list of texts or of objects (HPSv2); .jsonl: an object per line (GenEval).
  - .parquet: a table (Pick-a-Pic).

  The prompts stand in the column prompt, prompts, caption or text, categories in category, tag or
  style, in upper or lower case. A list of 3,200 prompts without categories is HPSv2's benchmark,
  whose styles are blocks of 800. A prompt that occurs again is left out: from the same seed it
  would give the same image.

  A column source_image, input_image or source (of names of image files) makes each row an edit of
  that image; a row is left out where both occur again. Columns source_caption and target_caption
  describe the images before and after it.

  Args:
    path: The file.
    category: Column of the categories; None: see above.
    limit: Number of prompts to keep, evenly spaced over the file; None: all.

  Returns:
    `PromptSet`.

  Raises:
    InputError: The file cannot be read, has no prompt or lacks a column, or a prompt is empty or no
      text; the message names file and row.
  """
  suffix = path.suffix.lower()
  if suffix not in FORMATS:
    raise InputError(
      f"{path}: prompts are read from {', '.join(FORMATS)}; rename the file, or write one prompt "
      "per line into a .txt file"
    )
  if suffix == ".txt":
    if category is not None:
      raise InputError(f"{path} is a text file and has no column {short(category)}; leave it out")
    rows: Rows = [(where, {"prompt": text}) for where, text in _text(path)]
  elif suffix == ".tsv":
    rows = _tab_separated(path)
  elif suffix in (".csv", ".parquet"):
    rows = _table(path, category)
  else:
    rows = _json(path)
  rows = list(rows)
  if not rows:
    raise InputError(f"{path} has no prompt")
  return limited(_checked(path, rows, category), limit)


def lines(path: paths.Path) -> list[str]:
  """The prompts of a text file, one per line; empty lines are skipped.

  Raises:
    InputError: The file cannot be read or has no prompt.
  """
  prompts = [text for _, text in _text(path)]
  if not prompts:
    raise InputError(f"{path} has no prompt; write one per line")
  return prompts


def _text(path: paths.Path) -> Iterator[tuple[str, str]]:
  for number, line in enumerate(_lines(path, "give a text file with one prompt per line"), 1):
    if line.strip():
      yield f"{path}, line {number}", line.strip(" \t")


def _lines(path: paths.Path, advice: str) -> list[str]:
  text = files.read_text(path, advice=advice, pipes=True, max_bytes=LARGEST_FILE)
  return files.split_lines(text)


def _tab_separated(path: paths.Path) -> Rows:
  """Rows of tab-separated text without quoting."""
  head, *rest = _lines(path, "save it as UTF-8") or [""]
  names = [name.strip() for name in head.split("\t")]
  for number, line in enumerate(rest, 2):
    if not line.strip():
      continue
    values = line.split("\t")
    where = f"{path}, line {number}"
    if len(values) > len(names):
      raise InputError(f"{where} has {len(values)} fields, the first line names {len(names)}")
    # Spreadsheets leave out empty fields at the end of a line.
    yield where, dict(zip(names, values + [""] * (len(names) - len(values)), strict=True))


def _table(path: paths.Path, category: str | None) -> Rows:
  """Rows of CSV and parquet."""
  of_edits = (*SOURCE_COLUMNS, *CAPTION_COLUMNS[0], *CAPTION_COLUMNS[1])
  names = (*PROMPT_COLUMNS, *CATEGORY_COLUMNS, *of_edits)
  known = [name for column in names for name in _cases(column)]
  known += [category] if category is not None and category not in known else []
  table = tables.plan(path.parent, path.name, (), rows=ROWS_AT_A_TIME, optional=known)
  for chunk in table.chunks:
    for number, row in tables.read(path.parent, chunk, known):
      where = f"{path}, row {number}"
      if isinstance(row, InputError):
        raise InputError(f"{where}: {row}")
      # Of a parquet file only these columns are read; the others are named in an error.
      yield where, row if row else dict.fromkeys(table.not_read)


def _json(path: paths.Path) -> Rows:
  """Entries of a JSON list, or of JSON lines."""
  if path.suffix.lower() == ".jsonl":
    lines = _lines(path, "save it as UTF-8")
    entries = [
      (f"{path}, line {number}", files.parse_json(line, f"{path}, line {number}", object))
      for number, line in enumerate(lines, 1)
      if line.strip()
    ]
  else:
    values = files.read_json(path, kind=list, max_bytes=LARGEST_FILE)
    entries = [(f"{path}, entry {number}", value) for number, value in enumerate(values)]
  for where, value in entries:
    if isinstance(value, str):
      yield where, {"prompt": value}
    elif isinstance(value, dict):
      yield where, value
    else:
      raise InputError(f"{where} is {short(value)}, expected a text or an object with a prompt")


def _checked(
  path: paths.Path, rows: Sequence[tuple[str, Mapping[str, Any]]], category: str | None
) -> PromptSet:
  """The prompts and categories of rows."""
  where, first = rows[0]
  column = _column(first, PROMPT_COLUMNS)
  if column is None:
    raise InputError(
      f"{path} has no column for prompts, one of {', '.join(PROMPT_COLUMNS)}; "
      f"{where} has {short(list(first), 200)}"
    )
  if category is not None and category not in first:
    raise InputError(f"{path} has no column {short(category)}; {where} has {short(list(first))}")
  category = category or _column(first, CATEGORY_COLUMNS)
  is_hpsv2 = category is None and len(rows) == HPSV2_BLOCK * len(HPSV2_STYLES)
  source = _source_column(first)
  captions = [_column(first, names) for names in CAPTION_COLUMNS] if source else [None, None]
  kept: dict[tuple[str, str], tuple[str, str, tuple[str, str]]] = {}
  for position, (where, row) in enumerate(rows):
    prompt = _text_in(row, column, where)
    if not prompt.strip():
      raise InputError(f"{where}: the prompt is empty; write one, or remove the row")
    if is_hpsv2 and path.suffix.lower() == ".json":
      group = HPSV2_STYLES[position // HPSV2_BLOCK]
    else:
      group = "" if category is None else str(row.get(category) or "").strip()
    file = _text_in(row, source, where) if source else ""
    if source and not file.strip():
      raise InputError(f"{where}: {source} is empty; expected the file of the image to edit")
    texts = tuple(_text_in(row, name, where).strip() if all(captions) else "" for name in captions)
    kept.setdefault((prompt.strip(), file.strip()), (group, where, texts))
  return PromptSet(
    [prompt for prompt, _ in kept],
    [group for group, _, _ in kept.values()],
    [where for _, where, _ in kept.values()],
    len(rows) - len(kept),
    [file for _, file in kept] if source else None,
    [texts for _, _, texts in kept.values()] if all(captions) else None,
  )


def _text_in(row: Mapping[str, Any], column: str, where: str) -> str:
  """The text in a column of a row."""
  value = row.get(column)
  if not isinstance(value, str):
    what = f"{column} is {short(value)}" if column in row else f"there is no {column}"
    raise InputError(f"{where}: {what}, expected a text")
  return value


def _source_column(row: Mapping[str, Any]) -> str | None:
  """Name of the column of source images; None without one."""
  name = _column(row, SOURCE_COLUMNS)
  if name is None or name.lower() != SOURCE_COLUMNS[-1]:
    return name
  value = row[name]
  return name if isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES) else None


def limited(prompts: PromptSet, limit: int | None) -> PromptSet:
  """Evenly spaced prompts of a set; None: all. Raises InputError for a limit below 1."""
  if limit is not None and limit < 1:
    raise InputError(f"the number of prompts must be at least 1, got {limit}")
  count = len(prompts.prompts)
  if limit is None or limit >= count:
    return prompts
  rows = np.linspace(0, count - 1, limit).round().astype(int)
  columns = (prompts.prompts, prompts.categories, prompts.places, prompts.sources, prompts.captions)
  chosen = [None if column is None else [column[i] for i in rows] for column in columns]
  return PromptSet(*chosen[:3], prompts.repeated, *chosen[3:])


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
  lower = {key.lower(): key for key in reversed(row)}
  return next((lower[name] for name in names if name in lower), None)


def _cases(name: str) -> tuple[str, str, str]:
  return name, name.capitalize(), name.upper()
