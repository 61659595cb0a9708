"""Encoding of converted pairs, once and for all: in shards, by any number of hosts, resumable.

The networks are functions of arrays (`LatentEncoders`): nothing here knows a model. The
split is cut into shards of equally many pairs. Each is encoded by one host alone and appears whole
or not at all; whoever finds all of them finished writes the manifest, without which training takes
the folder for unfinished. Images are gone through in batches of one size that begin anew in each
shard, so the bytes do not depend on interruptions or on how many hosts or devices there were.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.data import crops, pair_index, tfds_folder
from dmpo_jax.data.latents import records as encoded
from dmpo_jax.data.latents.rounding import merge
from dmpo_jax.data.latents.shard import Job, LatentEncoders, done_path, encode_shard
from dmpo_jax.data.mixture import Folder, Mixture
from dmpo_jax.errors import InputError, unknown

PLAN = "plan.json"
WORKING = "encoding"


class Options(NamedTuple):
  """How pairs are encoded.

  Attributes:
    split: Which split.
    size: Side of the square images in pixels.
    crop: "center" or "random", see `augment.draw`.
    flip: Whether half of the views are flipped.
    augmentations: Views of each pair. View v is the one that training on images with the seed
      `seed` sees in epoch v.
    seed: Decides the views.
    dtype: What floats are stored as: "float16", "bfloat16" or "float32".
    embeddings: Whether text embeddings are stored beside the tokens.
    batch_size: Pairs that a device takes at a time: the last bits depend on it.
    pairs_per_shard: Pairs in a file.
  """

  split: str = "train"
  size: int = 512
  crop: str = "center"
  flip: bool = False
  augmentations: int = 1
  seed: int = 0
  dtype: str = "float16"
  embeddings: bool = True
  batch_size: int = 1
  pairs_per_shard: int = 1000


def check(options: Options) -> None:
  """Refuses options that make no encoding; raises InputError."""
  crops.check(size=options.size, crop=options.crop, channels=3)
  if options.dtype not in ("float16", "bfloat16", "float32"):
    raise unknown("dtype to store", options.dtype, ("float16", "bfloat16", "float32"))
  for name in ("augmentations", "batch_size", "pairs_per_shard"):
    if getattr(options, name) < 1:
      raise InputError(f"{name} must be at least 1, got {getattr(options, name)}")
  if not 0 <= options.seed < 2**32:
    raise InputError(f"seed must be in [0, 2**32), got {options.seed}")
  if options.augmentations > 1 and options.crop == "center" and not options.flip:
    raise InputError(
      f"{options.augmentations} augmentations of a center crop without flips are all the same; "
      "choose random crops, flips, or one augmentation"
    )


def encode(
  source: pathlib.Path,
  out: pathlib.Path,
  encoders: LatentEncoders,
  options: Options,
  *,
  host: int = 0,
  hosts: int = 1,
  advance: Callable[[int], None] = lambda pairs: None,
) -> dict | None:
  """Encodes a split, or goes on where an encoding was interrupted.

  Args:
    source: What `data convert` wrote.
    out: Folder that becomes the encoded data set; all hosts must see the same one.
    encoders: The networks.
    options: How.
    host: Number of this host, 0 to hosts - 1.
    hosts: How many hosts share the work.
    advance: Is called with the number of pairs of each batch that is done, and of shards that were
      there already.

  Returns:
    The manifest, or None while shards of other hosts are missing.

  Raises:
    InputError: The source or an option is bad, the folder holds something else, or a number cannot
      be stored.
    OSError: A file cannot be written.
  """
  check(options)
  crops.check(size=options.size, crop=options.crop, channels=encoders.channels)
  if not (hosts >= 1 and 0 <= host < hosts):
    raise InputError(f"host {host} of {hosts}: hosts count from 0")
  source, out = pathlib.Path(source), pathlib.Path(out)
  pairs = tfds_folder.PairSource(source, options.split)
  folder = Folder(str(source), options.split, "soft", len(pairs), pairs.__getitem__)
  plan = {
    "version": encoded.VERSION,
    "source": {"pairs": len(pairs), "fingerprint": Mixture([folder], [1.0]).fingerprint()},
    **encoders.fingerprint,
    "options": options._asdict(),
  }
  _begin(out, plan)
  if (out / encoded.MANIFEST).exists():
    shutil.rmtree(out / WORKING, ignore_errors=True)
    return encoded.read_manifest(out)
  count = -(-len(pairs) // options.pairs_per_shard)
  job = Job(folder, out, out / WORKING, encoders, options, count)
  for number in range(host, count, hosts):
    if done_path(job.working, number).exists():
      advance(len(job.rows(number)))
    else:
      encode_shard(job, number, advance)
  try:
    if not missing(out, count):
      return _finish(job, plan)
  except FileNotFoundError:
    if not (out / encoded.MANIFEST).exists():
      raise
  # Two hosts may see the last shard at once; what the other one has finished is gone from here.
  return encoded.read_manifest(out) if (out / encoded.MANIFEST).exists() else None


def missing(out: pathlib.Path, count: int | None = None) -> int:
  """How many shards of an unfinished encoding are not encoded yet."""
  out = pathlib.Path(out)
  if count is None:
    plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
    count = -(-plan["source"]["pairs"] // plan["options"]["pairs_per_shard"])
  return sum(not done_path(out / WORKING, i).exists() for i in range(count))


def _begin(out: pathlib.Path, plan: dict) -> None:
  """Writes the plan, or checks that the one that is there is the same."""
  path, working = out / PLAN, out / WORKING
  strange = out.exists() and (not out.is_dir() or any(p.name != WORKING for p in out.iterdir()))
  if strange and not path.exists():
    raise InputError(f"{out} exists and holds no encoding; choose another folder")
  working.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    _write_json(path, working, plan)
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise InputError(f"{path} is no plan of an encoding: {error}") from error
  if different := differences(found, plan):
    raise InputError(
      f"{out} holds another encoding; resume with the same pairs, pipeline and options, or choose "
      f"another folder:\n{describe(different)}"
    )


def _finish(job: Job, plan: dict) -> dict:
  """Writes the index and, last of all, the manifest."""
  shards = [json.loads(done_path(job.working, i).read_text()) for i in range(job.count)]
  entries = job.folder.index
  write_atomically(
    job.out / pair_index.name(job.options.split),
    lambda stream: np.save(stream, entries),
    scratch=job.working,
  )
  manifest = plan | {
    "layout": shards[0]["layout"],
    "captions": sum(shard["captions"] for shard in shards),
    "truncated": sum(shard["truncated"] for shard in shards),
    "errors": merge([shard["statistics"] for shard in shards]),
    "files": {name: file for shard in shards for name, file in shard["files"].items()},
    "index": encoded.digest(job.out / pair_index.name(job.options.split)),
  }
  manifest = json.loads(json.dumps(manifest))
  _write_json(
    job.out / encoded.MANIFEST, job.working, manifest | {"sha256": encoded.seal(manifest)}
  )
  shutil.rmtree(job.working, ignore_errors=True)
  return manifest


def _write_json(path: pathlib.Path, scratch: pathlib.Path, value: dict) -> None:
  text = json.dumps(value, indent=1, sort_keys=True) + "\n"
  write_atomically(path, text, scratch=scratch)


def lines(manifest: dict) -> str:
  """What was encoded, how large it is, and what rounding cost, in words."""
  pairs, options = manifest["source"]["pairs"], manifest["options"]
  files = manifest["files"]
  found = {
    kind: sum(f["bytes"] for name, f in files.items() if name.startswith(f"{kind}-"))
    for kind in encoded.KINDS
  }
  text = [
    f"encoded {pairs} pairs of split {options['split']!r}, {options['augmentations']} "
    f"augmentations each, {manifest['captions']} captions ({manifest['truncated']} cut), as "
    f"{options['dtype']}",
    f"on disk: {sum(found.values()) / pairs:,.0f} bytes a pair: "
    + ", ".join(f"{size / pairs:,.0f} of {kind}" for kind, size in found.items() if size),
    "rounding, relative to float32:",
  ]
  for name, error in manifest["errors"].items():
    line = (
      f"  {name}: rms {error['rms']:.3g}, max {error['max']:.3g} of the values' rms "
      f"{error['scale']:.4g}"
    )
    if "of_spread" in error:
      line += f"; rms {error['of_spread']:.3g} of the spread that latents are drawn with"
    text.append(line)
  return "\n".join(text)
