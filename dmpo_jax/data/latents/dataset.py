"""Encoded pairs that training reads: in the order, and with the labels, of the pairs themselves."""

import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.differences import describe, differences
from dmpo_jax.data.latents import records as encoded
from dmpo_jax.data.mixture import Folder, FolderLoader, Mixture
from dmpo_jax.errors import InputError

# What folders that are mixed must have in common.
SHARED = ("encoders", "tokenizers", "layout")


class CachedLatents:
  """Pairs in one or more encoded folders.

  In epoch e the view number e mod V of a pair is seen, V being the views of its folder: each as
  often as any other, and the first V epochs are those of training on images with the encoding's
  seed.

  Args:
    folders: What `data cache-latents` wrote.
    weights: Shares of the examples that come from each of them, > 0.
    ties: "soft" or "drop", see `Folder`.
    embeddings: Whether batches hold text embeddings; without, the text encoders run in each step.
    micro_conditioning: Whether batches hold the geometry, or that of an uncropped image.

  Attributes:
    manifest: Of the first folder; those of the others say the same of encoders and layout.
    size: Side of the images that were encoded.
    embeddings: As given.

  Raises:
    InputError: A folder cannot be used, folders do not fit together, or embeddings are asked for
      that are not stored.
  """

  def __init__(
    self,
    folders: Sequence[str],
    weights: Sequence[float],
    *,
    ties: str,
    embeddings: bool,
    micro_conditioning: bool,
  ):
    self.sources = [encoded.EncodedSource(pathlib.Path(folder)) for folder in folders]
    self.mixture = Mixture(
      [
        Folder(f, s.manifest["options"]["split"], ties, len(s), functools.partial(_get, s))
        for f, s in zip(folders, self.sources, strict=True)
      ],
      weights,
    )
    self.manifest = self.sources[0].manifest
    for folder, source in zip(folders, self.sources, strict=True):
      for part in SHARED:
        different = differences(self.manifest[part], source.manifest[part], prefix=part)
        if different:
          raise InputError(
            f"{folders[0]} and {folder} were not encoded alike:\n"
            + describe(different, first="in the first", second="in the second")
          )
      if embeddings and not source.has_embeddings:
        raise InputError(
          f"{folder} holds no text embeddings; encode with --text embeddings, or set "
          "config.data.embeddings=False: then the text encoders run in each step"
        )
    self.size = self.manifest["options"]["size"]
    self.embeddings, self.micro_conditioning = embeddings, micro_conditioning

  def __len__(self) -> int:
    return len(self.mixture)

  @property
  def captions(self) -> list[str]:
    """A new pipeline would make its vocabulary of them; there is none that could read codes."""
    raise InputError(
      "encoded pairs are read by the pipeline that encoded them: set config.pipeline to it"
    )

  def fingerprint(self) -> str:
    """Identifies the pairs that are used and every byte of what is stored of them.

    Returns:
      SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256(self.mixture.fingerprint().encode())
    for source in self.sources:
      digest.update(repr(sorted(f["sha256"] for f in source.manifest["files"].values())).encode())
    return digest.hexdigest()

  def null(self) -> dict[str, np.ndarray]:
    """The text embeddings of the empty caption, float32 by name; see `EncodedSource.null`."""
    return self.sources[0].null()

  def loader(
    self, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
  ) -> FolderLoader:
    """Batches for the pipeline that encoded the pairs.

    Columns, P rows each: latents `[P, 2, 2, h, w, Z]`, (preferred, rejected) by (mean, log
    variance) in the stored dtype; text, the cached embeddings by name in the stored dtype where
    they are asked for, else token ids by name, int32 `[P, L]`; example_id, label, weight and
    geometry as `FolderPairs.loader` has them, geometry always.

    Args:
      batch_size: Pairs in a batch over all processes.
      seed: Decides the order.
      process_index: Which part of each batch is given.
      process_count: Into how many parts batches are cut.

    Returns:
      `FolderLoader`.

    Raises:
      InputError: A number is out of range.
    """
    token_ids = encoded.token_ids(
      {name: shape for name, _, shape in self.manifest["layout"]["pairs"]}
    )
    return FolderLoader(
      self.mixture,
      self._read,
      self._collate,
      batch_size=batch_size,
      seed=seed,
      process_index=process_index,
      process_count=process_count,
      truncated=self.mixture.longer_than(max(shape[0] for shape in token_ids.values())),
    )

  def _read(self, folder: Folder, number: int, epoch: int, example_id: int) -> "_Example":
    p0, weight = (float(folder.index[number][name]) for name in ("p0", "weight"))
    return _Example(
      stored=folder.read(number, epoch, self.embeddings),
      swap=-1 if p0 < 0.5 else 1,
      example_id=example_id,
      label=max(p0, 1 - p0),
      weight=weight,
    )

  def _collate(self, examples: Sequence["_Example"]) -> dict[str, np.ndarray]:
    pairs, texts = ([getattr(e.stored, part) for e in examples] for part in ("pair", "text"))
    batch = {
      "latents": np.stack(
        [p[encoded.LATENTS][:: e.swap] for p, e in zip(pairs, examples, strict=True)]
      ),
      "example_id": np.array([e.example_id for e in examples], np.uint32),
    }
    if not self.embeddings:
      texts = [encoded.token_ids(pair) for pair in pairs]
    batch["text"] = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
    if self.mixture.some_uncertain:
      batch["label"] = np.array([e.label for e in examples], np.float32)
    if self.mixture.some_weighted:
      batch["weight"] = np.array([e.weight for e in examples], np.float32)
    sizes = np.array([pair[encoded.GEOMETRY] for pair in pairs], np.float32)
    if not self.micro_conditioning:
      sizes[:] = (self.size, self.size, 0, 0, self.size, self.size)
    return batch | {"geometry": sizes}


def _get(source: encoded.EncodedSource, row: int, epoch: int, embeddings: bool) -> encoded.Encoded:
  return source.read(row, epoch % source.views, embeddings)


class _Example(NamedTuple):
  """A view of a pair, what is swapped not swapped yet."""

  stored: encoded.Encoded
  swap: int
  example_id: int
  label: float
  weight: float
