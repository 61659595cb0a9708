"""Scores of a folder of images, kept chunk by chunk, so that finished ones survive a kill."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dmpo_jax.common import files, json_types, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import diversity
from dmpo_jax.evaluation.scorers import Edits, Scorer
from dmpo_jax.evaluation.units import Units, chunks

CHUNK = 64  # images, rounded up to whole prompts
PIXELS = "pixels"
NUMBERS = json_types.List(json_types.NUMBER)
SCHEMA = {"key": str, "scores": NUMBERS, "vendi": NUMBERS, "distance": NUMBERS}

LOGGER = logging.getLogger(__name__)


class Scores(NamedTuple):
  """Scores of all images of a model, and the diversity of each prompt.

  Attributes:
    scores: float32 `[N]`.
    vendi: Vendi score of each prompt with two images or more, float64 `[G]`; empty if it was not
      asked for, or if a prompt has one image.
    distance: Mean pairwise distance of the same, float64 `[G]`.
  """

  scores: np.ndarray
  vendi: np.ndarray
  distance: np.ndarray


def score_chunks(
  out: paths.Path,
  images: Sequence[paths.Path],
  units: Units,
  scorer: Scorer,
  *,
  key: Mapping[str, Any],
  space: str | None,
  share: tuple[int, int] = (0, 1),
  read: Callable[[paths.Path], np.ndarray] | None = None,
  sources: Sequence[paths.Path] | None = None,
  progress: Callable = iter,
) -> None:
  """Scores the chunks of a model's images that are not scored yet.

  Args:
    out: Folder of the chunks' files.
    images: File of each image, N.
    units: Prompts and seeds of the images.
    scorer: The scorer.
    key: Everything that the scores depend on, in JSON; files of another key are written again.
    space: Where diversity is measured: "features" of this scorer, `PIXELS`, or None (not here).
    share: Index of this process, and number of processes that share the chunks.
    read: Reads an image as uint8 `[H, W, 3]`; None: `read_image`.
    sources: Of edits, file of the source image of each, N; None for others.
    progress: Wraps the sequence of chunks, for a progress bar.

  Raises:
    InputError: An image cannot be read, or a score is not finite; the message names the file.
  """
  todo = [
    (number, rows)
    for number, rows in enumerate(chunks(units.groups, CHUNK))
    if number % share[1] == share[0]
    and _read(_file(out, number), _key(key, units, rows), units.groups[rows], space) is None
  ]
  for number, rows in progress(todo):
    pictures = [(read or read_image)(path) for path in images[rows]]
    edits = None
    if scorer.needs_sources and sources is not None:
      captions = None if units.captions is None else units.captions[rows]
      edits = Edits([(read or read_image)(path) for path in sources[rows]], captions)
    scores = scorer.score(
      pictures, units.scored_prompts[rows], names=[str(p) for p in images[rows]], edits=edits
    )
    vendi, distance = diversity_of(pictures, scorer, units.groups[rows], space)
    content = {
      "key": _key(key, units, rows),
      "scores": [float(x) for x in scores],
      "vendi": vendi,
      "distance": distance,
    }
    path = _file(out, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content) + "\n")


def read_scores(
  out: paths.Path, units: Units, *, key: Mapping[str, Any], space: str | None
) -> Scores:
  """The scores of all chunks; arguments of `score_chunks`.

  Raises:
    InputError: A chunk is missing.
  """
  parts = []
  for number, rows in enumerate(chunks(units.groups, CHUNK)):
    part = _read(_file(out, number), _key(key, units, rows), units.groups[rows], space)
    if part is None:
      raise InputError(
        f"{_file(out, number)} is missing: all processes need the same folder, on a shared disk"
      )
    parts.append(part)
  return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def read_image(path: paths.Path) -> np.ndarray:
  """An image as uint8 `[H, W, 3]`; a grey one has three equal channels.

  Raises:
    InputError: The file is missing, damaged or transparent.
  """
  with (
    files.reading(path, "image", advice="sample it again"),
    Image.open(paths.readable(path)) as image,
  ):
    if image.mode not in ("L", "RGB"):
      raise InputError(f"{path} has the mode {image.mode}, expected RGB or L; convert it to RGB")
    return np.asarray(image.convert("RGB"))


def _file(out: paths.Path, number: int) -> paths.Path:
  return out / f"{number:05d}.json"


def _key(key: Mapping[str, Any], units: Units, rows: slice) -> str:
  """Digest of everything that the scores of a chunk depend on."""
  content = [key, units.prompts[rows], units.seeds[rows].tolist()]
  content += [] if units.captions is None else [list(map(list, units.captions[rows]))]
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: paths.Path, key: str, groups: np.ndarray, space: str | None) -> Scores | None:
  """The scores in a file; None if it is missing, damaged or of another key."""
  if not files.is_file(path):
    return None
  try:
    content = json_types.check(files.read_json(path), SCHEMA, path)
  except InputError as error:
    LOGGER.warning("%s; scoring again", error)
    return None
  if content["key"] != key:
    return None
  _, counts = np.unique(groups, return_counts=True)
  measured = len(counts) if space is not None and counts.min() > 1 else 0
  lengths = [len(content[name]) for name in ("scores", "vendi", "distance")]
  if lengths != [len(groups), measured, measured]:
    LOGGER.warning("%s does not hold the scores of its images; scoring again", path)
    return None
  return Scores(
    np.array(content["scores"], np.float32),
    np.array(content["vendi"], np.float64),
    np.array(content["distance"], np.float64),
  )


def diversity_of(
  pictures: Sequence[np.ndarray], scorer: Scorer, groups: np.ndarray, space: str | None
) -> tuple[list[float], list[float]]:
  """Vendi score and mean pairwise distance of each prompt.

  Args:
    pictures: uint8 `[H, W, 3]` each, N.
    scorer: Its image features are used in the space "features".
    groups: Prompt of each, `[N]`.
    space: "features", `PIXELS`, or None for no diversity.

  Returns:
    Two lists of G numbers; empty where a prompt has one image, or without a space.
  """
  members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
  if space is None or min(map(len, members)) < 2:
    return [], []
  if space == PIXELS:
    measure = diversity.pixel_distance
    features = lambda rows: np.stack([pictures[i].reshape(-1) / 255 for i in rows])  # noqa: E731
  else:
    measure = diversity.cosine_distance
    embedded = scorer.embed(pictures)
    features = functools.partial(np.take, embedded, axis=0)
  vendi = [diversity.vendi(features(rows)) for rows in members]
  return vendi, [measure(features(rows)) for rows in members]
