"""The images of an evaluation: which prompt and which seed each has, the same for all models."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common import files, paths
from dmpo_jax.data.prompt_sets import PromptSet
from dmpo_jax.errors import InputError, short
from dmpo_jax.sampling.image_folder import MANIFEST

MOST_CATEGORIES = 20  # instructions that are categories of their own
ADVICE = "give a folder that dmpo-jax sample or dmpo-jax evaluate finished"


class Units(NamedTuple):
  """Prompt and seed of N images; the images of one prompt follow each other.

  Attributes:
    prompts: Prompt of each image, N.
    seeds: Seed of each image, uint32 `[N]`.
    groups: Number of the prompt of each image, int `[N]`, from 0 in steps of 0 or 1.
    categories: Category of each image, N; "" without one.
    places: Place of each prompt in its file, for messages ("FILE, line 3").
    sources: Of edits, file of the source image of each, N; None for others. A prompt is then an
      instruction for one source.
    captions: Of edits, captions of source and target of each, N; None without any.
  """

  prompts: list[str]
  seeds: np.ndarray
  groups: np.ndarray
  categories: list[str]
  places: Sequence[str] = ()
  sources: Sequence[str] | None = None
  captions: Sequence[tuple[str, str]] | None = None

  @property
  def scored_prompts(self) -> list[str]:
    """The prompts as scorers see them: of edits with captions, those of the target."""
    return self.prompts if self.captions is None else [after for _, after in self.captions]

  @property
  def num_prompts(self) -> int:
    """Number of prompts."""
    return int(self.groups[-1]) + 1


def of_prompts(prompts: PromptSet, *, images_per_prompt: int, first_seed: int = 0) -> Units:
  """Units with a seed of its own for each image, so that no two images of a model share noise.

      seed = first_seed + images_per_prompt * prompt + image

  Args:
    prompts: The prompts.
    images_per_prompt: Images of each, at least 1.
    first_seed: Seed of the first image.

  Returns:
    `Units`.
  """
  count = len(prompts.prompts) * images_per_prompt
  groups = np.repeat(np.arange(len(prompts.prompts)), images_per_prompt)
  return Units(
    [prompts.prompts[i] for i in groups],
    (first_seed + np.arange(count)).astype(np.uint32),
    groups,
    _categories([prompts.categories[i] for i in groups], prompts.prompts, prompts.sources, groups),
    prompts.places,
    prompts.sources and [prompts.sources[i] for i in groups],
    prompts.captions and [prompts.captions[i] for i in groups],
  )


def _categories(
  categories: list[str],
  prompts: Sequence[str],
  sources: Sequence[str] | None,
  groups: np.ndarray,
) -> list[str]:
  """Categories of images; of edits without any, the instructions where they are few."""
  few = sources is not None and 1 < len(set(prompts)) <= min(MOST_CATEGORIES, len(prompts) - 1)
  return [prompts[i] for i in groups] if few and not any(categories) else categories


def of_folder(folder: paths.Path) -> tuple[Units, list[str]]:
  """The units of a finished folder of samples, and the file names of its images.

  Args:
    folder: Folder with the manifest.json of `dmpo-jax sample`.

  Returns:
    (`Units` without categories but those of edits, N file names).

  Raises:
    InputError: The manifest is missing or damaged, an image of it is missing, or the images of a
      prompt do not follow each other.
  """
  path = folder / MANIFEST
  images = files.read_json(path, advice=ADVICE).get("images")
  if not isinstance(images, list) or not images:
    raise InputError(f"{path} lists no images; {ADVICE}")
  columns = [("prompt", str), ("seed", int), ("file", str)]
  if isinstance(images[0], dict):
    more = ("source", "source_caption", "target_caption")
    columns += [(key, str) for key in more if key in images[0]]
  values: dict[str, list] = {key: [] for key, _ in columns}
  for position, image in enumerate(images):
    where = f"{path}, image {position}"
    if not isinstance(image, dict):
      raise InputError(f"{where} is {short(image)}, expected an object; {ADVICE}")
    for key, kind in columns:
      value = image.get(key)
      if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {key} is {short(value)}, expected a {kind.__name__}; {ADVICE}")
      values[key].append(value)
    if not 0 <= image["seed"] < 2**32:
      raise InputError(f"{where}: seed is {image['seed']}, expected 0 to {2**32 - 1}; {ADVICE}")
    for key in ("file", "source"):
      if key in values and not files.is_file(files.inside(folder, image[key], "image")):
        raise InputError(f"{where}: {folder / image[key]} is missing; sample it again")
  prompts, names, sources = values["prompt"], values["file"], values.get("source")
  keys = list(zip(prompts, sources or names[:1] * len(prompts), strict=True))
  first = np.array([i == 0 or keys[i] != keys[i - 1] for i in range(len(keys))])
  if first.sum() != len(set(keys)):
    raise InputError(f"{path}: the images of one prompt must follow each other; sample again")
  groups = np.cumsum(first) - 1
  each = [prompts[i] for i in np.flatnonzero(first)]
  captions = [values.get(key) for key in ("source_caption", "target_caption")]
  units = Units(
    prompts,
    np.array(values["seed"], np.uint32),
    groups,
    _categories([""] * len(prompts), each, sources, groups),
    [f"{path}, image {i}" for i in np.flatnonzero(first)],
    sources and [str(folder / name) for name in sources],
    list(zip(*captions, strict=True)) if all(captions) else None,
  )
  return units, names


def check_same(units: Units, other: Units, where: object, reference: object) -> None:
  """Raises unless a folder of samples has the prompts and seeds of an evaluation.

  Args:
    units: The evaluation's.
    other: The folder's.
    where: The folder's manifest, for the message.
    reference: What has the evaluation's prompts, in words.

  Raises:
    InputError: The message names the first image that differs.
  """
  if (units.sources is None) != (other.sources is None):
    has, lacks = (reference, where) if other.sources is None else (where, reference)
    raise InputError(f"{has} has edits of source images, and {lacks} has none")
  for position, (a, b) in enumerate(zip(_pairs(units), _pairs(other), strict=False)):
    if a != b:
      what = "prompt" if a[0] != b[0] else "seed"
      i = 0 if what == "prompt" else 1
      raise InputError(
        f"{where}, image {position}: the {what} is {short(b[i], 200)}, and {short(a[i], 200)} in "
        f"{reference}; all models must be sampled with the same prompts and seeds"
      )
  if len(units.prompts) != len(other.prompts):
    raise InputError(
      f"{where} has {len(other.prompts)} images, and {reference} {len(units.prompts)}; all models "
      "must be sampled with the same prompts and seeds"
    )


def chunks(groups: np.ndarray, size: int) -> list[slice]:
  """Slices of whole groups of at least `size` images each, but the last.

  Args:
    groups: See `Units`.
    size: Smallest number of images.

  Returns:
    Consecutive slices that cover all images.
  """
  starts, result, begin = np.flatnonzero(np.diff(groups)) + 1, [], 0
  for end in [*starts.tolist(), len(groups)]:
    if end - begin >= size or end == len(groups):
      result.append(slice(begin, end))
      begin = end
  return result


def _pairs(units: Units) -> Sequence[tuple[str, int]]:
  return list(zip(units.prompts, units.seeds.tolist(), strict=True))
