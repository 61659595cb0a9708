"""Trains, aligns and compares small models that edit handwritten digits by instruction.

A reference learns edits of uneven quality. DMPO and DPO align it on pairs in which the edit that is
done and keeps the rest is mostly preferred. All edit the same held-out digits from the same noise.
"""

import csv
import functools
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dmpo_jax import configs as config_files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.ranges import Integers, check_integer
from dmpo_jax.data import datasets, prompt_sets
from dmpo_jax.data.toy import digit_edits, digits
from dmpo_jax.demos.digits import classifier
from dmpo_jax.evaluation import evaluate, units
from dmpo_jax.evaluation.scorers import Edits, Images, Scorer
from dmpo_jax.evaluation.statistics import Interval
from dmpo_jax.pipelines.sample_folder import SamplingSettings
from dmpo_jax.sampling import image_folder, sources, to_uint8
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.run import train

# Those that are evaluated; the others turn a digit into another one than a seven.
INSTRUCTIONS = (digit_edits.BOLDER, digit_edits.THINNER, digit_edits.TURN[digit_edits.SEVEN])
MODELS = {"reference": "reference", "dmpo": "DMPO", "dpo": "DPO"}
SETTINGS = SamplingSettings(steps=20, guidance=2.0, image_guidance=1.5)
SOURCES, TABLE, EVALUATION = "sources", "edits.csv", "evaluation"
SCORES = ("preference", "strength", "kept")
COUNTS = Integers(2, 1000)


def run(
  workdir: pathlib.Path,
  *,
  edits_per_instruction: int = 40,
  reference_steps: int | None = None,
  steps: int | None = None,
  show_progress: bool = True,
) -> dict[str, Any]:
  """Results of the whole comparison, after the phases that are not done yet.

  Writes sources/, edits.csv, a run for each model, and evaluation/ with report.html and edits.png.
  Interrupted and called again with the same arguments, it resumes.

  Args:
    workdir: Directory of the runs and the evaluation.
    edits_per_instruction: Held-out digits that each of the three `INSTRUCTIONS` edits.
    reference_steps: Training steps of the reference; None: its config's.
    steps: Alignment steps of each objective; None: their configs'.
    show_progress: Whether to show progress bars.

  Returns:
    The content of evaluation.json, see `evaluate.evaluate`.

  Raises:
    InputError: The number of edits is out of range, or see `training.run.train`.
  """
  check_integer("edits_per_instruction", edits_per_instruction, COUNTS)
  workdir.mkdir(parents=True, exist_ok=True)
  # A run that resumes loads its compiled step from here.
  jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
  folder, pipelines = pathlib.Path(config_files.__file__).parent, {}
  for name in MODELS:
    config = load_config(str(folder / f"digits_edit_{name}.py"))
    num_steps = reference_steps if name == "reference" else steps
    if num_steps is not None:
      config.num_steps = num_steps
    if pipelines:
      config.pipeline = str(pipelines["reference"])
    pipelines[name] = train(config, workdir / name, show_progress=show_progress).pipeline
  table = write_edits(workdir, edits_per_instruction)
  edits = sources.pair(prompt_sets.read(table), workdir / SOURCES, table)
  return evaluate.evaluate(
    workdir / EVALUATION,
    [
      evaluate.Model(label, str(pipelines[name]), evaluate.PIPELINE)
      for name, label in MODELS.items()
    ],
    units.of_prompts(edits, images_per_prompt=1),
    [evaluate.ScorerSource(functools.partial(scorer, name), [name, 1]) for name in SCORES],
    settings=SETTINGS,
    details={"file": TABLE, "repeated": 0},
    batch_size=120,
    progress=lambda text: functools.partial(
      tqdm, desc=text, unit="batch", disable=not show_progress
    ),
  )


def write_edits(workdir: pathlib.Path, count: int) -> pathlib.Path:
  """Writes held-out digits as PNG files, and a table of the edits that are asked for.

  Args:
    workdir: sources/ and edits.csv are written into it.
    count: Edits of each instruction; their sources go in turn through the digits, but for the one
      that the instruction asks for.

  Returns:
    The table, with the columns source and prompt.
  """
  held_out = _digits()[1]
  members = [np.flatnonzero(held_out.labels == label) for label in range(10)]
  rows: list[tuple[str, str]] = []
  for number, instruction in enumerate(INSTRUCTIONS):
    others = [label for label in range(10) if instruction != digit_edits.TURN[label]]
    for k in range(count):
      label = others[k % len(others)]
      place = members[label][(k // len(others) + number) % len(members[label])]
      rows.append((f"{place:03d}.png", instruction))
  (workdir / SOURCES).mkdir(exist_ok=True)
  pictures = np.asarray(to_uint8(held_out.images))
  for name in dict.fromkeys(name for name, _ in rows):
    image_folder.write_picture(workdir / SOURCES / name, pictures[int(name[:3])])
  stream = io.StringIO(newline="")
  writer = csv.writer(stream)
  writer.writerows([("source", "prompt"), *rows])
  write_atomically(workdir / TABLE, stream.getvalue())
  return workdir / TABLE


def scorer(name: str) -> Scorer:
  """The declared rule of the preferences, or one of its two parts, as a score of images.

  Args:
    name: "strength" or "kept" (see `digit_edits`), or "preference", their sum. A classifier says
      which digit an edit shows.

  Returns:
    A `Scorer` of edits, whose prompts are the instructions.
  """

  def scores(images: Images, prompts: Sequence[str], edits: Edits) -> np.ndarray:
    x, source = (_grey(pictures) for pictures in (images, edits.sources))
    parts = {
      "strength": lambda: digit_edits.strength(x, source, prompts, _classifier()(x)),
      "kept": lambda: digit_edits.kept(x, source, prompts),
    }
    return parts[name]() if name in parts else parts["strength"]() + parts["kept"]()

  return Scorer(name, scores, needs_prompts=True, needs_sources=True)


def text_table(result: Mapping[str, Any]) -> str:
  """The scores of all models as lines of text, in all and for each instruction."""
  lines = [f"{'':<24} {'model':<10} {'strength':<22} {'kept':<22} win rate"]
  entries = {"all": result["scores"]}
  entries |= {name: entry["scores"] for name, entry in result["categories"].items()}
  for what, scores in entries.items():
    for model in MODELS.values():
      rate = scores["preference"][model]["win_rate"]
      columns = [str(Interval(*scores[name][model]["mean"])) for name in ("strength", "kept")]
      last = "" if rate is None else Interval(*rate).as_percent()
      lines.append(f"{what:<24} {model:<10} {columns[0]:<22} {columns[1]:<22} {last}".rstrip())
      what = ""
  return "\n".join(lines)


@functools.cache
def _digits() -> tuple[digits.Digits, digits.Digits]:
  """The digits of training and those that are held out."""
  return digits.split(digits.load(), test_fraction=datasets.TEST_FRACTION, seed=datasets.SPLIT_SEED)


@functools.cache
def _classifier() -> Callable[[np.ndarray], np.ndarray]:
  return classifier.fit(*_digits()).predict


def _grey(pictures: Images) -> np.ndarray:
  """float64 `[N, 8, 8, 1]` in [-1, 1] of grey uint8 `[8, 8, 3]`."""
  return np.stack(list(pictures))[..., :1] / 127.5 - 1
