"""Caching of latents and text embeddings: shard by shard, on any number of hosts, resumable.

The split is divided into shards of equally many pairs, each of which one host encodes (`shard`).
Batches have one size and start anew in each shard, so the bytes do not depend on interruptions or
on the number of hosts and devices. The manifest, written last, completes the folder. The networks
are functions of arrays (`LatentEncoders`); no file here knows a model.
"""

import json
from collections.abc import Callable

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data import pair_index, resumable, tfds_folder
from dmpo_jax.data.latents import options as cache_options
from dmpo_jax.data.latents import records
from dmpo_jax.data.latents.options import Options
from dmpo_jax.data.latents.rounding import merge
from dmpo_jax.data.latents.shard import Job, LatentEncoders, cache_shard
from dmpo_jax.data.mixture import FolderSplit, Mixture, have_sources
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import printable

WORKING = "caching"


def cache_latents(
  source: paths.Path,
  out: paths.Path,
  encoders: LatentEncoders,
  options: Options,
  *,
  host: int = 0,
  hosts: int = 1,
  progress: Callable[[int], None] = lambda pairs: None,
) -> dict | None:
  """Caches the latents of a split, or resumes an interrupted command.

  Args:
    source: A folder that `data convert` wrote.
    out: Folder of the cached latents; all hosts must see the same one.
    encoders: The networks.
    options: Options.
    host: Number of this host, 0 to hosts - 1.
    hosts: Number of hosts that share the work.
    progress: Called with the number of pairs of each encoded batch, and of each shard that was
      finished before.

  Returns:
    The manifest, or None while shards of other hosts are missing.

  Raises:
    InputError: The source or an option is invalid, the folder holds something else, or a number
      cannot be stored.
    OSError: A file cannot be written.
  """
  cache_options.check(options, channels=encoders.channels)
  resumable.check_hosts(host, hosts)
  pairs = tfds_folder.PairSource(paths.parse(source), options.split)
  split = FolderSplit(str(source), options.split, "soft", len(pairs), pairs.__getitem__)
  count = -(-len(pairs) // options.pairs_per_shard)
  folder = _folder(out)
  plan = {
    "version": records.VERSION,
    "source": {"pairs": len(pairs), "fingerprint": Mixture([split], [1.0]).fingerprint()},
    **encoders.fingerprint,
    "options": options._asdict(),
    "shards": count,
  }
  with folder.session(plan, host=host, hosts=hosts) as is_complete:
    if is_complete:
      return records.read_manifest(folder.out)
    job = Job(split, folder, encoders, options, count, have_sources([split]))
    own = range(host, count, hosts)
    unfinished = folder.unfinished(own)
    for number in own:
      if number in unfinished:
        cache_shard(job, number, progress)
      else:
        progress(len(job.rows(number)))
    return folder.finish(count, lambda: _complete(job, plan), records.read_manifest)


def missing(out: paths.Path) -> int:
  """Number of shards of an unfinished folder that are not encoded yet."""
  return len(_folder(out).missing(resumable.shards(out)))


def _folder(out: paths.Path) -> ResumableFolder:
  out = paths.parse(out)
  return ResumableFolder(out, out / WORKING, out / records.MANIFEST, "cache of latents")


def _complete(job: Job, plan: dict) -> dict:
  """Writes the pair index and, last, the manifest."""
  out, working = job.folder.out, job.folder.working
  shards = job.folder.results(job.count)
  index = out / pair_index.name(job.options.split)
  write_atomically(index, lambda stream: np.save(stream, job.split.index), scratch=working)
  manifest = plan | {
    "layout": shards[0]["layout"],
    "captions": sum(shard["captions"] for shard in shards),
    "truncated": sum(shard["truncated"] for shard in shards),
    "errors": merge([shard["statistics"] for shard in shards]),
    "files": {name: file for shard in shards for name, file in shard["files"].items()},
    "index": records.sha256(index),
  }
  manifest = json.loads(json.dumps(manifest))
  text = resumable.to_json(manifest | {"sha256": records.checksum(manifest)})
  write_atomically(job.folder.final, text, scratch=working)
  job.folder.remove_working_folder()
  return manifest


def lines(manifest: dict) -> str:
  """Lines of text about a folder: its content, its size, and the errors of rounding."""
  pairs, options = manifest["source"]["pairs"], manifest["options"]
  sizes = records.bytes_by_kind(manifest)
  text = [
    f"cached latents of {pairs} pairs of split {options['split']!r}, {options['augmentations']} "
    f"augmentations each, and {manifest['captions']} captions ({manifest['truncated']} truncated), "
    f"as {options['dtype']}",
    f"on disk: {sum(sizes.values()) / pairs:,.0f} bytes per pair: "
    + ", ".join(f"{size / pairs:,.0f} of {kind}" for kind, size in sizes.items() if size),
    "rounding, relative to float32:",
  ]
  for name, error in manifest["errors"].items():
    line = (
      f"  {name}: rms {error['rms']:.3g}, max {error['max']:.3g} of the values' rms "
      f"{error['scale']:.4g}"
    )
    if "of_spread" in error:
      line += f"; rms {error['of_spread']:.3g} of the posterior's standard deviation"
    text.append(line)
  return printable("\n".join(text))
