"""Cached latents on disk: the outputs of frozen networks for each pair of a split.

A folder holds V views of each pair in ArrayRecord files, one record per view:

    pairs-SPLIT.array_record-...      record V row + view: latents, token ids, geometry, seeds
    captions-SPLIT.array_record-...   text embeddings, each caption once per shard, "" first
    index-SPLIT.npy                   the pair index of the split, see `pair_index`
    manifest.json                     fingerprints and options; it completes the folder

A record is the concatenation of its arrays, little-endian, with the names, dtypes and shapes of the
manifest's layout. Token ids and embeddings have the names that the pipeline gives them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.common import files, paths
from dmpo_jax.data import pair_index, tfds_folder
from dmpo_jax.data.latents import manifest_types
from dmpo_jax.data.latents.manifest_types import (
  CAPTION,
  DTYPES,
  GEOMETRY,
  KINDS,
  LATENTS,
  SCORES,
  SEEDS,
  SOURCE,
  Layout,
)
from dmpo_jax.data.pairs import check_text
from dmpo_jax.errors import InputError, short

VERSION = "2.0.0"
MANIFEST = "manifest.json"
MEAN, LOG_VARIANCE = 0, 1  # indices along the axis of the VAE posterior
AGAIN = "cache the latents again (dmpo-jax data cache-latents)"


class CachedPair(NamedTuple):
  """A stored view of a pair.

  Attributes:
    pair: "latents" `[2, 2, h, w, Z]`: image_0 and image_1 of the record, `MEAN` and `LOG_VARIANCE`
      of the VAE posterior; "geometry" int32 `[6]`; "caption" int32 `[]`, the caption's number in
      its shard; token ids int32 `[L]` by name; "seeds" int64 `[2]` and "scores" float32 `[2]` of
      image_0 and image_1, -1 and NaN where unknown (not in older caches); of edits "source"
      `[h, w, Z]`, the mode of the source image's posterior in the autoencoder's own units.
    text: Text embeddings by name; empty where they were not read.
  """

  pair: dict[str, np.ndarray]
  text: dict[str, np.ndarray]


def file_name(kind: str, split: str, shard: int, count: int) -> str:
  """Name of a shard of "pairs" or "captions"."""
  return f"{kind}-{split}.array_record-{shard:05d}-of-{count:05d}"


def token_ids(pair: Mapping[str, Any]) -> dict[str, Any]:
  """The token ids among the arrays of a pair's record, by name."""
  others = (LATENTS, GEOMETRY, CAPTION, SEEDS, SCORES, SOURCE)
  return {name: x for name, x in pair.items() if name not in others}


def bytes_by_kind(manifest: Mapping[str, Any]) -> dict[str, int]:
  """Bytes of the files of each kind."""
  made = manifest["files"]
  return {k: sum(f["bytes"] for n, f in made.items() if n.startswith(f"{k}-")) for k in KINDS}


def size_of(layout: Layout) -> int:
  """Bytes of a record."""
  return sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in layout)


def pack(layout: Layout, values: Mapping[str, np.ndarray]) -> bytes:
  """The record of some arrays.

  Args:
    layout: Names, dtypes and shapes.
    values: Arrays by name.

  Returns:
    Bytes.

  Raises:
    ValueError: An array does not fit the layout.
  """
  parts = []
  for name, dtype, shape in layout:
    value = np.asarray(values[name])
    if value.shape != tuple(shape) or value.dtype != DTYPES[dtype]:
      raise ValueError(f"{name} is {value.dtype} {value.shape}, the layout says {dtype} {shape}")
    parts.append(value.tobytes())
  return b"".join(parts)


def unpack(layout: Layout, record: bytes) -> dict[str, np.ndarray]:
  """The arrays of a record.

  Args:
    layout: Names, dtypes and shapes.
    record: From `pack`.

  Returns:
    Read-only arrays by name.

  Raises:
    ValueError: The record has another length.
  """
  if len(record) != size_of(layout):
    raise ValueError(f"it has {len(record)} bytes, not {size_of(layout)}")
  arrays, offset = {}, 0
  for name, dtype, shape in layout:
    count = math.prod(shape)
    arrays[name] = np.frombuffer(record, DTYPES[dtype], count, offset).reshape(shape)
    offset += count * DTYPES[dtype].itemsize
  return arrays


def read_manifest(folder: paths.Path) -> dict:
  """Reads the manifest of a folder after a check that its files are complete.

  Args:
    folder: A folder that `data cache-latents` wrote.

  Returns:
    The manifest.

  Raises:
    InputError: The folder is unfinished or of another version, or a file is missing or damaged.
  """
  folder = paths.parse(folder)
  check_text("the path of the folder", str(folder))  # ArrayRecord takes no other
  path = folder / MANIFEST
  if not path.is_file():
    raise InputError(
      f"{folder} holds no finished cache of latents ({MANIFEST} is missing); run an interrupted "
      "dmpo-jax data cache-latents again to resume it"
    )
  advice = f"copy the folder again or {AGAIN}"
  manifest = files.read_json(path, advice=advice)
  version, stored = manifest.get("version"), manifest.pop("sha256", None)
  if isinstance(version, str) and version != VERSION:
    raise InputError(
      f"{path} has version {short(version)}, this version of dmpo-jax reads {VERSION}, in which "
      f"arrays have the names that the pipeline gives them; {AGAIN}"
    )
  if stored != checksum(manifest):
    raise InputError(f"{path} is damaged: its checksum is wrong; {advice}")
  manifest_types.check(manifest, path, advice)
  split = manifest["options"]["split"]
  tfds_folder.check_shards(folder, manifest["files"], AGAIN)
  path = folder / pair_index.name(split)
  if not path.is_file() or sha256(path) != manifest["index"]:
    raise InputError(f"{path} is missing or damaged; copy it again or {AGAIN}")
  return manifest


class CachedPairSource:
  """The stored views of a folder by number; threads may read it at once.

  Args:
    folder: A folder that `data cache-latents` wrote.

  Attributes:
    manifest: See `read_manifest`.
    views: Number of views of each pair.

  Raises:
    InputError: See `read_manifest`.
  """

  def __init__(self, folder: paths.Path):
    self.folder = paths.parse(folder)
    self.manifest = read_manifest(self.folder)
    self.layout = self.manifest["layout"]
    self.views = self.manifest["options"]["augmentations"]
    self.pairs_per_shard = self.manifest["options"]["pairs_per_shard"]
    self.records, self.starts = {}, {}
    made = self.manifest["files"]
    for kind, layout in self.layout.items():
      if not layout:
        continue
      shards = {name: made[name] for name in sorted(made) if name.startswith(f"{kind}-")}
      self.starts[kind] = np.cumsum([0, *(file["records"] for file in shards.values())])
      self.records[kind] = tfds_folder.open_shards(self.folder, shards)

  def __len__(self) -> int:
    return self.manifest["source"]["pairs"]

  @property
  def has_embeddings(self) -> bool:
    """Whether text embeddings are stored."""
    return "captions" in self.records

  def read(self, row: int, view: int, embeddings: bool) -> CachedPair:
    """Reads a view of a pair.

    Args:
      row: Number of the pair in its split.
      view: 0 to views - 1.
      embeddings: Whether to read text embeddings too.

    Returns:
      `CachedPair`.

    Raises:
      ValueError: The record is damaged; ArrayRecord raises RuntimeError.
    """
    pair = unpack(self.layout["pairs"], self.records["pairs"][row * self.views + view])
    if not embeddings:
      return CachedPair(pair, {})
    shard, number = row // self.pairs_per_shard, int(pair[CAPTION])
    first, end = (int(self.starts["captions"][i]) for i in (shard, shard + 1))
    if not 0 <= number < end - first:
      raise ValueError(f"it has caption {number} of {end - first}")
    return CachedPair(pair, self._text(first + number))

  def null(self) -> dict[str, np.ndarray]:
    """The text embeddings of the empty caption, float32 by name, without a batch axis."""
    return {name: x.astype(np.float32) for name, x in self._text(0).items()}

  def _text(self, number: int) -> dict[str, np.ndarray]:
    return unpack(self.layout["captions"], self.records["captions"][number])


def checksum(manifest: Mapping[str, Any]) -> str:
  """SHA-256 of a manifest, which is stored in it as "sha256"."""
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256(path: paths.Path) -> str:
  """SHA-256 of a file in hexadecimal."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
