"""Pairs of a model's own samples as a folder that training reads: sampled, scored and chosen.

The prompts are divided into shards; one host samples, scores and writes a shard. Batches start
anew in each shard, so the bytes do not depend on interruptions or on the number of hosts. The
folder is one of `data.convert`, with its checks, report and splits.
"""

import functools
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from dmpo_jax.data import captions, resumable, tfds_folder
from dmpo_jax.data.convert import finalize, moves, paths, shard
from dmpo_jax.data.convert import options as convert_options
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.data.convert.tables import Chunk, Table
from dmpo_jax.data.resumable import ResumableFolder
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scored_pairs import choose
from dmpo_jax.evaluation.scored_pairs.choose import Rule
from dmpo_jax.evaluation.scored_pairs.samples import PromptImages, Samples
from dmpo_jax.evaluation.scorers import OPTION
from dmpo_jax.evaluation.scorers.base import Scorer

PLAN_VERSION = "1.0.0"
KIND = "generated"
DETAILS = "generated"


def generate(
  samples: Samples,
  out: pathlib.Path,
  scorer: Scorer,
  rule: Rule,
  options: Options,
  *,
  identity: Mapping[str, Any] | None = None,
  prompts_per_shard: int = 16,
  host: int = 0,
  hosts: int = 1,
) -> dict | None:
  """Samples, scores and chooses pairs, or resumes an interrupted command.

  Args:
    samples: Images by prompt.
    out: Folder that becomes the data set; all hosts must see the same one.
    scorer: The scorer.
    rule: Which images make pairs, and their labels.
    options: Splits and the tokenizer that counts tokens; the other options of a conversion keep
      their defaults.
    identity: Options and weights of the scorer in JSON, see `fingerprint_of_scorer`; the work is
      not resumed with others.
    prompts_per_shard: Prompts of an output shard.
    host: Number of this host, 0 to hosts - 1.
    hosts: Number of hosts that share the work.

  Returns:
    The report of `convert.report`, with the statistics of the labels under "generated"; None while
    shards of other hosts are missing.

  Raises:
    InputError: A value is invalid, the folder holds something else, an image or score is not
      finite, or no pair is left.
    OSError: A file cannot be written.
  """
  choose.check(rule)
  convert_options.check(options)
  resumable.check_hosts(host, hosts)
  if not 1 <= prompts_per_shard <= 1_000_000:
    raise InputError(f"prompts_per_shard must be from 1 to 1,000,000, got {prompts_per_shard}")
  if options.tokenizer is not None:
    captions.tokenizer(options.tokenizer)  # before anything is written
  count = len(samples.prompts)
  starts = range(0, count, prompts_per_shard)
  digest = hashlib.sha256(json.dumps(samples.prompts).encode()).hexdigest()
  plan = {
    "version": PLAN_VERSION,
    "record": tfds_folder.VERSION,
    "source": KIND,
    "model": samples.model,
    "samples": samples.plan,
    "prompts": digest,
    "scorer": {"name": scorer.name, **(identity or {})},
    "rule": rule._asdict(),
    "options": convert_options.immutable(options),
    "prompts_per_shard": prompts_per_shard,
    "shards": len(starts),
  }
  folder = _folder(out)
  with folder.session(plan, host=host, hosts=hosts) as is_complete:
    if is_complete:
      return tfds_folder.check_files(folder.out)
    own = range(host, len(starts), hosts)
    for number in folder.unfinished(own, functools.partial(moves.restart_damaged, folder)):
      last = min(starts[number] + prompts_per_shard, count)
      _write(folder, number, range(starts[number], last), samples, scorer, rule, options)
    chunks = [
      Chunk("prompts", start, min(prompts_per_shard, count - start), start, 0) for start in starts
    ]

    def complete() -> dict:
      total = choose.merge(result["chosen"] for result in folder.results(len(starts)))
      labels = choose.summary(total)
      if not labels["pairs"]:
        raise InputError(_no_pairs(labels, rule, folder.out))
      details = {"model": samples.model, "scorer": scorer.name, "rule": rule._asdict(), **labels}
      return finalize.finish(folder, KIND, [Table(chunks, digest)], options, {DETAILS: details})

    return folder.finish(len(starts), complete, tfds_folder.read_report)


def missing(out: pathlib.Path) -> int:
  """Number of shards of an unfinished folder that are not written yet."""
  return len(_folder(out).missing(resumable.shards(out)))


def fingerprint_of_scorer(text: str) -> dict[str, Any]:
  """Options of a scorer, and checksums of the files that it is loaded from.

  Args:
    text: NAME[=WEIGHTS][,OPTION=VALUE...], see `scorers.parse_scorer`.

  Returns:
    The options, and SHA-256 by file; or the name of a repository of the hub.
  """
  head, *options = OPTION.split(text)
  weights = head.partition("=")[2]
  return {"options": options, "weights": _checksums(weights) if weights else None}


def _checksums(weights: str) -> dict[str, str]:
  root = pathlib.Path(weights)
  if not root.exists():
    return {"repository": weights}
  files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
  return {
    str(p.relative_to(root) if p != root else p.name): resumable.fingerprint(p).sha256
    for p in files
  }


def _folder(out: pathlib.Path) -> ResumableFolder:
  out = pathlib.Path(out)
  return ResumableFolder(out, out / paths.WORKING, out / "dataset_info.json", "set of pairs")


def _write(
  folder: ResumableFolder,
  number: int,
  rows: range,
  samples: Samples,
  scorer: Scorer,
  rule: Rule,
  options: Options,
) -> None:
  """Samples, scores and writes a shard."""
  counts, chosen = Counter(), []

  def pairs() -> Iterator[tuple[int, list[shard.ConvertedPair]]]:
    shots = list(samples.read(rows.start, rows.stop))
    for row, (each, scores) in zip(rows, _scored(shots, scorer), strict=True):
      raw, count = _raw_pairs(each, scores, samples.model, rule)
      counts["rows"] += 1
      chosen.append(count)
      yield row, shard.keep(raw, options, counts, kind=KIND, folder=folder.out)

  def result() -> dict:
    return {"counts": counts, "chosen": choose.merge(chosen)}

  shard.write_chunk(folder, number, pairs(), options, result)


def _scored(
  shots: list[PromptImages], scorer: Scorer
) -> Iterator[tuple[PromptImages, list[float]]]:
  """The images of each prompt with their scores; all are scored together."""
  pixels = [image for each in shots for image in each.pixels]
  prompts = [each.prompt for each in shots for _ in each.pixels]
  names = [name for each in shots for name in each.names]
  scores = scorer.score(pixels, prompts, names=names).tolist()
  start = 0
  for each in shots:
    yield each, scores[start : start + len(each.seeds)]
    start += len(each.seeds)


def _raw_pairs(
  shots: PromptImages, scores: list[float], model: str, rule: Rule
) -> tuple[list[RawPair], dict]:
  chosen, count = choose.choose(shots.prompt, shots.seeds, scores, shots.encoded, rule)
  raw = [
    RawPair(
      id=pair.id,
      prompt=shots.prompt,
      image_0=shots.encoded[pair.first],
      image_1=shots.encoded[pair.second],
      p0=pair.p0,
      model_0=model,
      model_1=model,
      scores=(scores[pair.first], scores[pair.second]),
      seeds=(shots.seeds[pair.first], shots.seeds[pair.second]),
    )
    for pair in chosen
  ]
  return raw, count


def _no_pairs(labels: dict, rule: Rule, out: pathlib.Path) -> str:
  reasons = ", ".join(f"{n} {choose.DROPPED[k]}" for k, n in labels["dropped"].items() if n)
  return (
    f"no pair of {labels['images']} images is left ({reasons}); the largest gap of scores is "
    f"{labels['largest_gap']:.4g}, and min_gap is {rule.min_gap:g}: lower it, sample more images a "
    f"prompt or take another scorer, and choose another folder or delete {out}"
  )
