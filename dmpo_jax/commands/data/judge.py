"""Make a table of all pairs of a model's own samples, labelled with noise by a declared score.

`dmpo-jax data generate` makes the folder that training reads at once, and other pairs and labels.
This command writes a table in between, to look at or to edit.

  dmpo-jax sample --pipeline runs/reference/pipeline --prompts prompts.txt --seeds 4 --out samples
  dmpo-jax data judge samples --scorer colourfulness --temperature 0.02
  dmpo-jax data convert custom samples/pairs.csv --out data/mine

Every two images of a prompt become a pair, and one of them is preferred with the probability
sigmoid((score_0 - score_1) / temperature): an image with a higher score more often, but not always.
The table also holds both scores; edit its label_0, or write your own, to state other preferences.
"""

import argparse

from dmpo_jax.commands.scorer_options import add_scorer
from dmpo_jax.common import paths

TABLE = "pairs.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("samples", type=paths.argument, help="folder that dmpo-jax sample wrote")
  add_scorer(parser, "--scorer", "--score", required=True)
  parser.add_argument(
    "--temperature",
    required=True,
    type=float,
    help="difference of scores at which the odds are e : 1; the spread of the scores within a "
    "prompt, which is printed, is a start",
  )
  parser.add_argument("--seed", type=int, default=0, help="of the labels (default: 0)")


def run(options: argparse.Namespace) -> None:
  """Writes the table and prints how noisy its labels are."""
  from dmpo_jax.evaluation.scored_pairs import choose
  from dmpo_jax.evaluation.scorers import parse_scorer
  from dmpo_jax.evaluation.scorers.label_pairs import label_pairs, write_table

  scorer = parse_scorer(options.scorer)
  labelled = label_pairs(
    options.samples,
    scorer=scorer,
    temperature=options.temperature,
    seed=options.seed,
  )
  table = options.samples / TABLE
  write_table(table, labelled.rows)
  print(choose.lines(scorer.name, labelled.statistics))
  print(f"table in {table}")
