"""Encoded pairs on disk: what frozen networks make of a pair, so that no step does it again.

A folder holds the pairs of one split in ArrayRecord files, V views of each, one record a view:

    pairs-SPLIT.array_record-...      record V row + view: latents of both images, tokens, geometry
    captions-SPLIT.array_record-...   text embeddings, each caption once in a shard, "" before all
    index-SPLIT.npy                   that of the pairs, see `index`
    manifest.json                     what encoded them and how; there once all is finished

Arrays lie in a record one after the other, little-endian, with names, dtypes and shapes as the
manifest's layout says.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dmpo_jax.data import pair_index, tfds_folder
from dmpo_jax.errors import InputError

VERSION = "2.0.0"
MANIFEST = "manifest.json"
KINDS = ("pairs", "captions")
DTYPES = {
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype("<f2"),
  "float32": np.dtype("<f4"),
  "int32": np.dtype("<i4"),
}
# Arrays of a pair's record that are not token ids.
LATENTS, GEOMETRY, CAPTION = "latents", "geometry", "caption"
MEAN, LOG_VARIANCE = 0, 1  # places along the moments' axis

# [[name, dtype, shape], ...]
Layout = Sequence[tuple[str, str, Sequence[int]]]


class Encoded(NamedTuple):
  """A view of a pair as it is stored.

  Attributes:
    pair: "latents" `[image, moment, h, w, Z]`, moment `MEAN` or `LOG_VARIANCE`, the images in the
      record's order; "geometry" int32 `[6]`; "caption" int32 `[]`; and token ids int32 `[L]` under
      the names that the pipeline's tokenizer gives them.
    text: Text embeddings under the names that the pipeline's text encoders give them; empty where
      they were not asked for.
  """

  pair: dict[str, np.ndarray]
  text: dict[str, np.ndarray]


def file_name(kind: str, split: str, shard: int, count: int) -> str:
  """Name of a shard of "pairs" or "captions"."""
  return f"{kind}-{split}.array_record-{shard:05d}-of-{count:05d}"


def token_ids(pair: Mapping[str, Any]) -> dict[str, Any]:
  """The token ids among the arrays of a pair's record, by name."""
  return {k: x for k, x in pair.items() if k not in (LATENTS, GEOMETRY, CAPTION)}


def size_of(layout: Layout) -> int:
  """Bytes of a record's arrays."""
  return sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in layout)


def pack(layout: Layout, values: Mapping[str, np.ndarray]) -> bytes:
  """A record.

  Args:
    layout: Its arrays.
    values: By name, of these shapes and dtypes.

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
    layout: Its arrays.
    record: From `pack`.

  Returns:
    Read-only arrays by name.

  Raises:
    ValueError: The record has another length.
  """
  if len(record) != size_of(layout):
    raise ValueError(f"it has {len(record)} bytes, not {size_of(layout)}")
  found, at = {}, 0
  for name, dtype, shape in layout:
    count = math.prod(shape)
    found[name] = np.frombuffer(record, DTYPES[dtype], count, at).reshape(shape)
    at += count * DTYPES[dtype].itemsize
  return found


def read_manifest(folder: pathlib.Path) -> dict:
  """What encoded a folder and how, after a check that its files are there whole.

  Args:
    folder: What `data cache-latents` wrote.

  Returns:
    The manifest.

  Raises:
    InputError: The folder is no finished encoding or of another version, or a file is missing,
      truncated or not what was written.
  """
  folder = pathlib.Path(folder)
  path = folder / MANIFEST
  if not path.is_file():
    raise InputError(
      f"{folder} holds no finished encoding ({MANIFEST} is missing); if one was interrupted, the "
      "same dmpo-jax data cache-latents goes on where it was"
    )
  damaged = f"{path} is damaged; copy the folder again or encode anew"
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    version, checked = manifest["version"], manifest.pop("sha256")
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(damaged) from error
  if version != VERSION:
    raise InputError(f"{path} has version {version!r}, this program reads {VERSION}; encode anew")
  if checked != seal(manifest):
    raise InputError(damaged)
  files, split = manifest["files"], manifest["options"]["split"]
  tfds_folder.check_shards(folder, files, "encode anew")
  path = folder / pair_index.name(split)
  if not path.is_file() or digest(path) != manifest["index"]:
    raise InputError(f"{path} is missing or damaged; copy it again or encode anew")
  return manifest


class EncodedSource:
  """The encoded pairs of a folder by number; safe to read from several threads.

  Args:
    folder: What `data cache-latents` wrote.

  Attributes:
    manifest: See `read_manifest`.
    views: Views of each pair.

  Raises:
    InputError: See `read_manifest`.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder, self.manifest = pathlib.Path(folder), read_manifest(folder)
    self.layout = self.manifest["layout"]
    self.views = self.manifest["options"]["augmentations"]
    self.each = self.manifest["options"]["pairs_per_shard"]
    self.records, self.starts = {}, {}
    for kind, layout in self.layout.items():
      if not layout:
        continue
      files = self.manifest["files"]
      mine = {name: files[name] for name in sorted(files) if name.startswith(f"{kind}-")}
      self.starts[kind] = np.cumsum([0, *(file["records"] for file in mine.values())])
      self.records[kind] = tfds_folder.open_shards(self.folder, mine)

  def __len__(self) -> int:
    return self.manifest["source"]["pairs"]

  @property
  def has_embeddings(self) -> bool:
    """Whether text embeddings are stored."""
    return "captions" in self.records

  def read(self, row: int, view: int, embeddings: bool) -> Encoded:
    """A view of a pair.

    Args:
      row: Number of the pair in its split, 0 to len - 1.
      view: 0 to views - 1.
      embeddings: Whether to read text embeddings too.

    Returns:
      `Encoded`.

    Raises:
      ValueError: The record is damaged; ArrayRecord raises RuntimeError.
    """
    pair = unpack(self.layout["pairs"], self.records["pairs"][row * self.views + view])
    if not embeddings:
      return Encoded(pair, {})
    first = int(self.starts["captions"][row // self.each])
    return Encoded(pair, self._text(first + int(pair[CAPTION])))

  def null(self) -> dict[str, np.ndarray]:
    """The text embeddings of the empty caption, float32 by name, without the first axis."""
    return {name: x.astype(np.float32) for name, x in self._text(0).items()}

  def _text(self, number: int) -> dict[str, np.ndarray]:
    return unpack(self.layout["captions"], self.records["captions"][number])


def seal(manifest: Mapping[str, Any]) -> str:
  """SHA-256 of a manifest, which it carries as "sha256" to show that nobody changed it."""
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file in hexadecimal."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
