"""Scores of the images in a folder: which images, which prompts, and the table of scores."""

import csv
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.optional import import_optional
from dmpo_jax.data import images
from dmpo_jax.errors import InputError, short
from dmpo_jax.evaluation import score_files, units
from dmpo_jax.evaluation.scorers import Scorer
from dmpo_jax.sampling.image_folder import MANIFEST

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
TABLES = (".csv", ".parquet")
FILE_COLUMNS = ("file", "file_name", "image")


class Pictures(NamedTuple):
  """Images with their prompts.

  Attributes:
    files: N file names, relative to the folder.
    prompts: Prompt of each image; None without prompts.
    seeds: Seed of each image; None where it is not known.
    sources: Of edits, file of the source image of each; None for others.
    captions: Of edits, captions of source and target of each; None without any.
  """

  files: list[str]
  prompts: list[str] | None
  seeds: list[int] | None
  sources: list[str] | None = None
  captions: list[tuple[str, str]] | None = None


def find_pictures(folder: pathlib.Path, prompts: pathlib.Path | None) -> Pictures:
  """The images of a folder and their prompts.

  Args:
    folder: A folder of samples with its manifest, or any folder with images directly in it.
    prompts: Prompts of a folder without a manifest: .txt with a line for each image, in the order
      of the file names; .csv or .jsonl with columns `file` and `prompt`. None: from NAME.txt beside
      each image; where no image has one, there are no prompts.

  Returns:
    `Pictures`.

  Raises:
    InputError: There are no images, or prompts and images do not belong together.
  """
  if (folder / MANIFEST).is_file():
    if prompts is not None:
      raise InputError(f"{folder} has a {MANIFEST} with its prompts; leave --prompts out")
    found, names = units.of_folder(folder)
    seeds = found.seeds.tolist()
    return Pictures(names, found.prompts, seeds, found.sources, found.captions)
  if not folder.is_dir():
    raise InputError(f"{folder} is no folder; expected one with images")
  names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
  if not names:
    raise InputError(f"{folder} has no images ({', '.join(SUFFIXES)}) and no {MANIFEST}")
  if prompts is not None:
    return Pictures(names, _prompts_of(prompts, names), None)
  captions = [folder / f"{pathlib.Path(name).stem}.txt" for name in names]
  existing = [path.is_file() for path in captions]
  if not any(existing):
    return Pictures(names, None, None)
  if not all(existing):
    missing = captions[existing.index(False)]
    raise InputError(
      f"{missing} is missing, and {sum(existing)} of {len(names)} images have a caption beside "
      "them; write the others, or give --prompts"
    )
  return Pictures(names, [files.read_text(path).strip() for path in captions], None)


def _prompts_of(path: pathlib.Path, names: Sequence[str]) -> list[str]:
  """The prompt of each image, from a file of prompts."""
  kind = path.suffix.lower()
  if kind == ".txt":
    lines = files.split_lines(files.read_text(path))
    if len(lines) != len(names):
      raise InputError(
        f"{path} has {len(lines)} lines for {len(names)} images, expected one for each in the order"
        " of their names; or give a table with the columns file and prompt"
      )
    return lines
  if kind == ".jsonl":
    rows: list[Mapping[str, Any]] = files.read_json_lines(path)
  elif kind == ".csv":
    with files.reading(path, "CSV table"):
      rows = list(csv.DictReader(io.StringIO(files.read_text(path), newline="")))
  else:
    raise InputError(f"{path} is no file of prompts; expected .txt, .csv or .jsonl")
  prompts: dict[str, str] = {}
  for number, row in enumerate(rows, 1):
    where = f"{path}, row {number}"
    file = next((row[key] for key in FILE_COLUMNS if key in row), None)
    if not isinstance(file, str) or not isinstance(row.get("prompt"), str):
      columns = ", ".join(sorted(map(str, row)))
      raise InputError(f"{where} has no file and prompt, but {columns}")
    if prompts.setdefault(file, row["prompt"]) != row["prompt"]:
      raise InputError(f"{where}: {file} has another prompt in an earlier row")
  if missing := [name for name in names if name not in prompts]:
    raise InputError(f"{path} has no row for {missing[0]} ({len(missing)} images have none)")
  return [prompts[name] for name in names]


def read_picture(path: pathlib.Path) -> np.ndarray:
  """An image as uint8 `[H, W, 3]`: upright, grey as RGB, transparency over white.

  Raises:
    InputError: The image cannot be decoded; the message names the file.
  """
  return np.asarray(images.decode(images.load(path.name, path.parent).encoded))


def score_pictures(
  folder: pathlib.Path,
  pictures: Pictures,
  scorer: Scorer,
  parts: pathlib.Path,
  *,
  key: Any,
  progress: Callable = iter,
) -> np.ndarray:
  """Scores of the images of a folder; those in finished parts are not computed again.

  Args:
    folder: The folder.
    pictures: Its images, from `find_pictures`.
    scorer: The scorer.
    parts: Folder of the parts.
    key: What the scores depend on beside images and prompts, in JSON.
    progress: Wraps the sequence of parts, for a progress bar.

  Returns:
    float32 `[N]`.

  Raises:
    InputError: The scorer needs prompts and there are none, an image cannot be decoded, or a score
      is not finite; the message names the file.
  """
  if scorer.needs_prompts and pictures.prompts is None:
    raise InputError(
      f"{scorer.name} needs prompts, and {folder} has none: give --prompts, or write NAME.txt "
      "beside each image"
    )
  scorer.check_edits(pictures.sources is not None, pictures.captions is not None)
  pictured = [folder / name for name in pictures.files]
  sources = pictures.sources and [paths.parse(source) for source in pictures.sources]
  count = len(pictured)
  prompts = pictures.prompts or [""] * count
  rows = units.Units(prompts, np.zeros(count, np.uint32), np.arange(count), [""] * count)
  rows = rows._replace(captions=pictures.captions)
  stated = [*pictured, *(sources if sources and scorer.needs_sources else [])]
  stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in stated]
  settings = {"key": {"scorer": key, "images": stats}, "space": None}
  score_files.score_chunks(
    parts,
    pictured,
    rows,
    scorer,
    read=read_picture,
    sources=sources,
    progress=progress,
    **settings,
  )
  return score_files.read_scores(parts, rows, **settings).scores


def write_table(path: pathlib.Path, pictures: Pictures, scores: Mapping[str, np.ndarray]) -> None:
  """Writes file, prompt, seed and scores of each image as CSV or parquet, whole or not at all.

  Args:
    path: The file; its suffix is one of `TABLES`.
    pictures: The images.
    scores: Name of the scorer -> float32 `[N]`.

  Raises:
    InputError: The suffix is another, or parquet is not installed.
  """
  columns: dict[str, Any] = {"file": pictures.files}
  columns |= {} if pictures.prompts is None else {"prompt": pictures.prompts}
  columns |= {} if pictures.seeds is None else {"seed": pictures.seeds}
  columns |= {f"score {name}" if name in columns else name: x for name, x in scores.items()}
  check_table(path)
  if path.suffix == ".parquet":
    arrow = import_optional("pyarrow", extra="data")
    parquet = import_optional("pyarrow.parquet", extra="data")
    write_atomically(path, lambda stream: parquet.write_table(arrow.table(columns), stream))
    return
  stream = io.StringIO(newline="")
  writer = csv.writer(stream)
  writer.writerow(columns)
  writer.writerows(zip(*columns.values(), strict=True))
  write_atomically(path, stream.getvalue())


def check_table(path: pathlib.Path) -> None:
  """Raises InputError unless a table of scores can be written under a name."""
  if path.suffix not in TABLES:
    raise InputError(f"{path} ends in {short(path.suffix)}; expected {' or '.join(TABLES)}")
  if path.suffix == ".parquet":
    import_optional("pyarrow.parquet", extra="data")
