"""Make preference pairs of a pipeline's own samples, chosen and labelled by a scorer.

  dmpo-jax data generate --pipeline runs/emoji/reference/pipeline \\
      --prompts data/emoji/prompts-train.txt --per-prompt 16 --scorer colourfulness \\
      --out data/emoji_generated

samples 16 images of each prompt, as dmpo-jax sample does, scores them, and writes the best and the
worst of each prompt as a pair into a folder that training reads. The record keeps the seeds and the
scores of both images; any image can be sampled again from its seed.

  --pairs top-bottom --k 2     each of the two best with each of the two worst
  --pairs all --labels soft --temperature 0.02
                               every two images, with the probability sigmoid(gap / temperature)
  --min-gap 0.1                without pairs whose scores differ by less

  dmpo-jax data generate --samples samples --scorer colourfulness --out data/mine

takes the images of a folder that dmpo-jax sample wrote.

  dmpo-jax data generate --pipeline runs/edits/pipeline --edits data/magicbrush \
      --out data/magicbrush_own

needs no scorer: it pairs each edit of a converted set with the pipeline's own edit of the same
source image (--own-edits N: with N of them), and prefers the set's.

ANY SIZE
  Run an interrupted command again to resume it; the result is that of an uninterrupted one. All
  devices of this machine share a batch. Several machines that see the same folder share the
  prompts: --hosts 8 --host 0 on the first, --host 1 on the second, and so on, or --distributed,
  which asks jax.distributed; the last one to end completes the folder.
"""

import argparse

from dmpo_jax.commands import sampling_options
from dmpo_jax.commands.data import shared_work
from dmpo_jax.commands.scorer_options import add_scorer
from dmpo_jax.common import paths as common_paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  from dmpo_jax.data.convert.options import Options
  from dmpo_jax.evaluation.scored_pairs import choose

  add = parser.add_argument
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--pipeline", help='pipeline folder, or "owner/name" on the hub')
  source.add_argument(
    "--samples",
    type=common_paths.local_argument,
    help="folder that dmpo-jax sample wrote, in place of a pipeline",
  )
  add(
    "--prompts",
    type=common_paths.local_argument,
    help="prompt set: a text file with one prompt per line, or .tsv, .csv, .json, .jsonl, .parquet",
  )
  add(
    "--edits",
    type=common_paths.local_argument,
    help="folder of edits that dmpo-jax data convert wrote, in place of prompts and a scorer",
  )
  add("--edits-split", default="train", help="split of --edits (default: train)")
  add("--own-edits", type=int, default=1, help="edits of each source of --edits (default: 1)")
  add("--revision", help="branch, tag or commit of the repository on the hub")
  add("--variant", help="variant of the weights, such as fp16 (default: weights without a variant)")
  add("--lora", type=common_paths.local_argument, help="LoRA file to merge into the pipeline")
  add("--out", required=True, type=common_paths.local_argument, help="folder to write")
  add_scorer(parser, "--scorer")
  for name, (choices, meaning) in (("pairs", choose.PAIRS), ("labels", choose.LABELS)):
    default = choices[0]
    add(f"--{name}", choices=choices, default=default, help=f"{meaning} (default: {default})")
  add("--k", type=int, default=1, help="images on either side for --pairs top-bottom (default: 1)")
  add(
    "--temperature",
    type=float,
    help="gap of scores at which the odds are e : 1, for soft and sampled labels; the spread "
    "within a prompt, which is printed, is a start",
  )
  add(
    "--min-gap",
    type=float,
    default=0.0,
    help="leave out pairs whose scores differ by less (default: 0)",
  )
  add("--label-seed", type=int, default=0, help="seed of sampled labels (default: 0)")
  add(
    "--splits",
    default="train=1",
    help="fraction of the prompts by split: train=0.9,validation=0.1 (default: train=1)",
  )
  add(
    "--split-seed",
    default=Options().split_seed,
    help=f"decides which prompts go to which split (default: {Options().split_seed})",
  )
  add("--prompts-per-shard", type=int, default=16, help="prompts of an output file (default: 16)")
  shared_work.add_arguments(parser)
  sampling_options.add_arguments(parser, count="--per-prompt", default=16)


def run(options: argparse.Namespace) -> None:
  """Generates the pairs and prints their report."""
  from tqdm import tqdm

  from dmpo_jax.commands.data.convert import read_splits
  from dmpo_jax.data.convert import paths
  from dmpo_jax.data.convert import report as reports
  from dmpo_jax.data.convert.options import Options
  from dmpo_jax.evaluation.scored_pairs import choose, generate, samples
  from dmpo_jax.evaluation.scorers import parse_scorer

  rule = choose.check(
    choose.Rule(
      options.pairs,
      options.k,
      options.labels,
      options.temperature,
      options.min_gap,
      options.label_seed,
    )
  )
  _check(options)
  conversion = Options(splits=read_splits(options.splits), split_seed=options.split_seed)
  if options.edits is not None:
    _own_edits(options, conversion)
    return
  host, hosts = shared_work.host_and_hosts(options)
  scorer = parse_scorer(options.scorer)
  with tqdm(desc="generate", unit="image") as bar:
    source = (
      samples.of_folder(options.samples) if options.samples else _sampled(options, bar.update)
    )
    bar.total = -(-len(source.prompts) // hosts) * options.seeds if options.pipeline else None
    report = generate.generate(
      source,
      options.out,
      scorer,
      rule,
      conversion,
      identity=generate.fingerprint_of_scorer(options.scorer),
      prompts_per_shard=options.prompts_per_shard,
      host=host,
      hosts=hosts,
    )
  if report is None:
    count = generate.missing(options.out)
    print(f"this host is done; {count} shards of other hosts are missing, the last one finishes")
    return
  print(choose.lines(scorer.name, report[generate.DETAILS]))
  print(reports.lines(report).splitlines()[-1])
  print(f"data set in {options.out}, report in {options.out / paths.PAGE}")


def _check(options: argparse.Namespace) -> None:
  """Raises InputError for options that are missing or have no effect."""
  from dmpo_jax.errors import InputError

  if options.edits is not None:
    if not options.pipeline or options.prompts is not None or options.scorer is not None:
      raise InputError(
        "--edits needs --pipeline, and neither --prompts nor --scorer: the set has the "
        "instructions, and its edits are preferred to the pipeline's own"
      )
    return
  if options.scorer is None:
    raise InputError("--scorer is missing; only --edits needs none")
  if options.pipeline:
    if options.prompts is None:
      raise InputError("--pipeline needs --prompts, such as a text file with one prompt per line")
    if options.seeds < 2:
      raise InputError(f"--per-prompt is {options.seeds}; a pair needs at least 2 images")
    return
  parser = argparse.ArgumentParser(add_help=False)
  sampling_options.add_arguments(parser, count="--per-prompt", default=16)
  defaults = vars(parser.parse_args([])) | dict.fromkeys(("prompts", "revision", "variant", "lora"))
  for name, default in defaults.items():
    if getattr(options, name) != default:
      option = "--per-prompt" if name == "seeds" else f"--{name.replace('_', '-')}"
      raise InputError(f"{option} has no effect on --samples, whose images exist; leave it out")


def _own_edits(options: argparse.Namespace, conversion) -> None:
  """Pairs the edits of a set with a pipeline's own."""
  from tqdm import tqdm

  from dmpo_jax import pipelines
  from dmpo_jax.commands.sample import check_no_workdir
  from dmpo_jax.data.convert import paths
  from dmpo_jax.data.convert import report as reports
  from dmpo_jax.evaluation.scored_pairs import own_edits

  host, hosts = shared_work.host_and_hosts(options)
  check_no_workdir(common_paths.parse(options.pipeline))
  options.seeds = options.own_edits
  sampling_options.check(options, ())
  pipeline = pipelines.load(
    options.pipeline, revision=options.revision, variant=options.variant, dtype=None
  )
  with tqdm(desc="generate", unit="edit") as bar:
    report = own_edits.generate(
      options.edits,
      options.out,
      pipeline,
      sampling_options.settings_of(options),
      conversion,
      model=options.pipeline,
      seeds=range(options.first_seed, options.first_seed + options.own_edits),
      split=options.edits_split,
      lora=options.lora,
      batch_size=options.batch_size,
      edits_per_shard=options.prompts_per_shard,
      host=host,
      hosts=hosts,
      progress=bar.update,
    )
  if report is None:
    count = own_edits.missing(options.out)
    print(f"this host is done; {count} shards of other hosts are missing, the last one finishes")
    return
  print(reports.lines(report).splitlines()[-1])
  print(f"data set in {options.out}, report in {options.out / paths.PAGE}")


def _sampled(options: argparse.Namespace, progress):
  """The samples of a pipeline that is yet to sample them."""
  import logging

  import numpy as np

  from dmpo_jax import pipelines
  from dmpo_jax.commands.sample import check_no_workdir
  from dmpo_jax.data import prompt_sets
  from dmpo_jax.evaluation.scored_pairs import samples
  from dmpo_jax.pipelines import sample_folder

  logger = logging.getLogger(__name__)
  listed = prompt_sets.read(options.prompts)
  prompts = samples.unique(listed.prompts)
  if repeated := len(listed.prompts) - len(prompts) + listed.repeated:
    logger.warning("%d prompts repeat earlier ones and are left out", repeated)
  sampling_options.check(options, prompts)
  check_no_workdir(common_paths.parse(options.pipeline))
  pipeline = pipelines.load(
    options.pipeline, revision=options.revision, variant=options.variant, dtype=None
  )
  seeds = np.arange(options.first_seed, options.first_seed + options.seeds, dtype=np.uint32)
  job = sample_folder.prepare(
    pipeline,
    [prompt for prompt in prompts for _ in seeds],
    np.tile(seeds, len(prompts)),
    sampling_options.settings_of(options),
    lora=options.lora,
  )
  if job.truncated:
    logger.warning(
      "%d prompts are longer than the text encoder's context and are cut",
      job.truncated // len(seeds),
    )
  return samples.of_pipeline(
    job, prompts, model=options.pipeline, batch_size=options.batch_size, progress=progress
  )
