"""Table of every objective on the handwritten digits, trained from its config.

    python benchmarks/digits_objectives.py --reference runs/quickstart/reference/pipeline

The reference is that of `launch/quickstart.sh`. All models sample from the same noise and are
measured as in its report; the win rate is the fraction of samples heavier than the reference's. An
interrupted run resumes. There is one run per objective with settings that were not tuned: a check
that every objective trains end to end, not a ranking.
"""

import argparse
import pathlib

import numpy as np

from dmpo_jax import configs, losses, pipelines
from dmpo_jax.data import datasets
from dmpo_jax.data.toy import digits
from dmpo_jax.demos.digits import classifier, quickstart
from dmpo_jax.demos.digits.measurement import measure
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.run import train


def run(name, options):
  """Result of an objective's run, and the change of its errors against the reference's."""
  config = load_config(str(pathlib.Path(configs.__file__).parent / f"digits_{name}.py"))
  config.pipeline = str(options.reference)
  if options.steps:
    config.num_steps = options.steps
  result = train(config, options.workdir / name, show_progress=False)
  last = metrics.read(options.workdir / name)[-50:]
  change = None
  if "reference_w" in last[0]:
    change = tuple(
      np.mean([row[f"policy_{i}"] - row[f"reference_{i}"] for row in last]) for i in "wl"
    )
  return result, change


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--reference", type=pathlib.Path, required=True, help="pipeline folder")
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/objectives"))
  parser.add_argument("--images-per-caption", type=int, default=40)
  parser.add_argument("--steps", type=int, help="training steps (default: those of the configs)")
  parser.add_argument("names", nargs="*", help="objectives (default: all)")
  options = parser.parse_args()

  prompts, labels, seeds = quickstart.prompts_and_seeds(options.images_per_caption)
  parts = digits.split(
    digits.load(), test_fraction=datasets.TEST_FRACTION, seed=datasets.SPLIT_SEED
  )
  fitted = classifier.fit(*parts)
  reference = pipelines.load(options.reference)
  functions = pipelines.build(reference, dtype=pipelines.default_dtype())
  solver = functions.make_solver(quickstart.SOLVER_STEPS)
  sampler = pipelines.make_sampler(functions, solver, guidance=quickstart.GUIDANCE)
  inputs, _ = pipelines.sampling_inputs(functions, prompts, seeds)

  def sample(pipeline):
    return pipelines.sample_all(
      sampler, pipeline.params, inputs, batch_size=quickstart.SAMPLING_BATCH_SIZE
    )

  def report(name, scores, change, seconds):
    win = "" if scores["win_rate"] is None else scores["win_rate"]
    moved = "" if change is None else f"{change[0]:+.4f} | {change[1]:+.4f}"
    print(
      f"| {name} | {scores['ink']} | {win} | {scores['digit_accuracy']} | "
      f"{scores['diversity']['vendi']:.2f} | {moved or ' | '} | {seconds} |",
      flush=True,
    )

  print("| objective | mean ink | win rate | digit right | Vendi | e_w - r_w | e_l - r_l | s |")
  print("|---|---|---|---|---|---|---|---|")
  baseline = sample(reference)
  measured = measure(baseline, labels, predict=fitted.predict, baseline=None)
  report("reference", measured, None, "")
  for name in options.names or sorted(losses.LOSSES):
    result, change = run(name, options)
    images = sample(pipelines.load(result.pipeline))
    measured = measure(images, labels, predict=fitted.predict, baseline=baseline)
    report(name, measured, change, f"{result.seconds:.0f}")


if __name__ == "__main__":
  main()
