"""Compare models with a reference on a prompt set, under any scorers, with intervals.

  dmpo-jax evaluate --reference models/sd15 dmpo=runs/sd15 lora=fox.safetensors \\
    --prompts PartiPrompts.tsv --seeds 2 --scorer pickscore=models/PickScore_v1 --out evaluation

A model is a pipeline (folder or "owner/name" on the hub), the work directory of a finished run, a
LoRA of the reference, or a folder of samples; NAME=PATH names it. All models are sampled from the
same prompts, seeds and noise. OUT then holds the images, scores.parquet with a row per image,
evaluation.json with all statistics, and report.html, one page that needs no other file.

Interrupted, the same command resumes and ends with the same files. Further models and scorers can
be added. With several processes on a shared disk, each runs this command and samples its share.
"""

import argparse
import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from dmpo_jax.commands import sampling_options, several_processes
from dmpo_jax.commands.scorer_options import add_scorer, key_of
from dmpo_jax.common import paths

LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  add = parser.add_argument
  add("models", nargs="*", metavar="NAME=PATH", help="the candidates")
  add("--reference", required=True, metavar="[NAME=]PATH", help="the model to compare with")
  add(
    "--prompts",
    type=paths.argument,
    help="prompt set: .txt (a prompt per line), .tsv without quoting (PartiPrompts), .csv, .json "
    "(HPSv2), .jsonl (GenEval) or .parquet (Pick-a-Pic); not beside a reference of samples",
  )
  add(
    "--source",
    type=paths.argument,
    help="of editing pipelines, image or folder of images that every prompt edits; beside prompts "
    "with a column source_image, the folder of these files",
  )
  add("--category", metavar="COLUMN", help="column of the categories (default: category, tag)")
  add("--limit", type=int, metavar="N", help="use N prompts, evenly spaced over the set")
  add_scorer(parser, "--scorer", action="append", required=True)
  add("--variant", help="variant of the pipelines' weights, such as fp16")
  add("--out", required=True, type=paths.argument, help="folder of the evaluation")
  sampling_options.add_arguments(parser)
  add("--no-progress", action="store_true", help="no progress bars")
  several_processes.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
  """Evaluates, prints the scores, and returns the exit status."""
  return several_processes.run(options, _evaluate)


def _evaluate(options: argparse.Namespace, processes) -> None:
  from tqdm import tqdm

  from dmpo_jax.errors import InputError
  from dmpo_jax.evaluation import evaluate

  models = [_model(options.reference, "reference")]
  models += [_model(text, None) for text in options.models]
  if models[0].kind == evaluate.LORA:
    raise InputError(f"{models[0].path} is a LoRA; give the pipeline that it adapts as --reference")
  units, details = _units(options, models[0])
  sampling_options.check(options, list(dict.fromkeys(units.prompts)))
  bars = processes.is_first and not options.no_progress

  def progress(text: str) -> Callable:
    return functools.partial(tqdm, desc=text, unit="batch", disable=not bars)

  result = evaluate.evaluate(
    options.out,
    models,
    units,
    [_scorer(text) for text in options.scorer],
    settings=sampling_options.settings_of(options),
    details=details,
    batch_size=options.batch_size,
    variant=options.variant,
    processes=processes,
    progress=progress,
  )
  if processes.is_first:
    print(_table(result))
    print(f"report in {options.out / evaluate.REPORT}")


def _model(text: str, name: str | None):
  """The model that an argument names, with a name of its own if it has none."""
  from dmpo_jax.errors import InputError, short
  from dmpo_jax.evaluation.evaluate import LORA, PIPELINE, SAMPLES, Model
  from dmpo_jax.sampling import image_folder
  from dmpo_jax.training.results import PIPELINE as RESULT
  from dmpo_jax.training.run_directory import RUN_FILE, read_run

  first, equals, rest = text.partition("=")
  if not equals and name is None:
    raise InputError(f"the candidate {short(text)} has no name; give NAME=PATH")
  name, location = (first, rest) if equals else (name, text)
  path = paths.parse(location)
  if not location:
    raise InputError(f"{short(text)} has no path; give NAME=PATH")
  if path.is_file():
    return Model(name, location, LORA)
  if not path.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", location):
    raise InputError(
      f"{short(location)} is no file, no folder and no hub repository (owner/name); check the path"
    )
  if not path.is_dir() or (path / "model_index.json").is_file():
    return Model(name, location, PIPELINE)
  if (path / RUN_FILE).is_file():
    read_run(path)
    if not (path / RESULT / "model_index.json").is_file():
      raise InputError(
        f"{path} is a run that has not finished: it has no {RESULT}; train it to its end, or give "
        "a pipeline that dmpo-jax export writes of its last checkpoint"
      )
    return Model(name, str(path / RESULT), PIPELINE)
  if (path / image_folder.MANIFEST).is_file():
    return Model(name, location, SAMPLES)
  if (path / image_folder.UNFINISHED).is_file():
    raise InputError(f"{path} holds unfinished samples; finish them with the same dmpo-jax sample")
  has_weights = any(path.glob("*.safetensors")) or any(path.glob("*/*.safetensors"))
  return Model(name, location, LORA if has_weights else PIPELINE)


def _units(options: argparse.Namespace, reference) -> tuple[Any, dict[str, Any]]:
  """Prompts and seeds, and facts on them."""
  from dmpo_jax.data import prompt_sets
  from dmpo_jax.errors import InputError
  from dmpo_jax.evaluation import units
  from dmpo_jax.evaluation.evaluate import SAMPLES
  from dmpo_jax.sampling import sources

  if reference.kind == SAMPLES:
    if options.prompts is not None:
      raise InputError(
        f"the reference {reference.path} is a folder of samples, which has its own prompts; leave "
        "--prompts out"
      )
    if options.source is not None:
      raise InputError(
        f"the reference {reference.path} is a folder of samples, which has its own source images; "
        "leave --source out"
      )
    return units.of_folder(paths.parse(reference.path))[0], {"file": None, "repeated": None}
  if options.prompts is None:
    raise InputError("--prompts is missing: a file of prompts to sample")
  prompts = prompt_sets.read(options.prompts, category=options.category)
  prompts = sources.pair(prompts, options.source, options.prompts)
  prompts = prompt_sets.limited(prompts, options.limit)
  if prompts.repeated:
    LOGGER.info("%d rows repeat an earlier prompt and are left out", prompts.repeated)
  sampling_options.check(options, prompts.prompts)
  last = options.first_seed + len(prompts.prompts) * options.seeds - 1
  if last >= 2**32:
    raise InputError(f"--first-seed gives seeds up to {last}; the largest is {2**32 - 1}")
  chosen = units.of_prompts(prompts, images_per_prompt=options.seeds, first_seed=options.first_seed)
  return chosen, {"file": options.prompts.name, "repeated": prompts.repeated}


def _scorer(text: str):
  """A scorer of the command line; its key changes where its weights do."""
  from dmpo_jax.evaluation.evaluate import ScorerSource
  from dmpo_jax.evaluation.scorers import parse_scorer

  return ScorerSource(functools.partial(parse_scorer, text), key_of(text))


def _table(result: dict[str, Any]) -> str:
  """Scores of all models as lines of text."""
  from dmpo_jax.evaluation.statistics import Interval

  lines = []
  width = max(len(model["name"]) for model in result["models"])
  for scorer, entries in result["scores"].items():
    lines.append(f"{scorer}, {result['prompts']['count']} prompts")
    lines.append(f"{'':<{width}}  {'mean':<22} {'change':<24} win rate")
    for model, entry in entries.items():
      mean, *compared = (
        None if entry[key] is None else Interval(*entry[key])
        for key in ("mean", "difference", "win_rate")
      )
      change, rate = compared
      text = f"{model:<{width}}  {mean!s:<22}"
      lines.append(text if change is None else f"{text} {change!s:<24} {rate.as_percent()}")
  if result["diversity"]:
    lines.append(f"distance of the images of a prompt ({result['diversity']['space']})")
    for model, entry in result["diversity"]["models"].items():
      ratio = entry["distance_ratio"]
      kept = "" if ratio is None else f", {Interval(*ratio).as_percent()} of the reference's"
      lines.append(f"{model:<{width}}  {entry['distance'][0]:.4f}{kept}")
  return "\n".join(lines)
