"""Data sets in memory: images, captions and ids."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dmpo_jax.data.loader import Loader
from dmpo_jax.errors import InputError


@dataclass(frozen=True)
class Examples:
  """Captioned single images (K = 1) or preference pairs (K = 2).

  Attributes:
    images: float32 `[N, K, H, W, C]` in [-1, 1]; for pairs, axis 1 is (preferred, rejected).
    captions: N captions; the images of a pair share theirs.
    ids: uint32 `[N]`, unique: the random keys of an example derive from its id.
    labels: float32 `[N]` in [0, 1], probability that the first image of a pair is the preferred
      one; 1/2 is a tie. None: 1.
    weights: float32 `[N]`, finite and >= 0, factors of the examples' losses; None: 1.
    sources: float32 `[N, H, W, C]` in [-1, 1], the images that those of each example were edited
      from; None where they are no edits.

  Raises:
    InputError: A shape, dtype or length is wrong, a pixel is NaN or infinite, an id occurs twice, a
      label or weight is out of range, or single images have labels.
  """

  images: np.ndarray
  captions: list[str]
  ids: np.ndarray
  labels: np.ndarray | None = None
  weights: np.ndarray | None = None
  sources: np.ndarray | None = None

  def __post_init__(self):
    shape, n = np.shape(self.images), len(self.captions)
    if len(shape) != 5 or shape[0] != n or shape[1] not in (1, 2):
      raise InputError(f"images must be [{n}, 1 or 2, H, W, C] for {n} captions, got shape {shape}")
    if self.images.dtype != np.float32:
      raise InputError(f"images must be float32 in [-1, 1], got {self.images.dtype}")
    if np.shape(self.ids) != (n,) or self.ids.dtype != np.uint32:
      actual = f"{getattr(self.ids, 'dtype', type(self.ids).__name__)} {np.shape(self.ids)}"
      raise InputError(f"ids must be uint32 [{n}], got {actual}")
    if not all(isinstance(c, str) for c in self.captions):
      wrong = next(c for c in self.captions if not isinstance(c, str))
      raise InputError(f"captions must be strings, got {wrong!r}")
    bad = np.flatnonzero(~np.isfinite(self.images).all(axis=(1, 2, 3, 4)))
    if bad.size:
      raise InputError(
        f"{bad.size} examples hold NaN or infinite pixels, the first at row {bad[0]} "
        f"({self.captions[bad[0]]!r})"
      )
    if self.sources is not None:
      expected = (n, *shape[2:])
      if np.shape(self.sources) != expected or self.sources.dtype != np.float32:
        actual = f"{getattr(self.sources, 'dtype', type(self.sources).__name__)}"
        raise InputError(
          f"sources must be float32 {list(expected)}, one image as large as those of its example, "
          f"got {actual} {np.shape(self.sources)}"
        )
      bad = np.flatnonzero(~np.isfinite(self.sources).all(axis=(1, 2, 3)))
      if bad.size:
        raise InputError(f"{bad.size} sources hold NaN or infinite pixels, the first at {bad[0]}")
    values, counts = np.unique(self.ids, return_counts=True)
    if (counts > 1).any():
      raise InputError(f"id {values[counts > 1][0]} occurs more than once; ids must be unique")
    if self.labels is not None and shape[1] != 2:
      raise InputError("labels say which image of a pair is preferred; these are single images")
    for name, top in (("labels", 1.0), ("weights", np.finfo(np.float32).max)):
      array = getattr(self, name)
      if array is None:
        continue
      if np.shape(array) != (n,) or array.dtype != np.float32:
        actual = f"{getattr(array, 'dtype', type(array).__name__)} {np.shape(array)}"
        raise InputError(f"{name} must be float32 [{n}], got {actual}")
      wrong = np.flatnonzero(~((array >= 0) & (array <= top)))
      if wrong.size:
        limit = "in [0, 1]" if name == "labels" else "finite and at least 0"
        raise InputError(f"{name} must be {limit}, got {array[wrong[0]]} at row {wrong[0]}")

  def __len__(self) -> int:
    return len(self.captions)

  @property
  def has_sources(self) -> bool:
    """Whether the examples are edits of source images."""
    return self.sources is not None

  def fingerprint(self) -> str:
    """Fingerprint of the data set, equal for equal contents in one order.

    Returns:
      SHA-256 in hexadecimal, the same on every machine.
    """
    digest = hashlib.sha256(f"{self.images.shape}".encode())
    digest.update(np.ascontiguousarray(self.images, "<f4").data)
    digest.update(np.ascontiguousarray(self.ids, "<u4").data)
    for name in ("labels", "weights", "sources"):
      if getattr(self, name) is not None:
        digest.update(name.encode() + np.ascontiguousarray(getattr(self, name), "<f4").tobytes())
    for caption in self.captions:
      text = caption.encode()
      digest.update(len(text).to_bytes(8, "little") + text)  # tells "a", "b" from "ab", ""
    return digest.hexdigest()

  def loader(
    self,
    tokenize: Callable[[Sequence[str]], tuple[dict[str, np.ndarray], int]],
    *,
    channels: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ) -> Loader:
    """A loader of batches for a pipeline. Tokenizes all captions.

    Args:
      tokenize: [captions] -> (token ids by name, int32 `[N, L]` each; number of truncated
        captions).
      channels: Channels of the pipeline's images.
      batch_size: Examples of a batch over all processes.
      seed: Seed of the order.
      process_index: Number of this process; batches hold its part alone.
      process_count: Number of processes that share a batch in equal parts.

    Returns:
      `Loader`. A batch holds pixels, text (token ids by name), example_id, and label, weight and
      source where the data set has them.

    Raises:
      InputError: The images have another number of channels, or a number is out of range.
    """
    if self.images.shape[-1] != channels:
      raise InputError(
        f"the pipeline takes images of {channels} channels, the data set's are "
        f"{list(self.images.shape[2:])}"
      )
    ids, truncated = tokenize(self.captions)
    columns = {
      "pixels": self.images,
      "text": ids,
      "example_id": self.ids,
      "label": self.labels,
      "weight": self.weights,
      "source": self.sources,
    }
    return Loader(
      {name: column for name, column in columns.items() if column is not None},
      batch_size=batch_size,
      seed=seed,
      process_index=process_index,
      process_count=process_count,
      truncated=truncated,
    )
