"""Learn a potential that steers a pipeline's samples, without training the pipeline.

Direct distributional optimisation (docs/ddo.md): samples of the pipeline are scored, and a small
network f is learned so that q = exp(-f) p_ref / Z minimises a preference loss with a KL penalty.
dmpo-jax sample --potential follows it. The same command resumes a run. Any key of the config can be
set on the command line: --config.beta=0.5
A config is a Python program that runs with your rights: only run configs that you trust.
"""

import argparse

from dmpo_jax.common import paths

TAKES_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--config", required=True, help="a Python file with get_config()")
  parser.add_argument("--workdir", required=True, type=paths.argument, help="directory of the run")
  parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> None:
  """Learns the potential and prints its folder and the loss of each loop."""
  from dmpo_jax.training.config_file import load_config
  from dmpo_jax.training.potential.run import learn

  config = load_config(options.config, options.rest)
  score = score_of(config.score.name) if config.get("score") and config.score.name else None
  result = learn(config, options.workdir, score, show_progress=not options.no_progress)
  for loop in result.loops:
    name = f"loop {loop['loop']}" if loop["loop"] else "reference"
    print(
      f"{name}: loss {loop['loss']:.4f}, KL {loop['kl']:.3f}, effective sample size "
      f"{loop['effective_sample_size']:.1%}, max |f| {loop['max_potential']:.2f}"
    )
  print(f"potential in {result.potential}")


def score_of(name: str):
  """The score of a name, "ink" or a scorer's: (images [N, H, W, C] in [-1, 1], prompts) -> [N].

  Raises:
    InputError: There is no such score, see `evaluation.scorers.parse_scorer`.
  """
  import numpy as np

  from dmpo_jax.data.toy import digits
  from dmpo_jax.evaluation.scorers import parse_scorer
  from dmpo_jax.sampling import to_uint8

  if name == "ink":
    return lambda images, prompts: digits.ink(images)
  scorer = parse_scorer(name)
  return lambda images, prompts: scorer.score(np.asarray(to_uint8(images)), prompts)
