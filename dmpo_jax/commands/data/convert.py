"""Convert preference pairs to a TFDS folder of ArrayRecord files.

YOUR OWN PAIRS
  A table with the columns prompt, image_0, image_1, label_0 beside your images:

    prompt,image_0,image_1,label_0
    a red fox,fox/1.png,fox/2.png,1
    a red fox,fox/3.png,fox/1.png,0.25

  dmpo-jax data convert custom my/pairs.csv --out data/mine

  label_0 is the probability (1, 0, or anything between) that image_0 is preferred. The table may be
  .csv, .tsv, .jsonl, .json (an array of objects) or .parquet (images as bytes or paths). score_0
  and score_1 may replace label_0 or stand beside it. Optional columns: id, weight, model_0,
  model_1, user_id, condition (the image that was edited), seed_0, seed_1.

  Or three folders, winner/NAME.png, loser/NAME.png, captions/NAME.txt:

  dmpo-jax data convert custom my_folder --out data/mine

  Edits, for pipelines that edit images, have the column condition, or the folder source/NAME.png.

PUBLISHED DATA SETS, downloaded and unpacked
{published}

  --source-split chooses the published split (train, validation, test, ...); --splits divides it by
  prompt. To make a test split of a published test split: --source-split test_unique --splits test=1
  Sets with one edit for each instruction have no rejected image: --rejected source takes the image
  before the edit.

ANY SIZE
  Memory does not grow with the data. Run an interrupted command again to resume it. Several
  machines that see the same folder share the work: --hosts 8 --host 0 on the first, --host 1 on the
  second, and so on; the last one to end completes the data set.
"""

import argparse
import os

from dmpo_jax.commands.data.renamed import add_renamed_option
from dmpo_jax.common import paths as common_paths
from dmpo_jax.data.convert.options import CHOICES, Options
from dmpo_jax.data.convert.sources import SOURCES

FORMER_KINDS = {"pairs": "custom"}  # still accepted
__doc__ = __doc__.format(
  published="\n".join(
    f"  dmpo-jax data convert {name:<22} {module.EXAMPLE}"
    for name, module in SOURCES.items()
    if module.SPLITS
  )
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  default = Options()
  parser.add_argument(
    "source",
    type=lambda name: FORMER_KINDS.get(name, name),
    choices=tuple(SOURCES),
    help="kind of data",
  )
  parser.add_argument(
    "path", type=common_paths.local_argument, help="folder of the data, or one table"
  )
  parser.add_argument(
    "--out",
    required=True,
    type=common_paths.argument,
    help="folder to write, or gs://bucket/folder",
  )
  parser.add_argument(
    "--source-split", help="split of a published data set (default: the first of the data set)"
  )
  parser.add_argument(
    "--images",
    type=common_paths.local_argument,
    help="folder that image paths are relative to (default: the source's)",
  )
  parser.add_argument(
    "--splits",
    default="train=1",
    help="fraction of the prompts by split: train=0.98,validation=0.02 (default: train=1)",
  )
  parser.add_argument(
    "--split-seed",
    default=default.split_seed,
    help=f"decides which prompts go to which split (default: {default.split_seed})",
  )
  for name, (choices, meaning) in CHOICES.items():
    parser.add_argument(
      f"--{name.replace('_', '-')}",
      choices=choices,
      default=getattr(default, name),
      help=f"{meaning} (default: {getattr(default, name)})",
    )
  parser.add_argument(
    "--tokenizer",
    help="folder of a CLIP tokenizer that counts the tokens of captions exactly (default: count "
    "words, a lower bound)",
  )
  parser.add_argument(
    "--score-temperature",
    type=float,
    default=default.score_temperature,
    help="p0 = sigmoid((score_0 - score_1) / temperature) "
    f"(default: {default.score_temperature:g})",
  )
  parser.add_argument(
    "--rows-per-shard",
    type=int,
    default=default.rows_per_shard,
    help=f"approximate rows of the source in an output file (default: {default.rows_per_shard})",
  )
  parser.add_argument(
    "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
  )
  parser.add_argument("--hosts", type=int, default=1, help="machines that share the work")
  parser.add_argument("--host", type=int, default=0, help="number of this machine, from 0")
  add_renamed_option(parser, "--part", "--source-split")
  add_renamed_option(parser, "--split-salt", "--split-seed")


def run(options: argparse.Namespace) -> None:
  """Converts and prints the report."""
  from tqdm import tqdm

  from dmpo_jax.data.convert import convert, paths, source_reader
  from dmpo_jax.data.convert import report as reports

  values = {name: getattr(options, name) for name in Options._fields if name != "splits"}
  source = source_reader.find(
    options.source, options.path, split=options.source_split, images=options.images
  )
  report = convert.convert(
    source,
    options.out,
    Options(splits=read_splits(options.splits), **values),
    workers=options.workers,
    host=options.host,
    hosts=options.hosts,
    progress=lambda items, total: tqdm(items, total=total, desc="convert", unit="shard"),
  )
  if report is None:
    count = convert.missing(options.out)
    print(f"this host is done; {count} shards of other hosts are missing, the last one finishes")
    return
  print(reports.lines(report))
  print(f"data set in {options.out}, report in {options.out / paths.PAGE}")


def read_splits(text: str) -> dict[str, float]:
  """The fractions in "train=0.9,test=0.1".

  Raises:
    InputError: The text has another form.
  """
  from dmpo_jax.data.convert.row_values import number_of_text
  from dmpo_jax.errors import InputError, short

  fractions = {}
  for item in text.split(","):
    name, _, fraction = item.partition("=")
    try:
      value = number_of_text(fraction, name)
    except InputError as error:
      raise InputError(f"--splits {short(text)}: write train=0.9,test=0.1") from error
    if name.strip() in fractions:
      raise InputError(f"--splits {short(text)} names {short(name.strip())} twice")
    fractions[name.strip()] = value
  return fractions
