"""Cached latents as a data set, with the order and the labels of their pairs."""

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.differences import describe, differences
from dmpo_jax.data.latents import records
from dmpo_jax.data.loader import Columns, FolderLoader
from dmpo_jax.data.mixture import FolderSplit, Mixture, folders_and_weights
from dmpo_jax.data.pairs import image_order
from dmpo_jax.errors import InputError

# Parts of the manifest that must be equal in all folders of a mixture.
SHARED = ("encoders", "tokenizers", "layout")


class CachedLatents:
  """Pairs that `dmpo-jax data cache-latents` wrote: no step runs the VAE or the text encoders.

  In epoch e a run sees view e mod V of a pair, with V views per pair. The first V epochs are those
  of training on images with the seed of the cache.

  Args:
    folder: A folder of cached latents, by the pipeline that the run starts from.
    folders: Several folders in place of `folder`, by one pipeline and of one size.
    weights: With `folders`, the relative frequency of the examples of each, > 0.
    ties: "soft" keeps ties with the label 1/2, "drop" leaves them out.
    embeddings: Whether the cached text embeddings are used; False where a text encoder is trained.
    micro_conditioning: Whether the geometry is that of the crops, which SDXL conditions on; False:
      that of images that were neither scaled nor cropped.
    swap_labels: Whether the preferred and the rejected image of each pair change places, p0 <-
      1 - p0: for the negative LoRA of Diffusion-NPO.
    prior_noise: Whether batches hold the seeds that the images were sampled from, so that each is
      noised with the noise that its sampling began with (PNAPO). Every record needs both seeds; the
      latents must be cached with crop "center", without flips, at the size they were sampled at.
    score_gaps: Whether batches hold the gap of each pair's scores, for config.beta. Every record
      needs both scores.
    drop_sources: Whether the source images of edits are left out, for a text-to-image pipeline.

  Attributes:
    has_sources: Whether batches hold the latents of source images.
    manifest: Manifest of the first folder.
    size: Side of the encoded images.
    embeddings: As given.

  Raises:
    InputError: A folder is unusable, folders do not fit together, or `embeddings` are not cached.
  """

  def __init__(
    self,
    *,
    folder: str = "",
    folders: Sequence[str] = (),
    weights: Sequence[float] = (),
    ties: str = "soft",
    embeddings: bool = True,
    micro_conditioning: bool = False,
    swap_labels: bool = False,
    prior_noise: bool = False,
    score_gaps: bool = False,
    drop_sources: bool = False,
  ):
    paths, weights = folders_and_weights(folder, folders, weights)
    self.sources = [records.CachedPairSource(path) for path in paths]
    self.mixture = Mixture(
      [
        FolderSplit(path, s.manifest["options"]["split"], ties, len(s), functools.partial(_get, s))
        for path, s in zip(paths, self.sources, strict=True)
      ],
      weights,
    )
    self.manifest = self.sources[0].manifest
    for path, source in zip(paths, self.sources, strict=True):
      for key in SHARED:
        different = differences(self.manifest[key], source.manifest[key], prefix=key)
        if different:
          raise InputError(
            f"the latents in {paths[0]} and {path} were cached differently; mix folders of one "
            "pipeline and the same options:\n"
            + describe(different, first="in the first", second="in the second")
          )
      if embeddings and not source.has_embeddings:
        raise InputError(
          f"{path} holds no text embeddings; cache them with --text embeddings, or set "
          "config.data.embeddings=False: then the text encoders run in each step"
        )
      _check_known(path, source, prior_noise, score_gaps)
    stored = {name for name, _, _ in self.manifest["layout"]["pairs"]}
    self.has_sources = records.SOURCE in stored and not drop_sources
    self.size = self.manifest["options"]["size"]
    self.embeddings, self.micro_conditioning = embeddings, micro_conditioning
    self.swap_labels, self.prior_noise, self.score_gaps = swap_labels, prior_noise, score_gaps

  def __len__(self) -> int:
    return len(self.mixture)

  @property
  def captions(self) -> list[str]:
    """Raises InputError: a new pipeline cannot read the latents of another one."""
    raise InputError("cached latents need the pipeline that encoded them: set config.pipeline")

  def fingerprint(self) -> str:
    """Fingerprint of the selected pairs and of every stored byte, SHA-256 in hexadecimal."""
    digest = hashlib.sha256(self.mixture.fingerprint().encode())
    for source in self.sources:
      digest.update(repr(sorted(f["sha256"] for f in source.manifest["files"].values())).encode())
    return digest.hexdigest()

  def null(self) -> dict[str, np.ndarray]:
    """The text embeddings of the empty caption, float32 by name, without a batch axis."""
    return self.sources[0].null()

  def loader(
    self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
  ) -> FolderLoader:
    """A loader of batches for the pipeline that encoded the pairs.

    A batch holds latents `[P, 2, 2, h, w, Z]`, (preferred, rejected) and (mean, log variance) of
    the VAE posterior, in the stored dtype; text, the embeddings by name in the stored dtype, or the
    token ids by name, int32 `[P, L]`, where `embeddings` is False; geometry; of edits
    source_latents `[P, h, w, Z]`, the mode of the source's posterior, in the stored dtype; and
    example_id, label and weight as `FolderPairs.loader` has them.

    Args:
      batch_size: Pairs of a batch over all processes.
      seed: Seed of the order.
      process_index: Number of this process; batches hold its part alone.
      process_count: Number of processes that share a batch in equal parts.

    Returns:
      `FolderLoader`.

    Raises:
      InputError: A number is out of range.
    """
    shapes = {name: shape for name, _, shape in self.manifest["layout"]["pairs"]}
    longest = max(shape[0] for shape in records.token_ids(shapes).values())
    return FolderLoader(
      self.mixture,
      self._read,
      self._collate,
      batch_size=batch_size,
      seed=seed,
      process_index=process_index,
      process_count=process_count,
      truncated=self.mixture.captions_longer_than(longest),
    )

  def _read(self, folder: FolderSplit, row: int, epoch: int, example_id: int) -> "_Example":
    p0, weight = (float(folder.index[row][name]) for name in ("p0", "weight"))
    cached = folder.read(row, epoch, self.embeddings)
    for option, name in ((self.prior_noise, records.SEEDS), (self.score_gaps, records.SCORES)):
      if option and not (cached.pair[name] >= (0 if name == records.SEEDS else -np.inf)).all():
        raise folder.lacks(row, name)
    return _Example(
      cached=cached,
      order=image_order(p0, self.swap_labels),
      example_id=example_id,
      label=max(p0, 1 - p0),
      weight=weight,
    )

  def _collate(self, examples: Sequence["_Example"]) -> Columns:
    pairs = [e.cached.pair for e in examples]
    texts = [
      e.cached.text if self.embeddings else records.token_ids(e.cached.pair) for e in examples
    ]
    geometry = np.array([pair[records.GEOMETRY] for pair in pairs], np.float32)
    if not self.micro_conditioning:
      geometry[:] = (self.size, self.size, 0, 0, self.size, self.size)
    batch = {
      "latents": np.stack([e.cached.pair[records.LATENTS][:: e.order] for e in examples]),
      "text": {name: np.stack([text[name] for text in texts]) for name in texts[0]},
      "geometry": geometry,
      "example_id": np.array([e.example_id for e in examples], np.uint32),
    }
    if self.has_sources:
      batch["source_latents"] = np.stack([pair[records.SOURCE] for pair in pairs])
    if self.prior_noise:
      seeds = [e.cached.pair[records.SEEDS][:: e.order] for e in examples]
      batch["seeds"] = np.stack(seeds).astype(np.uint32)
    if self.score_gaps:
      scores = np.stack([e.cached.pair[records.SCORES][:: e.order] for e in examples])
      batch["score_gap"] = scores[:, 0] - scores[:, 1]
    if self.mixture.some_uncertain:
      batch["label"] = np.array([e.label for e in examples], np.float32)
    if self.mixture.some_weighted:
      batch["weight"] = np.array([e.weight for e in examples], np.float32)
    return batch


def _check_known(
  path: str, source: records.CachedPairSource, prior_noise: bool, score_gaps: bool
) -> None:
  """Raises if a folder was cached without the seeds or scores that the options ask for."""
  stored, options = {name for name, _, _ in source.layout["pairs"]}, source.manifest["options"]
  for option, name in ((prior_noise, records.SEEDS), (score_gaps, records.SCORES)):
    if option and name not in stored:
      raise InputError(
        f"{path} was cached before caches kept the {name} of images; leave the option out, or "
        "cache the latents again"
      )
  if prior_noise and (options["flip"] or options["crop"] != "center"):
    raise InputError(
      f"{path} was cached with random crops or flips, which move the noise that an image was "
      "sampled from; cache it with --crop center and without --flip for prior_noise"
    )


def _get(
  source: records.CachedPairSource, row: int, epoch: int, embeddings: bool
) -> records.CachedPair:
  return source.read(row, epoch % source.views, embeddings)


class _Example(NamedTuple):
  """A view of a pair, its images in the record's order."""

  cached: records.CachedPair
  order: int
  example_id: int
  label: float
  weight: float
