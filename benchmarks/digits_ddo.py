"""Potentials on the handwritten digits beside fine-tuned models: ink, digit, diversity and cost.

    python benchmarks/digits_ddo.py --quickstart runs/quickstart --workdir runs/ddo

The reference and the fine-tuned models are those of `launch/quickstart.sh`. For each loss (RLHF,
DPO, KTO) and for K = 1, 2, 3 loops it learns a potential from one set of samples of the reference,
samples with the learned drift, and measures as the quickstart does. Writes results.json,
report.html and comparison.png. An interrupted run resumes.
"""

import argparse
import base64
import json
import pathlib
import shutil
import time

import jax
import numpy as np

from dmpo_jax import configs, pipelines
from dmpo_jax.commands.potential import score_of
from dmpo_jax.data import datasets
from dmpo_jax.data.toy import digits
from dmpo_jax.demos.digits import classifier, quickstart
from dmpo_jax.demos.digits.measurement import measure
from dmpo_jax.evaluation import image_grids
from dmpo_jax.pipelines.sample_folder import SamplingSettings, Steer, prepare
from dmpo_jax.pipelines.steering import Steering
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.potential.run import learn
from dmpo_jax.training.potential.samples import FILE

LOSSES = ("rlhf", "dpo", "kto")
SETTINGS = SamplingSettings(steps=quickstart.SOLVER_STEPS, guidance=quickstart.GUIDANCE)


def learn_all(options):
  """Loss and number of loops -> the run's result."""
  file = pathlib.Path(configs.__file__).parent / "digits_ddo.py"
  results, pool = {}, options.samples
  for loss in options.losses:
    for loops in options.loops:
      config = load_config(f"{file}:{loss}")
      config.pipeline = str(options.quickstart / "reference" / "pipeline")
      config.num_loops = loops
      config.num_devices = 1
      workdir = options.workdir / f"{loss}_{loops}"
      if pool is not None and not (workdir / FILE).exists():  # all runs share their samples
        workdir.mkdir(parents=True, exist_ok=True)
        shutil.copy(pool, workdir / FILE)
      started = time.perf_counter()
      result = learn(config, workdir, score_of("ink"), show_progress=False)
      pool = pool or workdir / FILE
      print(f"{loss}, {loops} loops: {time.perf_counter() - started:.0f} s", flush=True)
      results[loss, loops] = result
  return results


def sample(pipeline, prompts, seeds, steer, samplers):
  """Images, and seconds a sample once compiled."""
  job = prepare(pipeline, prompts, seeds, SETTINGS, steer=steer, samplers=samplers)
  device = jax.devices()[:1]
  few = jax.tree.map(lambda x: x[:100], job.inputs)
  run = {"batch_size": 100, "devices": device}
  pipelines.sample_all(job.sampler, job.params, few, **run)
  started = time.perf_counter()
  images = pipelines.sample_all(job.sampler, job.params, job.inputs, **run)
  return images, (time.perf_counter() - started) / len(images)


def importance(folder, held_out):
  """Mean ink of q by the potential's weights on held-out samples of the reference."""
  from dmpo_jax.models import potential as networks
  from dmpo_jax.pipelines.potential_folder import load_potential
  from dmpo_jax.pipelines.steering import prompts_text

  pipeline, functions, x = held_out
  potential = load_potential(folder, pipeline)
  text = prompts_text(functions, pipeline.params, digits.captions(range(10)))
  rows = np.repeat(text, x.shape[1], axis=0)
  flat = x.reshape(-1, *x.shape[2:])
  apply = jax.jit(networks.build(potential.config).apply)
  f = apply(potential.params, flat, rows, np.zeros(len(flat)))
  weights = np.asarray(jax.nn.softmax(-f.reshape(x.shape[:2]), axis=1))
  return float((weights * digits.ink(flat).reshape(x.shape[:2])).sum(1).mean())


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quickstart", type=pathlib.Path, default=pathlib.Path("runs/quickstart"))
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/ddo_digits"))
  parser.add_argument("--images-per-caption", type=int, default=20)
  parser.add_argument("--nested-per-caption", type=int, default=5, help="images of nested drifts")
  parser.add_argument("--losses", nargs="*", default=list(LOSSES))
  parser.add_argument("--loops", type=int, nargs="*", default=[1, 2, 3])
  parser.add_argument("--samples", type=pathlib.Path, help="reference_samples.npz of another run")
  parser.add_argument(
    "--compare", nargs="*", default=["DMPO=dmpo", "DPO=dpo"], help="LABEL=run of the quickstart"
  )
  options = parser.parse_args()
  options.workdir.mkdir(parents=True, exist_ok=True)
  learned = learn_all(options)

  prompts, labels, seeds = quickstart.prompts_and_seeds(options.images_per_caption)
  parts = digits.split(
    digits.load(), test_fraction=datasets.TEST_FRACTION, seed=datasets.SPLIT_SEED
  )
  fitted = classifier.fit(*parts)
  reference = pipelines.load(options.quickstart / "reference" / "pipeline")
  first = options.workdir / f"{options.losses[0]}_{options.loops[0]}"
  x = np.load(first / FILE)["x"]
  held_out = (
    reference,
    pipelines.build(reference),
    x.reshape(10, -1, *x.shape[1:])[:, :100],
  )
  samplers, rows, pictures = {}, [], []
  baseline = None

  def add(label, pipeline, steer=None, loops=None, per_caption=None):
    nonlocal baseline
    keep = (
      slice(None)
      if per_caption is None
      else np.flatnonzero(np.arange(len(labels)) % options.images_per_caption < per_caption)
    )
    chosen = [prompts[i] for i in np.arange(len(labels))[keep]]
    images, seconds = sample(pipeline, chosen, seeds[keep], steer, samplers)
    base = None if baseline is None else baseline[keep]
    scores = measure(images, labels[keep], predict=fitted.predict, baseline=base)
    baseline = images if baseline is None else baseline
    steps = quickstart.SOLVER_STEPS
    evaluations = (
      steps * 2 if steer is None else Steering(None, *steer[1:]).evaluations(steps, True)
    )
    rows.append(
      {
        "label": label,
        "images": len(images),
        "ink": scores["ink"],
        "aim": importance(steer.folder, held_out) if steer else None,
        "kl": loops[-1]["kl"] if loops else None,
        "ess": loops[-1]["effective_sample_size"] if loops else None,
        "digit": scores["digit_accuracy"],
        "vendi": scores["diversity"]["vendi"],
        "pairwise": scores["diversity"]["pairwise"].value,
        "evaluations": evaluations,
        "seconds": seconds,
      }
    )
    grid = images.reshape(10, -1, *images.shape[1:])[:, :5]
    pictures.append(image_grids.Panel(label, f"ink {scores['ink'].value:.3f}", grid))
    print(json.dumps(rows[-1], default=list), flush=True)

  add("reference", reference)
  for entry in options.compare:
    label, name = entry.split("=")
    add(label, pipelines.load(options.quickstart / name / "pipeline"))
  for (loss, loops), result in learned.items():
    steer = Steer(result.potential, "log_h", 0, 0)._replace(particles=1, inner_steps=1)
    add(f"{loss.upper()}, K = {loops}", reference, steer, result.loops)
  if options.nested_per_caption:
    result = learned[options.losses[0], options.loops[-1]]
    for particles, inner in ((16, 6),):
      steer = Steer(result.potential, "nested", particles, inner)
      label = f"RLHF, K = {options.loops[-1]}, nested, M = {particles}"
      add(label, reference, steer, result.loops, options.nested_per_caption)
  write_report(options.workdir, rows, pictures, learned)


def write_report(folder, rows, pictures, learned):
  """Writes results.json, comparison.png and report.html."""
  loops = {f"{loss}_{k}": result.loops for (loss, k), result in learned.items()}
  text = json.dumps({"models": rows, "loops": loops}, indent=1, default=list)
  (folder / "results.json").write_text(text + "\n")
  image_grids.comparison(
    pictures, digits.WORDS, colours=quickstart.COLOURS, path=folder / "comparison.png"
  )
  lines = [
    "| model | ink | ink of q | KL | ESS | digit right | Vendi | evaluations | s a sample |",
    "|---|---|---|---|---|---|---|---|---|",
  ]

  def number(value, form):
    return "" if value is None else format(value, form)

  for row in rows:
    lines.append(
      f"| {row['label']} | {row['ink']} | {number(row['aim'], '.3f')} | {number(row['kl'], '.2f')} "
      f"| {number(row['ess'], '.0%')} | {row['digit'].as_percent()} | {row['vendi']:.2f} | "
      f"{row['evaluations']} | {row['seconds']:.3f} |"
    )
  print("\n".join(lines))
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  table = "".join(
    "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in [cells[0], *cells[2:]]
  )
  picture = base64.b64encode((folder / "comparison.png").read_bytes()).decode()
  (folder / "report.html").write_text(
    "<!doctype html><meta charset=utf-8><title>Potentials on digits</title>"
    "<style>body{font:15px sans-serif;margin:2em}td{padding:.2em .8em}</style>"
    f"<h1>Potentials on handwritten digits</h1><table>{table}</table>"
    f'<p><img src="data:image/png;base64,{picture}" style="max-width:100%"></p>\n'
  )


if __name__ == "__main__":
  main()
