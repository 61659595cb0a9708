"""Score the images of a folder.

  dmpo-jax score samples --scorer pickscore=yuvalkirstain/PickScore_v1 --scorer warmth
  dmpo-jax score pictures --prompts prompts.csv --scorer hpsv2.1=HPS_v2.1_compressed.pt

The folder is one of dmpo-jax sample, or any with images: their prompts are then in --prompts (.txt
with a line for each image in the order of the names; .csv or .jsonl with the columns file and
prompt), or in NAME.txt beside each. Writes a table with a row for each image, and prints the mean
of each score with its 95% interval over prompts. Interrupted, the same command resumes.

scorers:
"""

import argparse

from dmpo_jax.commands.scorer_options import add_scorer, described, key_of
from dmpo_jax.common import paths

__doc__ = (__doc__ or "") + described()

SCORES = "scores.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  add = parser.add_argument
  add("folder", type=paths.argument, help="folder of images")
  add_scorer(parser, "--scorer", action="append", required=True)
  add(
    "--prompts", type=paths.argument, help="prompts of a folder that dmpo-jax sample did not write"
  )
  add("--out", type=paths.argument, help=f"table, .csv or .parquet (default: FOLDER/{SCORES})")
  add("--no-progress", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> None:
  """Writes the table and prints the mean of each score."""
  from tqdm import tqdm

  from dmpo_jax.errors import InputError
  from dmpo_jax.evaluation import score_folder, statistics
  from dmpo_jax.evaluation.scorers import parse_scorer

  out = options.out or options.folder / SCORES
  score_folder.check_table(out)
  pictures = score_folder.find_pictures(options.folder, options.prompts)
  scores = {}
  for text in options.scorer:
    scorer = parse_scorer(text)
    if scorer.name in scores:
      raise InputError(f"two scorers have the name {scorer.name}; write two tables")
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in scorer.name)
    scores[scorer.name] = score_folder.score_pictures(
      options.folder,
      pictures,
      scorer,
      out.with_name(f"{out.name}.parts") / safe,
      key=key_of(text),
      progress=lambda parts, name=scorer.name: tqdm(
        parts, desc=name, unit="part", disable=options.no_progress
      ),
    )
  score_folder.write_table(out, pictures, scores)
  prompts = pictures.prompts or pictures.files
  number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
  groups = [number[prompt] for prompt in prompts]
  print(f"{len(pictures.files)} images, {len(number)} {'prompts' if pictures.prompts else 'files'}")
  for name, values in scores.items():
    mean = statistics.bootstrap(statistics.group_means(values, groups))
    print(f"{name}: {mean.value:.4g} [{mean.low:.4g}, {mean.high:.4g}]")
  print(f"table in {out}")
