"""Types and ranges of the fields of a manifest of cached latents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from dmpo_jax.common import json_types, paths
from dmpo_jax.common.files import check_name, located
from dmpo_jax.common.json_types import COUNT, NUMBER, POSITIVE, Dict, List, Range
from dmpo_jax.data.latents import options as cache_options
from dmpo_jax.data.latents.options import Options
from dmpo_jax.errors import InputError, short

KINDS = ("pairs", "captions")
DTYPES = {
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "float16": np.dtype("<f2"),
  "float32": np.dtype("<f4"),
  "int32": np.dtype("<i4"),
  "int64": np.dtype("<i8"),
}
# Arrays of a pair's record that are not token ids.
LATENTS, GEOMETRY, CAPTION = "latents", "geometry", "caption"
# Mode of the source image's posterior, of edits.
SOURCE = "source"
# Of image_0 and image_1, -1 and NaN where unknown; older caches lack them.
SEEDS, SCORES = "seeds", "scores"
# [[name, dtype, shape], ...]
Layout = Sequence[tuple[str, str, Sequence[int]]]
MAX_RECORD_BYTES = 2**31

_SPLIT = "[a-z][a-z0-9_]*"
SCHEMA = {
  "source": {"pairs": POSITIVE, "fingerprint": str},
  "encoders": dict,
  "tokenizers": dict,
  "options": {
    "split": str,
    "size": int,
    "crop": str,
    "flip": bool,
    "augmentations": int,
    "seed": int,
    "dtype": str,
    "embeddings": bool,
    "batch_size": int,
    "pairs_per_shard": int,
  },
  "shards": POSITIVE,
  "layout": {kind: List(List(object)) for kind in KINDS},
  "captions": COUNT,
  "truncated": COUNT,
  "errors": Dict({"rms": NUMBER, "max": NUMBER, "scale": NUMBER}),
  "files": Dict(
    {"records": POSITIVE, "bytes": POSITIVE, "sha256": str},
    rf"({'|'.join(KINDS)})-{_SPLIT}\.array_record-[0-9]{{5}}-of-[0-9]{{5}}",
  ),
  "index": str,
}
SIDE = Range(1, 2**24)


def check(manifest: Mapping[str, Any], path: paths.Path, advice: str) -> None:
  """Checks that a manifest describes cached latents that can be read.

  Args:
    manifest: The manifest.
    path: Its file, for messages.
    advice: What the user can do about it.

  Raises:
    InputError: A value is missing, of another type or out of range, or values do not fit together.
  """
  json_types.check(manifest, SCHEMA, path, advice=advice)
  try:
    options = Options(**manifest["options"])
    cache_options.check(options)
    check_name(options.split, "split")
    if set(manifest["layout"]) != set(KINDS):
      raise InputError(f"layout is of {short(sorted(manifest['layout']))}")
    for kind in KINDS:
      _check_layout(manifest["layout"][kind], kind, path)
    _check_pairs(manifest["layout"]["pairs"], options)
    _check_records(manifest, options)
  except (InputError, TypeError) as error:
    raise InputError(f"{path} is damaged: {error}; {advice}") from error


def _check_layout(layout: Layout, kind: str, path: paths.Path) -> None:
  size, names = 0, []
  for i, entry in enumerate(layout):
    if len(entry) != 3 or not isinstance(entry[0], str) or entry[1] not in tuple(DTYPES):
      raise InputError(f"layout.{kind}[{i}] is {short(entry)}")
    name, dtype, shape = entry
    json_types.check(shape, List(SIDE), path, key=f"layout.{kind}[{i}]")
    size += DTYPES[dtype].itemsize * math.prod(shape)
    names.append(name)
  if len(set(names)) != len(names) or size > MAX_RECORD_BYTES:
    raise InputError(f"layout.{kind} has a name twice, or records of {size} bytes")


def _check_pairs(layout: Layout, options: Options) -> None:
  """Checks the arrays of a pair's record; others are token ids."""
  arrays = {name: (dtype, tuple(shape)) for name, dtype, shape in layout}
  arrays_shape = arrays.get(LATENTS, ("", ()))[1]
  for name in (LATENTS, GEOMETRY, CAPTION):
    with located(f"layout.pairs, {name}"):
      if name not in arrays:
        raise InputError("it is missing")
      dtype, shape = arrays.pop(name)
      expected = {
        LATENTS: dtype == options.dtype and len(shape) == 5 and shape[:2] == (2, 2),
        GEOMETRY: (dtype, shape) == ("int32", (6,)),
        CAPTION: (dtype, shape) == ("int32", ()),
      }
      if not expected[name]:
        raise InputError(f"it is {dtype} {shape}")
  expected_source = (options.dtype, tuple(arrays_shape[2:]))
  if arrays.pop(SOURCE, expected_source) != expected_source:
    raise InputError(f"layout.pairs, {SOURCE}: it is not {expected_source}")
  for name, dtype in ((SEEDS, "int64"), (SCORES, "float32")):
    if arrays.pop(name, (dtype, (2,))) != (dtype, (2,)):
      raise InputError(f"layout.pairs, {name}: it is not {dtype} (2,)")
  for name, (dtype, shape) in arrays.items():
    if dtype != "int32" or len(shape) != 1:
      raise InputError(f"layout.pairs, {short(name)}: token ids are {dtype} {shape}")
  if not arrays:
    raise InputError("layout.pairs has no token ids")


def _check_records(manifest: Mapping[str, Any], options: Options) -> None:
  """Checks the numbers of shards and records."""
  pairs, shards = manifest["source"]["pairs"], manifest["shards"]
  if shards != -(-pairs // options.pairs_per_shard):
    raise InputError(f"{pairs} pairs in {shards} shards of {options.pairs_per_shard}")
  others = [n for n in manifest["files"] if n.split("-", 1)[1].split(".")[0] != options.split]
  if others:
    raise InputError(f"{short(others[0])} is no file of split {options.split!r}")
  for kind in KINDS:
    prefix = f"{kind}-{options.split}."
    records = [f["records"] for name, f in manifest["files"].items() if name.startswith(prefix)]
    expected = shards if kind == "pairs" or manifest["layout"]["captions"] else 0
    if len(records) != expected:
      raise InputError(f"it names {len(records)} files of {kind}, not {expected}")
    # Each shard has the empty caption too.
    count = {"pairs": pairs * options.augmentations, "captions": manifest["captions"] + shards}
    if expected and sum(records) != count[kind]:
      raise InputError(f"{sum(records)} records of {kind}, not {count[kind]}")
