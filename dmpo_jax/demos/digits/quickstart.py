"""Trains, aligns, samples and compares small models on handwritten digits.

A text-conditional reference model is trained, then aligned with DMPO, DPO and conservative DPO on
pairs in which heavier strokes are mostly preferred. All models sample from the same noise.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from dmpo_jax import configs as config_files
from dmpo_jax import sampling
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data import datasets
from dmpo_jax.data.toy import digits
from dmpo_jax.demos.digits import classifier
from dmpo_jax.demos.digits.measurement import measure
from dmpo_jax.demos.digits.report import render
from dmpo_jax.demos.digits.samples import ModelSampler
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import image_grids, statistics
from dmpo_jax.evaluation.diffusers_parity import compare_with_diffusers
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.run import Result, train

SOLVER_STEPS, GUIDANCE, SAMPLING_BATCH_SIZE = 20, 2.0, 100
SHOWN_PER_CAPTION, MOST_PER_CAPTION = 8, 10_000  # in the sample grids; in all
COLOURS = ("#ffffff", "#14161c")  # of blank paper and full ink
PARITY_IMAGES = 20
PACKAGES = (*("dmpo-jax", "jax", "flax", "optax", "orbax-checkpoint", "diffusers", "scikit-learn"),)


class Experiment(NamedTuple):
  """A kind of network, its configs, and how its report names them.

  Attributes:
    configs: Beginning of the config files' names, before "_reference" and the objectives.
    aligned: Objective, the end of a config file's name -> label.
    title: Title of the report.
    solver: Name of the pipeline's own solver.
    command: Command that makes the report.
    diffusers: Options of the call by which diffusers samples the same images.
  """

  configs: str
  aligned: Mapping[str, str]
  title: str
  solver: str
  command: str
  diffusers: Mapping[str, Any]


EXPERIMENTS = {
  "unet": Experiment(
    configs="digits",
    aligned={"dmpo": "DMPO", "dpo": "DPO", "cdpo": "cDPO"},
    title="DMPO on handwritten digits",
    solver="DDIM",
    command="launch/quickstart.sh",
    diffusers={},
  ),
  "flow": Experiment(
    configs="digits_flow",
    aligned={"dmpo": "DMPO", "dpo": "DPO"},
    title="DMPO on handwritten digits, a transformer with flow matching",
    solver="Euler",
    command="dmpo-jax quickstart --flow",
    diffusers={"max_sequence_length": 0},
  ),
}


def run(
  workdir: pathlib.Path,
  *,
  images_per_caption: int,
  experiment: Experiment = EXPERIMENTS["unet"],
  reference_steps: int | None = None,
  steps: int | None = None,
  show_progress: bool = True,
) -> dict:
  """Results of the whole comparison, after the phases that are not done yet.

  Writes results.json, report.html, comparison.png and a grid for each model. Interrupted and called
  again with the same arguments, it resumes.

  Args:
    workdir: Directory of the runs and the report.
    images_per_caption: Samples per caption and model, `SHOWN_PER_CAPTION` to `MOST_PER_CAPTION`.
    experiment: One of `EXPERIMENTS`.
    reference_steps: Training steps of the reference; None: its config's.
    steps: Alignment steps of each objective; None: their configs'.
    show_progress: Whether to show progress bars.

  Returns:
    The dict that `report.render` takes.

  Raises:
    InputError: `images_per_caption` is out of range, or see `training.run.train`.
  """
  if not SHOWN_PER_CAPTION <= images_per_caption <= MOST_PER_CAPTION:
    bound = "least" if images_per_caption < SHOWN_PER_CAPTION else "most"
    limit = SHOWN_PER_CAPTION if bound == "least" else MOST_PER_CAPTION
    raise InputError(f"--images-per-caption must be at {bound} {limit}, got {images_per_caption}")
  workdir.mkdir(parents=True, exist_ok=True)
  configs, runs = _train_all(workdir, experiment, reference_steps, steps, show_progress)
  prompts, labels, seeds = prompts_and_seeds(images_per_caption)
  started = time.perf_counter()
  images = _sample_all(workdir, runs, prompts, seeds, show_progress)
  sampled = time.perf_counter()
  results = _measure_all(workdir, experiment, configs, runs, images, labels)
  results["export"] = _check_export(
    runs["dmpo"].pipeline, prompts, seeds, images["dmpo"], experiment.diffusers
  )
  results["seconds"] = {
    **{_training_phase(name, result): result.seconds for name, result in runs.items()},
    "sampling": sampled - started,
    "evaluation": time.perf_counter() - sampled,
  }
  _write_grids(workdir, results, images)
  write_atomically(workdir / "results.json", json.dumps(results, indent=2, default=_to_json) + "\n")
  write_atomically(workdir / "report.html", render(results))
  return results


def prompts_and_seeds(images_per_caption: int) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Prompts, digits and seeds of the samples of every model.

  No two samples of a model share noise, since the intervals take them as independent. All models
  share the seeds.

  Args:
    images_per_caption: Samples of each of the ten captions.

  Returns:
    Captions, digits and seeds; N = 10 * images_per_caption of each.
  """
  labels = np.repeat(np.arange(10), images_per_caption)
  return digits.captions(labels), labels, np.arange(len(labels))


def text_table(results: Mapping) -> str:
  """The scores of all models as lines of text, with 95% intervals."""
  lines = [f"{'model':<10} {'mean ink':<22} {'win rate':<22} {'digit right':<22} diversity"]
  for model in results["models"]:
    columns = [
      "-" if interval is None else str(interval)
      for interval in (model["ink"], model["win_rate"], model["digit_accuracy"])
    ]
    lines.append(
      f"{model['label']:<10} "
      + " ".join(f"{column:<22}" for column in columns)
      + f" {model['diversity']['vendi']:.2f}"
    )
  return "\n".join(lines)


def _train_all(
  workdir: pathlib.Path,
  experiment: Experiment,
  reference_steps: int | None,
  steps: int | None,
  show_progress: bool,
) -> tuple[dict[str, ConfigDict], dict[str, Result]]:
  """Configs and results of the reference and the aligned models, by name."""
  folder = pathlib.Path(config_files.__file__).parent
  configs = {
    name: load_config(str(folder / f"{experiment.configs}_{name}.py"))
    for name in ("reference", *experiment.aligned)
  }
  runs = {}
  for name, config in configs.items():
    num_steps = reference_steps if name == "reference" else steps
    if num_steps is not None:
      config.num_steps = num_steps
    if name != "reference":
      config.pipeline = str(runs["reference"].pipeline)
    runs[name] = train(config, workdir / name, show_progress=show_progress)
  return configs, runs


def _training_phase(name: str, result: Result) -> str:
  """Name of the training time in the report: the time of the last start, if there were several."""
  return f"training {name}" + (f" from step {result.resumed_at}" if result.resumed_at else "")


def _sample_all(
  workdir: pathlib.Path,
  runs: Mapping[str, Result],
  prompts: Sequence[str],
  seeds: np.ndarray,
  show_progress: bool,
) -> dict[str, np.ndarray]:
  """Samples `[N, H, W, C]` of each model by name; they are kept in the runs' directories."""
  sampler = ModelSampler(num_steps=SOLVER_STEPS, guidance=GUIDANCE, batch_size=SAMPLING_BATCH_SIZE)
  return {
    name: sampler.samples(
      result.pipeline,
      workdir / name / f"samples_{len(prompts) // 10}.npz",
      prompts,
      seeds,
      progress=functools.partial(
        tqdm, desc=f"sampling {name}", unit="batch", disable=not show_progress
      ),
    )
    for name, result in runs.items()
  }


def _measure_all(
  workdir: pathlib.Path,
  experiment: Experiment,
  configs: Mapping[str, ConfigDict],
  runs: Mapping[str, Result],
  images: Mapping[str, np.ndarray],
  labels: np.ndarray,
) -> dict:
  """The report's dict, without export, times and sample grids."""
  train_digits, test_digits = digits.split(
    digits.load(), test_fraction=datasets.TEST_FRACTION, seed=datasets.SPLIT_SEED
  )
  rule = {k: v for k, v in configs["dmpo"].data.items() if k != "name"}
  pairs = digits.preference_pairs(train_digits, **rule)
  fitted = classifier.fit(train_digits, test_digits)
  real_ink = digits.ink(test_digits.images)
  # As many real images per digit as there are samples: the Vendi score grows with their number.
  per_digit = len(labels) // 10
  real = np.concatenate(
    [np.flatnonzero(test_digits.labels == digit)[:per_digit] for digit in range(10)]
  )
  real_images, real_labels = test_digits.images[real], test_digits.labels[real]
  models = []
  for name, result in runs.items():
    config, is_reference = configs[name], name == "reference"
    models.append(
      {
        "name": name,
        "label": experiment.aligned.get(name, "reference"),
        "hyperparameters": {
          **{k: v for k, v in config.loss.items() if k != "name"},
          "steps": result.steps,
          "batch size": config.batch_size,
          "learning rate": config.optimizer.learning_rate,
          "EMA decay": config.ema_decay,
        },
        **measure(
          images[name],
          labels,
          predict=fitted.predict,
          baseline=None if is_reference else images["reference"],
        ),
        "grid_png": b"",
        "curves": None if is_reference else _curves(metrics.read(workdir / name)),
        "train_seconds": result.seconds,
        "pairs_per_second": None if is_reference else result.examples_per_second,
      }
    )
  return {
    "title": experiment.title,
    "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "machine": f"{os.cpu_count()} x {platform.machine()} ({jax.default_backend()}), "
    f"{platform.system()}",
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    "command": experiment.command,
    "data": {
      "train_images": len(train_digits.labels),
      "test_images": len(test_digits.labels),
      "pairs": len(pairs.labels),
      "temperature": rule["temperature"],
      "label_flip_rate": float(pairs.flipped.mean()),
      "classifier_accuracy": fitted.accuracy,
      "classifier_heavier_accuracy": fitted.heavier_accuracy,
      "classifier_test_images": fitted.test_images,
      "real_ink": statistics.bootstrap(real_ink),
      "real_ink_values": real_ink.tolist(),
      "real_diversity": {
        "pairwise": statistics.pairwise_distance(real_images, real_labels),
        "vendi": statistics.vendi(real_images, real_labels),
      },
      "pairs_png": image_grids.pairs(
        pairs.images[:12], digits.ink(pairs.images[:12]), colours=COLOURS
      ),
    },
    "sampling": {
      "solver": experiment.solver,
      "steps": SOLVER_STEPS,
      "guidance": GUIDANCE,
      "images per caption": per_digit,
    },
    "models": models,
  }


def _curves(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
  """Training curves of a run; the errors are the policy's minus the reference's."""
  return {
    "step": [row["step"] for row in rows],
    "preferred_error": [row["policy_w"] - row["reference_w"] for row in rows],
    "rejected_error": [row["policy_l"] - row["reference_l"] for row in rows],
    **{name: [row[name] for row in rows] for name in ("loss", "accuracy", "logit")},
  }


def _check_export(
  folder: pathlib.Path,
  prompts: Sequence[str],
  seeds: np.ndarray,
  images: np.ndarray,
  options: Mapping[str, Any],
) -> dict:
  """Files of an exported pipeline, and how far torch diffusers' samples differ from ours."""
  rows = np.linspace(0, len(seeds) - 1, PARITY_IMAGES).astype(int)
  check = compare_with_diffusers(
    folder,
    [prompts[i] for i in rows],
    np.asarray(sampling.initial_noise(seeds[rows], images.shape[1:])),
    images[rows],
    num_steps=SOLVER_STEPS,
    guidance=GUIDANCE,
    **options,
  )
  files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
  return {"path": str(folder), "files": files, "torch_check": check}


def _write_grids(workdir: pathlib.Path, results: dict, images: Mapping[str, np.ndarray]) -> None:
  """Writes the PNG grids and adds them to the results."""
  panels = []
  for model in results["models"]:
    samples = images[model["name"]]
    grid = samples.reshape(10, -1, *samples.shape[1:])[:, :SHOWN_PER_CAPTION]  # [10, S, H, W, C]
    path = workdir / f"{model['name']}.png"
    model["grid_png"] = image_grids.grid(grid, digits.WORDS, colours=COLOURS, path=path)
    panels.append(image_grids.Panel(model["label"], _note(model), grid[:, :5]))
  path = workdir / "comparison.png"
  image_grids.comparison(panels, digits.WORDS, colours=COLOURS, path=path)


def _note(model: Mapping) -> str:
  """Ink and win rate of a model in a few words."""
  ink, win_rate = f"ink {model['ink'].value:.3f}", model["win_rate"]
  return ink if win_rate is None else f"{ink}, wins {win_rate.value:.0%}"


def _to_json(value: object) -> object:
  """JSON of a NumPy number, and of a PNG its size alone: the pictures are files of their own."""
  return f"{len(value)} bytes of PNG" if isinstance(value, bytes) else float(value)
