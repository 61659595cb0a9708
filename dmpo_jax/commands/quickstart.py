"""Train, align, sample and compare small models on real images, and write a report.

A text-conditional reference model is trained on scikit-learn's handwritten digits, then aligned
with DMPO, DPO and conservative DPO on pairs in which heavier strokes are mostly preferred; all are
sampled from the same noise and judged. Interrupted, it goes on where it was. Open
WORKDIR/report.html.
"""

import argparse
import functools
import json
import pathlib
import time

from dmpo_jax import pipelines
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.demos.digits import classifier
from dmpo_jax.demos.digits.measurement import measure
from dmpo_jax.demos.digits.report import render

ALIGNED = {"dmpo": "DMPO", "dpo": "DPO", "cdpo": "cDPO"}
SOLVER_STEPS, GUIDANCE, IMAGES_AT_A_TIME = 20, 2.0, 100
SHOWN_PER_CAPTION = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
    default=pathlib.Path("runs/quickstart"),
    help="directory of the runs and the report (default: runs/quickstart)",
  )
  parser.add_argument(
    "--images-per-caption", type=int, default=40, help="samples per caption and model (default: 40)"
  )
  parser.add_argument("--reference-steps", type=int, help="training steps of the reference")
  parser.add_argument("--steps", type=int, help="alignment steps of each objective")
  parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> None:
  """Runs the phases that are not done yet and writes the report."""
  from dmpo_jax.errors import InputError

  if options.images_per_caption < SHOWN_PER_CAPTION:
    raise InputError(
      f"--images-per-caption must be at least {SHOWN_PER_CAPTION}, got {options.images_per_caption}"
    )
  workdir = options.workdir
  workdir.mkdir(parents=True, exist_ok=True)
  configs, runs = _train_all(options)
  prompts, labels, seeds = _prompts(options.images_per_caption)
  started = time.perf_counter()
  images = _sample_all(runs, prompts, seeds, options)
  sampled = time.perf_counter()
  results = _measure(configs, runs, images, labels, options)
  results["export"] = _check_export(runs["dmpo"].pipeline, prompts, seeds, images["dmpo"])
  results["seconds"] = {
    **{_training(name, result): result.seconds for name, result in runs.items()},
    "sampling": sampled - started,
    "evaluation": time.perf_counter() - sampled,
  }
  _draw(workdir, results, images, labels)
  write_atomically(workdir / "results.json", json.dumps(results, indent=2, default=_plain) + "\n")
  write_atomically(workdir / "report.html", render(results))
  _print_table(results)
  print(f"\nreport: {workdir / 'report.html'}\npicture: {workdir / 'comparison.png'}")


def _train_all(options: argparse.Namespace) -> tuple[dict, dict]:
  """The configs and results of the reference and the aligned models, by name."""
  import jax

  from dmpo_jax import configs as folder
  from dmpo_jax.training.config_file import load_config
  from dmpo_jax.training.run import train

  # A run that is taken up again need not compile again.
  jax.config.update("jax_compilation_cache_dir", str((options.workdir / "compiled").absolute()))
  place = pathlib.Path(folder.__file__).parent
  configs = {
    name: load_config(str(place / f"digits_{name}.py")) for name in ("reference", *ALIGNED)
  }
  runs = {}
  for name, config in configs.items():
    steps = options.reference_steps if name == "reference" else options.steps
    if steps is not None:
      config.num_steps = steps
    if name != "reference":
      config.pipeline = str(runs["reference"].pipeline)
    runs[name] = train(config, options.workdir / name, show_progress=not options.no_progress)
  return configs, runs


def _training(name: str, result) -> str:
  """What a run's time is the time of: its last start, if it was interrupted."""
  return f"training {name}" + (f" from step {result.resumed_at}" if result.resumed_at else "")


def _prompts(images_per_caption: int):
  """Captions, digits and seeds `[10 * images_per_caption]`; no two samples of a model share noise,
  for the intervals take them as independent, while all models share the seeds."""
  import numpy as np

  from dmpo_jax.data.toy import digits

  labels = np.repeat(np.arange(10), images_per_caption)
  return digits.captions(labels), labels, np.arange(len(labels))


def _sample_all(runs, prompts, seeds, options) -> dict:
  """Images `[N, H, W, C]` of each run's pipeline by name, kept in the runs' directories."""
  import numpy as np
  from tqdm import tqdm

  from dmpo_jax import interop
  from dmpo_jax.pipelines.generate import requests_for, sampler_of

  found, sampler = {}, None
  for name, result in runs.items():
    path = options.workdir / name / f"samples_{options.images_per_caption}.npz"
    weights = result.pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    if path.exists() and path.stat().st_mtime > weights.stat().st_mtime:
      found[name] = np.load(path)["images"]
      continue
    pipeline = interop.load_pipeline(result.pipeline)
    # The models differ in parameters alone, so one compiled sampler serves them all.
    sampler = sampler or sampler_of(pipeline, num_steps=SOLVER_STEPS, guidance=GUIDANCE)
    bar = functools.partial(
      tqdm, desc=f"sampling {name}", unit="batch", disable=options.no_progress
    )
    found[name] = pipelines.sample_in_batches(
      sampler,
      pipeline.params,
      requests_for(pipeline, prompts, seeds)[0],
      batch_size=IMAGES_AT_A_TIME,
      progress=bar,
    )
    write_atomically(path, functools.partial(np.savez_compressed, images=found[name]))
  return found


def _measure(configs, runs, images, labels, options) -> dict:
  """The report's dict, without export, times and pictures."""
  import datetime
  import importlib.metadata

  import numpy as np

  from dmpo_jax import evaluation
  from dmpo_jax.data import datasets
  from dmpo_jax.data.toy import digits
  from dmpo_jax.training.monitor import metrics

  train, test = digits.split(
    digits.load(), test_fraction=datasets.TEST_FRACTION, seed=datasets.SPLIT_SEED
  )
  rule = {k: v for k, v in configs["dmpo"].data.items() if k != "name"}
  pairs = digits.preference_pairs(train, **rule)
  judge = classifier.fit(train, test)
  real_ink = evaluation.statistics.ink(test.images)
  # As many images a digit as were drawn: the Vendi score grows with their number.
  few = np.concatenate(
    [np.flatnonzero(test.labels == digit)[: options.images_per_caption] for digit in range(10)]
  )
  real_diversity = {
    "pairwise": evaluation.statistics.pairwise_distance(test.images[few], test.labels[few]),
    "vendi": evaluation.statistics.vendi(test.images[few], test.labels[few]),
  }
  models = []
  for name, result in runs.items():
    config = configs[name]
    rows = metrics.read(options.workdir / name)
    optimizer = config.optimizer
    models.append(
      {
        "name": name,
        "label": ALIGNED.get(name, "reference"),
        "hyperparameters": {
          **{k: v for k, v in config.loss.items() if k != "name"},
          "steps": result.steps,
          "batch size": config.batch_size,
          "learning rate": optimizer.learning_rate,
          "EMA decay": config.ema_decay,
        },
        **measure(
          images[name],
          labels,
          predict=judge.predict,
          baseline=None if name == "reference" else images["reference"],
        ),
        "grid_png": b"",
        "curves": None if name == "reference" else _curves(rows),
        "train_seconds": result.seconds,
        "pairs_per_second": None if name == "reference" else result.examples_per_second,
      }
    )
  packages = ("dmpo-jax", "jax", "flax", "optax", "orbax-checkpoint", "diffusers", "scikit-learn")
  return {
    "title": "DMPO on handwritten digits",
    "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "machine": _machine(),
    "versions": {name: importlib.metadata.version(name) for name in packages},
    "command": "launch/quickstart.sh",
    "data": {
      "train_images": len(train.labels),
      "test_images": len(test.labels),
      "pairs": len(pairs.labels),
      "temperature": rule["temperature"],
      "label_noise": float(pairs.flipped.mean()),
      "classifier_accuracy": judge.accuracy,
      "classifier_heavier_accuracy": judge.heavier_accuracy,
      "classifier_test_images": judge.test_images,
      "real_ink": evaluation.statistics.bootstrap(real_ink),
      "real_ink_values": real_ink.tolist(),
      "real_diversity": real_diversity,
      "pairs_png": evaluation.plots.pairs(pairs.images[:12], pairs.flipped[:12]),
    },
    "sampling": {
      "solver": "DDIM",
      "steps": SOLVER_STEPS,
      "guidance": GUIDANCE,
      "images per caption": options.images_per_caption,
    },
    "models": models,
  }


def _curves(rows: list[dict]) -> dict:
  """The curves of a run's metrics: errors of the policy minus the reference's."""
  return {
    "step": [row["step"] for row in rows],
    "winner_error": [row["policy_w"] - row["reference_w"] for row in rows],
    "loser_error": [row["policy_l"] - row["reference_l"] for row in rows],
    **{name: [row[name] for row in rows] for name in ("loss", "accuracy", "logit")},
  }


def _check_export(folder, prompts, seeds, images) -> dict:
  """Where the aligned model was written, and whether torch diffusers draws the same from it."""
  import numpy as np

  from dmpo_jax import sampling
  from dmpo_jax.evaluation.diffusers_parity import compare_with_diffusers

  few = np.linspace(0, len(seeds) - 1, 20).astype(int)
  check = compare_with_diffusers(
    folder,
    [prompts[i] for i in few],
    np.asarray(sampling.initial_noise(seeds[few], images.shape[1:])),
    images[few],
    num_steps=SOLVER_STEPS,
    guidance=GUIDANCE,
  )
  files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
  return {"path": str(folder), "files": files, "torch_check": check}


def _draw(workdir, results, images, labels) -> None:
  """Writes the PNG grids and puts them into the results."""
  from dmpo_jax.data.toy.digits import WORDS
  from dmpo_jax.evaluation import plots

  panels = []
  for model in results["models"]:
    sheet = images[model["name"]].reshape(10, -1, *images[model["name"]].shape[1:])
    shown = sheet[:, :SHOWN_PER_CAPTION]  # [10, SHOWN, H, W, C]
    model["grid_png"] = plots.grid(shown, WORDS, path=workdir / f"{model['name']}.png")
    panels.append(plots.Panel(model["label"], _note(model), shown[:, :5]))
  plots.comparison(panels, WORDS, path=workdir / "comparison.png")


def _note(model: dict) -> str:
  ink = f"ink {model['ink'].value:.3f}"
  win = model["win_rate"]
  return ink if win is None else f"{ink}, wins {win.value:.0%}"


def _print_table(results: dict) -> None:
  print(f"\n{'model':<10} {'mean ink':<22} {'win rate':<22} {'digit right':<22} diversity")
  for model in results["models"]:
    columns = [
      "-" if interval is None else f"{interval[0]:.3f} [{interval[1]:.3f}, {interval[2]:.3f}]"
      for interval in (model["ink"], model["win_rate"], model["digit_accuracy"])
    ]
    print(
      f"{model['label']:<10} "
      + " ".join(f"{column:<22}" for column in columns)
      + f" {model['diversity']['vendi']:.2f}"
    )


def _machine() -> str:
  import os
  import platform

  import jax

  return f"{os.cpu_count()} x {platform.machine()} ({jax.default_backend()}), {platform.system()}"


def _plain(value):
  """JSON for what the results hold beside numbers and text: pictures are left to their files."""
  return f"{len(value)} bytes of PNG" if isinstance(value, bytes) else float(value)
