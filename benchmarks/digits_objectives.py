"""Every objective on the handwritten digits: trained from its config, sampled, judged, in a table.

    python benchmarks/digits_objectives.py --reference runs/quickstart/reference/pipeline

The reference is that of `launch/quickstart.sh`. All models are drawn from the same noise and judged
as in its report; the win rate is the share of samples heavier than the reference's. A run
that was interrupted goes on where it was. One run each at settings that were not tuned: a check
that every objective trains end to end, and no ranking.
"""

import argparse
import pathlib

import numpy as np

from dmpo_jax import configs, interop, losses, pipelines
from dmpo_jax.data import datasets
from dmpo_jax.data.toy import digits
from dmpo_jax.demos.digits import classifier
from dmpo_jax.demos.digits.measurement import measure
from dmpo_jax.pipelines.generate import requests_for, sampler_of
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.run import train

SOLVER_STEPS, GUIDANCE, IMAGES_AT_A_TIME = 20, 2.0, 100


def run(name, options):
  """Trains an objective from its config; returns the result and how the errors have moved."""
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


def cell(interval):
  value, low, high = interval
  return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--reference", type=pathlib.Path, required=True, help="pipeline folder")
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/objectives"))
  parser.add_argument("--images-per-caption", type=int, default=40)
  parser.add_argument("--steps", type=int, help="training steps (default: those of the configs)")
  parser.add_argument("names", nargs="*", help="objectives (default: all)")
  options = parser.parse_args()

  labels = np.repeat(np.arange(10), options.images_per_caption)
  captions, seeds = digits.captions(labels), np.arange(len(labels))
  parts = digits.split(
    digits.load(), test_fraction=datasets.TEST_FRACTION, seed=datasets.SPLIT_SEED
  )
  judge = classifier.fit(*parts)
  reference = interop.load_pipeline(options.reference)
  sampler = sampler_of(reference, num_steps=SOLVER_STEPS, guidance=GUIDANCE)
  requests = requests_for(reference, captions, seeds)[0]

  def draw(pipeline):
    return pipelines.sample_in_batches(
      sampler, pipeline.params, requests, batch_size=IMAGES_AT_A_TIME
    )

  def report(name, scores, change, seconds):
    win = "" if scores["win_rate"] is None else cell(scores["win_rate"])
    moved = "" if change is None else f"{change[0]:+.4f} | {change[1]:+.4f}"
    print(
      f"| {name} | {cell(scores['ink'])} | {win} | {cell(scores['digit_accuracy'])} | "
      f"{scores['diversity']['vendi']:.2f} | {moved or ' | '} | {seconds} |",
      flush=True,
    )

  print("| objective | mean ink | win rate | digit right | Vendi | e_w - r_w | e_l - r_l | s |")
  print("|---|---|---|---|---|---|---|---|")
  baseline = draw(reference)
  measured = measure(baseline, labels, predict=judge.predict, baseline=None)
  report("reference", measured, None, "")
  for name in options.names or sorted(losses.OBJECTIVES):
    result, change = run(name, options)
    images = draw(interop.load_pipeline(result.pipeline))
    measured = measure(images, labels, predict=judge.predict, baseline=baseline)
    report(name, measured, change, f"{result.seconds:.0f}")


if __name__ == "__main__":
  main()
