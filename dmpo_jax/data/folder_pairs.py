"""Pairs of converted folders, decoded as a run needs them.

The first image of an example is the one more probably preferred: images are swapped where p0 < 1/2,
and the label is max(p0, 1 - p0). A tie keeps the order of its record and has the label 1/2.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.data import crops, tfds_folder
from dmpo_jax.data.loader import Columns, FolderLoader
from dmpo_jax.data.mixture import FolderSplit, Mixture, folders_and_weights, have_sources
from dmpo_jax.data.pairs import image_order
from dmpo_jax.errors import InputError, unknown

# [captions] -> (token ids by name, int32 [N, L] each; number of truncated captions)
Tokenize = Callable[[Sequence[str]], tuple[dict[str, np.ndarray], int]]


class FolderPairs:
  """Preference pairs that `dmpo-jax data convert` wrote, read from disk as they are needed.

  Args:
    folder: A converted folder.
    folders: Several converted folders, in place of `folder`.
    weights: With `folders`, the relative frequency of the examples of each, > 0: (3, 1) equals
      (0.75, 0.25). A folder of few pairs and a large weight repeats its pairs more often.
    size: Side of the square images in pixels; the shorter side is scaled to it.
    split: Name of the split, of each folder.
    crop: Square of the scaled image: "center", or "random", sampled anew in each epoch.
    flip: Whether half of the pairs are flipped, sampled anew in each epoch.
    views: "joint": both images of a pair have the same crop and flip; "separate": each has its own.
    decoding: "exact"; "draft" decodes JPEGs at 1/2, 1/4 or 1/8 of their size where that is at least
      `size`, which takes a fraction of the time and changes pixels by a level or two.
    ties: "soft" keeps ties with the label 1/2, "drop" leaves them out.
    micro_conditioning: Whether batches hold the geometry of the crops, which SDXL conditions on.
    swap_labels: Whether the preferred and the rejected image of each pair change places, p0 <-
      1 - p0: for the negative LoRA of Diffusion-NPO.
    prior_noise: Whether batches hold the seeds that the images were sampled from, so that each is
      noised with the noise that its sampling began with (PNAPO). Every record needs both seeds, and
      images of `size`; with crop "center" and without flips.
    score_gaps: Whether batches hold the gap of each pair's scores, for config.beta. Every record
      needs both scores.
    drop_sources: Whether the source images of edits are left out, for a text-to-image pipeline.

  Attributes:
    has_sources: Whether batches hold source images. A source has the crop and the flip of the
      record's image_0. One of another size is scaled to what image_0 is scaled to.

  Raises:
    InputError: A folder is unusable or an option is invalid, or some pairs are edits of source
      images and others are not.
  """

  def __init__(
    self,
    *,
    folder: str = "",
    folders: Sequence[str] = (),
    weights: Sequence[float] = (),
    size: int,
    split: str = "train",
    crop: str = "center",
    flip: bool = False,
    views: str = "joint",
    decoding: str = "exact",
    ties: str = "soft",
    micro_conditioning: bool = False,
    swap_labels: bool = False,
    prior_noise: bool = False,
    score_gaps: bool = False,
    drop_sources: bool = False,
  ):
    crops.check(size=size, crop=crop, channels=3)
    if views not in crops.VIEWS:
      raise unknown("choice for views", views, crops.VIEWS)
    if decoding not in crops.DECODING:
      raise unknown("choice for decoding", decoding, crops.DECODING)
    if micro_conditioning and views == "separate":
      raise InputError(
        "micro_conditioning describes one crop for both images of a pair; choose views='joint'"
      )
    if prior_noise and (flip or crop != "center" or views != "joint"):
      raise InputError(
        "prior_noise is the noise of whole images, which a random crop or a flip would move: "
        "choose crop='center', flip=False, views='joint'"
      )
    paths, weights = folders_and_weights(folder, folders, weights)
    sources = [(path, tfds_folder.PairSource(path, split)) for path in paths]
    self.mixture = Mixture(
      [FolderSplit(path, split, ties, len(s), s.__getitem__) for path, s in sources], weights
    )
    self.swap_labels, self.prior_noise, self.score_gaps = swap_labels, prior_noise, score_gaps
    self.size, self.decoding, self.micro_conditioning = size, decoding, micro_conditioning
    self.has_sources = not drop_sources and have_sources(self.mixture.folders)
    self.drop_sources = drop_sources
    if self.has_sources and views == "separate":
      raise InputError(
        "an edit keeps what its source image shows where it shows it, so that both edits of a pair "
        "have the crop of their source; choose views='joint'"
      )
    self.views, self.sample_crop = views, functools.partial(crops.sample, crop=crop, flip=flip)

  def __len__(self) -> int:
    return len(self.mixture)

  @property
  def captions(self) -> list[str]:
    """All captions, for the vocabulary of a new pipeline. Reads every record."""
    return [f.read(i).prompt for f in self.mixture.folders for i in range(len(f))]

  def fingerprint(self) -> str:
    """Fingerprint of the selected pairs, without reading images; see `Mixture.fingerprint`."""
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
    """A loader of batches for a pipeline.

    A batch holds pixels uint8 `[P, 2, H, W, C]`; text, the token ids by name; example_id uint32;
    label float32, missing where every label is certain; weight float32, missing where all are 1;
    with `prior_noise` seeds uint32 `[P, 2]`; with `score_gaps` score_gap float32 `[P]`, the first
    image's score less the second's; of edits source uint8 `[P, H, W, C]`;
    and with `micro_conditioning` geometry float32 `[P, 6]`: original height and width, top and left
    of the crop in the scaled image, height and width of the crop, all of the record's image_0.

    Args:
      tokenize: The pipeline's tokenizers.
      channels: Channels of the pipeline's images: 3, or 1 (luma).
      batch_size: Pairs of a batch over all processes.
      seed: Seed of order and crops.
      process_index: Number of this process; batches hold its part alone.
      process_count: Number of processes that share a batch in equal parts.

    Returns:
      `FolderLoader`. Its `truncated` counts captions as the conversion did: exactly if that had a
      tokenizer, else by their number of words, which misses some.

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
      truncated=self.mixture.captions_longer_than(longest),
    )

  def _read(
    self, seed: int, channels: int, folder: FolderSplit, row: int, epoch: int, example_id: int
  ) -> "_Example":
    pair = folder.read(row)
    sample = functools.partial(self.sample_crop, seed, epoch, example_id)
    first, second = sample(), sample(image=1) if self.views == "separate" else sample()
    load = functools.partial(crops.load, size=self.size, channels=channels, decoding=self.decoding)
    if not self.drop_sources:
      folder.check_source(row, pair.condition, self.has_sources)
    try:
      views = [load(pair.image_0, first), load(pair.image_1, second)]
      source = load(pair.condition, first, like=views[0][1][:2])[0] if self.has_sources else None
    except InputError as error:
      raise folder.damaged(row, error) from error
    seeds, scores = (pair.seed_0, pair.seed_1), (pair.score_0, pair.score_1)
    self._check_known(folder, row, views, seeds, scores)
    order = image_order(pair.p0, self.swap_labels)
    return _Example(
      pixels=tuple(pixels for pixels, _ in views[::order]),
      caption=pair.prompt,
      example_id=example_id,
      label=max(pair.p0, 1 - pair.p0),
      weight=pair.weight,
      # Always of image_0, so that the geometry does not reveal which image is preferred.
      geometry=(*views[0][1], self.size, self.size),
      seeds=seeds[::order],
      score_gap=order * (scores[0] - scores[1]) if self.score_gaps else 0.0,
      source=source,
    )

  def _check_known(
    self, folder: FolderSplit, row: int, views: Sequence, seeds: tuple, scores: tuple
  ) -> None:
    """Raises if a record lacks the seeds or scores that the options ask for."""
    for option, values, name in (
      (self.prior_noise, seeds, "seeds"),
      (self.score_gaps, scores, "scores"),
    ):
      if option and None in values:
        raise folder.lacks(row, name)
    sizes = {view[1][:2] for view in views}
    if self.prior_noise and sizes != {(self.size, self.size)}:
      raise InputError(
        f"record {folder.records[row]} of split {folder.split!r} in {folder.path} has images of "
        f"{sorted(sizes)} pixels; prior_noise needs images as they were sampled, of size "
        f"{self.size}"
      )

  def _collate(self, tokenize: Tokenize, examples: Sequence["_Example"]) -> Columns:
    column = {name: [getattr(e, name) for e in examples] for name in _Example._fields}
    batch = {
      "pixels": crops.stack(column["pixels"]),
      "text": tokenize(column["caption"])[0],
      "example_id": np.array(column["example_id"], np.uint32),
    }
    optional = {
      "label": self.mixture.some_uncertain,
      "weight": self.mixture.some_weighted,
      "geometry": self.micro_conditioning,
      "score_gap": self.score_gaps,
    }
    if self.has_sources:
      batch["source"] = np.stack(column["source"])
    if self.prior_noise:
      batch["seeds"] = np.array(column["seeds"], np.uint32)
    floats = {n: np.array(column[n], np.float32) for n, present in optional.items() if present}
    return batch | floats


class _Example(NamedTuple):
  """A decoded pair, the preferred image first."""

  pixels: tuple[np.ndarray, np.ndarray]
  caption: str
  example_id: int
  label: float
  weight: float
  geometry: tuple[int, ...]
  seeds: tuple[int, int]
  score_gap: float
  source: np.ndarray | None
