"""Pairs that training reads from disk: converted folders, mixed, shuffled and decoded as they come.

The first image of an example is the one more probably preferred: images are swapped where p0 < 1/2,
and the label is max(p0, 1 - p0). A tie keeps the order of its record and has the label 1/2.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.data import crops, tfds_folder
from dmpo_jax.data.mixture import Folder, FolderLoader, Mixture
from dmpo_jax.errors import InputError, unknown

# [captions] -> (columns of token ids by name, int32 [N, L] each; how many captions were cut)
Tokenize = Callable[[Sequence[str]], tuple[dict[str, np.ndarray], int]]


class FolderPairs:
  """Pairs in one or more converted folders.

  Args:
    folders: The folders.
    weights: Shares of the examples that come from each of them, > 0.
    split: Which split of each.
    size: Side of the square images in pixels.
    crop: "center" or "random", see `augment.draw`.
    flip: Whether half of the views are flipped.
    views: "joint": both images of a pair are seen alike; "separate": each gets a view of its own.
    decoding: "exact", or "draft": large JPEGs are decoded smaller, see `images.draft`.
    ties: "soft" or "drop", see `Folder`.
    micro_conditioning: Whether examples tell sizes and crops, as SDXL asks for them.

  Raises:
    InputError: A folder cannot be used or an option does not exist.
  """

  def __init__(
    self,
    folders: Sequence[str],
    weights: Sequence[float],
    *,
    split: str,
    size: int,
    crop: str,
    flip: bool,
    views: str,
    decoding: str,
    ties: str,
    micro_conditioning: bool,
  ):
    crops.check(size=size, crop=crop, channels=3)
    if views not in crops.VIEWS:
      raise unknown("choice for views", views, crops.VIEWS)
    if decoding not in crops.DECODING:
      raise unknown("choice for decoding", decoding, crops.DECODING)
    if micro_conditioning and views == "separate":
      raise InputError(
        "micro_conditioning tell one crop for both images of a pair; choose views='joint'"
      )
    sources = [(folder, tfds_folder.PairSource(pathlib.Path(folder), split)) for folder in folders]
    self.mixture = Mixture(
      [Folder(f, split, ties, len(s), s.__getitem__) for f, s in sources], weights
    )
    self.size, self.decoding, self.micro_conditioning = size, decoding, micro_conditioning
    self.views, self.view = views, functools.partial(crops.draw, crop=crop, flip=flip)

  def __len__(self) -> int:
    return len(self.mixture)

  @property
  def captions(self) -> list[str]:
    """All captions; reads every record once (only a vocabulary made of them needs it)."""
    return [f.read(i).prompt for f in self.mixture.folders for i in range(len(f))]

  def fingerprint(self) -> str:
    """Identifies the pairs that are used, the images unread; see `Mixture.fingerprint`."""
    return self.mixture.fingerprint()

  def loader(
    self,
    tokenize: Tokenize,
    *,
    channels: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ) -> FolderLoader:
    """Batches for a pipeline.

    Columns, P rows each: pixels uint8 `[P, 2, H, W, C]`; text, the tokenizer's by name;
    example_id uint32; label float32, left out where every pair is certain; weight float32, left out
    where all are 1; where asked for, geometry float32 `[P, 6]`: original height and width, top and
    left of the crop in the scaled image, height and width of the result, all of image_0 of the
    record.

    Args:
      tokenize: Captions to token ids.
      channels: Of the images that the pipeline takes: 3, or 1 (luma).
      batch_size: Pairs in a batch over all processes.
      seed: Decides order and views.
      process_index: Which part of each batch is given.
      process_count: Into how many parts batches are cut.

    Returns:
      `FolderLoader`. Its `truncated` counts captions as the conversion did: exactly if that was
      given a tokenizer, else those that are too long by their number of words alone.

    Raises:
      InputError: A number is out of range.
    """
    crops.check(size=self.size, crop="center", channels=channels)
    longest = max(ids.shape[1] for ids in tokenize([""])[0].values())
    return FolderLoader(
      self.mixture,
      functools.partial(self._read, seed, channels),
      functools.partial(self._collate, tokenize),
      batch_size=batch_size,
      seed=seed,
      process_index=process_index,
      process_count=process_count,
      truncated=self.mixture.longer_than(longest),
    )

  def _read(
    self, seed: int, channels: int, folder: Folder, number: int, epoch: int, example_id: int
  ) -> "_Example":
    pair = folder.read(number)
    draw = functools.partial(self.view, seed, epoch, example_id)
    views = (draw(), draw(image=1) if self.views == "separate" else draw())
    look = functools.partial(crops.look, size=self.size, channels=channels, decoding=self.decoding)
    try:
      seen = [look(pair.image_0, views[0]), look(pair.image_1, views[1])]
    except InputError as error:
      raise folder.damaged(number, error) from error
    swap = -1 if pair.p0 < 0.5 else 1
    return _Example(
      images=tuple(pixels for pixels, _ in seen[::swap]),
      caption=pair.prompt,
      example_id=example_id,
      label=max(pair.p0, 1 - pair.p0),
      weight=pair.weight,
      # Which image is stored first says nothing about which is preferred.
      geometry=(*seen[0][1], self.size, self.size),
    )

  def _collate(self, tokenize: Tokenize, examples: Sequence["_Example"]) -> dict[str, np.ndarray]:
    column = {name: [getattr(e, name) for e in examples] for name in _Example._fields}
    batch = {"pixels": crops.stack(column["images"]), "text": tokenize(column["caption"])[0]}
    batch["example_id"] = np.array(column["example_id"], np.uint32)
    there = {
      "label": self.mixture.some_uncertain,
      "weight": self.mixture.some_weighted,
      "geometry": self.micro_conditioning,
    }
    return batch | {n: np.array(column[n], np.float32) for n, wanted in there.items() if wanted}


class _Example(NamedTuple):
  """A decoded pair; fields as the columns of a batch."""

  images: tuple[np.ndarray, np.ndarray]
  caption: str
  example_id: int
  label: float
  weight: float
  geometry: tuple[int, ...]
