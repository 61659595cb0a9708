"""Train a scorer of images on preference pairs (a reward model in PickScore's form).

  dmpo-jax train-scorer --config configs/emoji_scorer.py --workdir runs/emoji/scorer

The result is runs/emoji/scorer/scorer, a folder of transformers' CLIPModel with tokenizer and
preprocessor: --scorer pickscore=runs/emoji/scorer/scorer. The same command resumes a run from its
last checkpoint. Any key of the config can be set: --config.num_steps=100
A config is a Python program that runs with your rights: only run configs that you trust.
"""

import argparse
import functools

from dmpo_jax.commands import several_processes, train

TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options, those of `dmpo-jax train`."""
  train.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
  """Trains, prints the held-out accuracy and the folder, and returns the exit status."""
  return several_processes.run(options, functools.partial(train.work, _train))


def _train(config, workdir, *, show_progress: bool, processes) -> str:
  from dmpo_jax.reward.run import describe
  from dmpo_jax.reward.run import train as train_scorer

  result = train_scorer(config, workdir, show_progress=show_progress, processes=processes)
  accuracy = f"; held-out {describe(result.held_out)}" if result.held_out else ""
  return f"{result.steps} steps done{accuracy}; scorer in {result.folder}"
