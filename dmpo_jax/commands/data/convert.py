"""Convert preference pairs to a TFDS folder of ArrayRecord files.

YOUR OWN PAIRS
  A table with the columns prompt, image_0, image_1, label_0 beside your images:

    prompt,image_0,image_1,label_0
    a red fox,fox/1.png,fox/2.png,1
    a red fox,fox/3.png,fox/1.png,0.25

  dmpo-jax data convert pairs my/pairs.csv --out data/mine

  label_0 is the probability (1, 0, or anything between) that image_0 is the better one. The table
  may be .csv, .tsv, .jsonl, .json (an array of objects) or .parquet (images as bytes or paths).
  score_0 and score_1 may stand in place of label_0. Optional columns: id, weight, model_0, model_1,
  user_id, condition (the image that was edited).

  Or three folders, winner/NAME.png, loser/NAME.png, captions/NAME.txt:

  dmpo-jax data convert pairs my_folder --out data/mine

PUBLISHED SETS, downloaded and unpacked
  dmpo-jax data convert pickapic               pickapic_v2/  --out data/pickapic --unlabelled=drop
  dmpo-jax data convert hpdv2                  HPDv2/        --out data/hpdv2
  dmpo-jax data convert hpdv3                  HPDv3/        --out data/hpdv3
  dmpo-jax data convert imagerewarddb          ImageReward/data/ --part test --out data/imagereward
  dmpo-jax data convert open-image-preferences preferences/  --out data/oip

  --part chooses the set's own division (train, validation, test, ...); --splits divides what is
  read by prompt. A folder of the set's test part: --part test_unique --splits test=1

ANY SIZE
  Memory does not grow with the data. An interrupted command goes on when it is given again. Several
  machines that see the same folder share the work: --hosts 8 --host 0 on the first, --host 1 on the
  second, and so on; whichever is last finishes the set.
"""

import argparse
import os
import pathlib

# Written here too, as help that imports the data's packages would take seconds; the first choice is
# the default.
KINDS = ("pickapic", "hpdv2", "hpdv3", "imagerewarddb", "open-image-preferences", "pairs")
CHOICES = {
  "ties": (("soft", "drop"), "soft keeps them with p0 = 0.5"),
  "labels": (
    ("soft", "votes", "hard"),
    "soft: the set's probabilities; votes: shares of votes; hard: 0 or 1",
  ),
  "unlabelled": (("stop", "drop"), "rows that nobody judged"),
  "long_captions": (("keep", "drop"), "captions of more than 77 CLIP tokens"),
  "size_mismatch": (("keep", "drop"), "pairs whose images differ in size"),
  "duplicates": (
    ("keep", "drop"),
    "same caption, images, label and judge as an earlier pair, under another id",
  ),
  "on_bad_row": (("stop", "skip"), "rows that cannot be used; skip lists them in bad_rows.jsonl"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("source", choices=KINDS, help="kind of data")
  parser.add_argument("path", type=pathlib.Path, help="folder of the data, or one table")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write")
  parser.add_argument("--part", default="train", help="of a published set (default: train)")
  parser.add_argument(
    "--images",
    type=pathlib.Path,
    help="folder that image paths are relative to (default: the set's)",
  )
  parser.add_argument(
    "--splits",
    default="train=1",
    help="share of the prompts by split: train=0.98,validation=0.02 (default: train=1)",
  )
  parser.add_argument("--split-salt", default="split", help="another one divides anew")
  for name, (choices, meaning) in CHOICES.items():
    parser.add_argument(
      f"--{name.replace('_', '-')}",
      choices=choices,
      default=choices[0],
      help=f"{meaning} (default: {choices[0]})",
    )
  parser.add_argument(
    "--tokenizer",
    help="folder of a CLIP tokenizer that counts the tokens of captions exactly; without it words "
    "are counted, of which each is at least one token",
  )
  parser.add_argument(
    "--score-temperature",
    type=float,
    default=1.0,
    help="p0 = sigmoid((score_0 - score_1) / this) (default: 1)",
  )
  parser.add_argument(
    "--rows-per-shard",
    type=int,
    default=1000,
    help="rows of the source in an output file, about (default: 1000)",
  )
  parser.add_argument(
    "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
  )
  parser.add_argument("--hosts", type=int, default=1, help="machines that share the work")
  parser.add_argument("--host", type=int, default=0, help="which of them this is, from 0")


def run(options: argparse.Namespace) -> None:
  """Converts and prints the report."""
  from tqdm import tqdm

  from dmpo_jax.data.convert import convert, sources
  from dmpo_jax.data.convert import report as conversion_report
  from dmpo_jax.data.convert.options import Options

  choices = {
    name: getattr(options, name) for name in Options._fields if name not in ("splits", "tokenizer")
  }
  chosen = Options(splits=read_splits(options.splits), tokenizer=options.tokenizer, **choices)
  source = sources.find(options.source, options.path, part=options.part, images=options.images)
  report = convert.convert(
    source,
    options.out,
    chosen,
    workers=options.workers,
    host=options.host,
    hosts=options.hosts,
    progress=lambda items, total: tqdm(items, total=total, desc="convert", unit="shard"),
  )
  if report is None:
    left = convert.missing(options.out)
    print(f"this host is done; {left} shards of other hosts are missing, the last one finishes")
    return
  print(conversion_report.lines(report))
  print(f"data set in {options.out}, report in {options.out / 'report.html'}")


def read_splits(text: str) -> dict[str, float]:
  """The shares in "train=0.9,test=0.1".

  Raises:
    InputError: It is written in another way.
  """
  from dmpo_jax.errors import InputError

  shares = {}
  for item in text.split(","):
    name, _, share = item.partition("=")
    try:
      value = float(share)
    except ValueError as error:
      raise InputError(f"--splits {text!r}: write train=0.9,test=0.1") from error
    if name.strip() in shares:
      raise InputError(f"--splits {text!r} names {name.strip()!r} twice")
    shares[name.strip()] = value
  return shares
