"""An evaluation: images of several models from the same prompts and seeds, scored and compared."""

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import dmpo_jax
from dmpo_jax import pipelines
from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.optional import import_optional
from dmpo_jax.errors import InputError, short
from dmpo_jax.evaluation import comparison, edit_grid, evaluation_report, score_files, score_table
from dmpo_jax.evaluation.scorers import Scorer
from dmpo_jax.evaluation.units import Units, check_same, of_folder
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.pipelines import sample_folder
from dmpo_jax.sampling import image_folder
from dmpo_jax.sampling.sources import copy_name, digest

RESULTS, TABLE, REPORT = "evaluation.json", "scores.parquet", "report.html"
IMAGES, SCORES = "images", "scores"
PIPELINE, LORA, SAMPLES = "pipeline", "lora", "samples"

# `progress(text)` wraps a sequence for a progress bar with that text.
Progress = Callable[[str], Callable]

LOGGER = logging.getLogger(__name__)


class Model(NamedTuple):
  """A model of an evaluation.

  Attributes:
    name: Name in tables, which is also that of its folder.
    path: A pipeline (folder or hub repository), a LoRA of the reference, or a folder of samples.
    kind: `PIPELINE`, `LORA` or `SAMPLES`.
  """

  name: str
  path: str
  kind: str


class ScorerSource(NamedTuple):
  """How a scorer is loaded, and what its scores depend on.

  Attributes:
    load: Returns the scorer. Scorers are loaded one at a time.
    key: Name, options and fingerprint of the weights, in JSON.
  """

  load: Callable[[], Scorer]
  key: Any


class ModelImages(NamedTuple):
  """The finished images of a model.

  Attributes:
    files: File of each image, N.
    content: Everything that the images depend on, in JSON.
    settings: The settings that they were sampled with; None for a folder of samples.
    truncated: Place and text of the prompts that are longer than the context of the text encoder;
      None if unknown.
    sources: Of edits, file of the source image of each as the model saw it, N; None for others.
  """

  files: list[paths.Path]
  content: Any
  settings: dict[str, Any] | None
  truncated: list[tuple[str, str]] | None
  sources: list[paths.Path] | None = None


def evaluate(
  out: paths.Path,
  models: Sequence[Model],
  units: Units,
  scorers: Sequence[ScorerSource],
  *,
  settings: sample_folder.SamplingSettings,
  details: Mapping[str, Any],
  batch_size: int | None = None,
  variant: str | None = None,
  processes: Processes | None = None,
  progress: Progress = lambda text: iter,
) -> dict[str, Any]:
  """Samples what is missing, scores it, and writes the table, the statistics and the report.

  Interrupted at any moment and called again with the same arguments, it ends with the same files:
  images and chunks of scores that are finished are kept. Further models and scorers can be added.

  Args:
    out: Folder of the evaluation: images/MODEL/, scores/MODEL/SCORER/, scores.parquet,
      evaluation.json and report.html. All processes share it.
    models: The reference, then the candidates.
    units: Prompts and seeds of the images.
    scorers: The scorers; the first one chooses the images that the report shows.
    settings: Settings of sampling. Solver, guidance and size that are None are the reference's.
    details: Facts on the prompts for the report, in JSON: "file", "repeated".
    batch_size: Images at a time.
    variant: Variant of the pipelines' weights.
    processes: The processes, all of which call this; None: this one alone.
    progress: `progress(text)` wraps a sequence for a progress bar with that text.

  Returns:
    The content of evaluation.json.

  Raises:
    InputError: Two models or scorers have one name, a pipeline, image or scorer cannot be used,
      the folder holds an evaluation of other prompts or weights, or a folder of samples has other
      prompts or seeds.
  """
  processes = processes or Processes()
  _check_names([model.name for model in models])
  for module in ("pyarrow.parquet", "matplotlib.figure"):  # before hours of sampling
    import_optional(module, extra="data,monitor")
  names, features = _scorer_names(scorers, units)
  with image_folder.locked(out) if processes.is_first else contextlib.nullcontext():
    images = _sample(out, models, units, settings, batch_size, variant, processes, progress)
    scores = _score(out, images, units, scorers, names, features, processes, progress)
    processes.barrier()
    if not processes.is_first:
      return {}
    measured = _measured(out, images, units, names, scores)
    result = {
      "dmpo_jax": dmpo_jax.__version__,
      "models": [model._asdict() for model in models],
      "scorers": names,
      "prompts": {
        "count": units.num_prompts,
        "images": len(units.prompts),
        **({} if units.sources is None else {"sources": len(set(units.sources))}),
        **details,
        "longer_than_context": {name: x.truncated for name, x in images.items()},
      },
      "settings": {name: x.settings for name, x in images.items()},
      **comparison.compare(measured),
    }
    files = {name: sampled.files for name, sampled in images.items()}
    score_table.write(out / TABLE, units, files, measured.scores)
    sources = images[models[0].name].sources
    if sources is not None:
      edit_grid.render(units, sources, files, path=out / edit_grid.GRID)
    page = evaluation_report.render(result, measured, units, files, sources)
    write_atomically(out / REPORT, page)
    write_atomically(out / RESULTS, json.dumps(result, indent=1) + "\n")
  return result


def _check_names(names: Sequence[str]) -> None:
  for name in names:
    if not name or name in (".", "..") or set(name) & set("/\\\0\n\r\t") or len(name) > 100:
      raise InputError(
        f"the name {short(name)} cannot be that of a folder; give NAME=PATH with another name"
      )
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise InputError(f"two models have the name {short(twice)}; name them NAME=PATH")


def _scorer_names(scorers: Sequence[ScorerSource], units: Units) -> tuple[list[str], int | None]:
  """Names of scorers, and the number of the first one with image features, if there is one.

  Loads each once, so that what is wrong with its weights is said before images are sampled.
  """
  names, features = [], None
  for number, source in enumerate(scorers):
    scorer = source.load()
    scorer.check_edits(units.sources is not None, units.captions is not None)
    names.append(scorer.name)
    if features is None and scorer.embeddings is not None:
      features = number
  if not names:
    raise InputError("an evaluation needs at least one scorer; give --scorer")
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise InputError(f"two scorers have the name {twice}; evaluate them in two folders")
  return names, features


def _sample(
  out: paths.Path,
  models: Sequence[Model],
  units: Units,
  settings: sample_folder.SamplingSettings,
  batch_size: int | None,
  variant: str | None,
  processes: Processes,
  progress: Progress,
) -> dict[str, ModelImages]:
  """Images of each model by name, after those that are missing are sampled."""
  samplers: dict[str, Any] = {}
  result: dict[str, ModelImages] = {}
  for model in models:
    if model.kind == SAMPLES:
      first = next(iter(result.values()), None)
      result[model.name] = _of_samples(model, units, first and first.sources)
      continue
    lora = paths.parse(model.path) if model.kind == LORA else None
    base = models[0].path if lora else model.path
    pipeline = pipelines.load(base, variant=variant, dtype=None)
    job = sample_folder.prepare(
      pipeline,
      units.prompts,
      units.seeds,
      settings,
      lora=lora,
      sources=units.sources,
      samplers=samplers,
    )
    del pipeline
    if not result:  # all models are sampled as the reference is
      record = job.settings
      settings = dataclasses.replace(
        settings,
        solver=record["solver"],
        karras=settings.karras if settings.karras is not None else record.get("karras") or None,
        guidance=record["guidance"],
        image_guidance=record.get("image_guidance"),
        height=record["height"],
        width=record["width"],
      )
    folder = out / IMAGES / model.name
    content = {
      **job.settings,
      "prompts": units.prompts,
      "seeds": units.seeds.tolist(),
      "content": job.content,
    }
    files = [image_folder.image_name(*x) for x in zip(units.groups, units.seeds, strict=True)]
    copies = [copy_name(group) for group in units.groups]
    done = None
    if processes.is_first:
      folder.mkdir(parents=True, exist_ok=True)
      done = image_folder.open_folder(folder, content, files, shape=job.shape)
      sample_folder.write_sources(job, folder, units.groups)
    done = processes.broadcast(done)
    sample_folder.sample_missing(
      job,
      folder,
      files,
      done,
      batch_size=batch_size,
      share=(processes.index, processes.count),
      devices=jax.local_devices(),
      progress=progress(f"sample {model.name}"),
    )
    processes.barrier()
    if processes.is_first:
      images = image_folder.listed(
        files,
        units.prompts,
        units.seeds.tolist(),
        sources=units.sources and copies,
        source_files=units.sources,
        captions=units.captions,
      )
      facts = {"pipeline": model.path, "scheduler": job.scheduler, "images": images}
      image_folder.close_folder(folder, content, facts)
    result[model.name] = ModelImages(
      [folder / file for file in files],
      content,
      job.settings,
      _truncated(job, units),
      units.sources and [folder / copy for copy in copies],
    )
    if long := result[model.name].truncated:
      LOGGER.warning(
        "%d of %d prompts are longer than the context of %s's text encoder and were cut, the first "
        "is in %s: %s",
        *(len(long), units.num_prompts, model.name, long[0][0], short(long[0][1], 200)),
      )
  return result


def _of_samples(model: Model, units: Units, sources: Sequence[paths.Path] | None) -> ModelImages:
  """Images of a folder of samples; `sources` are those of the reference's edits."""
  folder = paths.parse(model.path)
  others, names = of_folder(folder)
  where = folder / image_folder.MANIFEST
  check_same(units, others, where, "the evaluation")
  files = [folder / name for name in names]
  stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in files]
  own = others.sources and [paths.parse(source) for source in others.sources]
  if sources is not None and digest(own) != digest(sources):
    raise InputError(
      f"{where}: the source images are others than the reference's; all models must edit the same"
    )
  content = [names, stamps, *([digest(own)] if own else [])]
  return ModelImages(files, content, None, None, own)


def _truncated(job: sample_folder.SamplingJob, units: Units) -> list[tuple[str, str]]:
  """Place and text of the prompts that are longer than the context."""
  if not job.truncated:
    return []
  first = np.flatnonzero(np.diff(units.groups, prepend=-1))
  prompts = zip(units.places, [units.prompts[row] for row in first], strict=True)
  is_cut = functools.cache(lambda prompt: job.functions.tokenize([prompt])[1] > 0)
  return [(place, prompt) for place, prompt in prompts if is_cut(prompt)]


def _score(
  out: paths.Path,
  images: Mapping[str, ModelImages],
  units: Units,
  scorers: Sequence[ScorerSource],
  names: Sequence[str],
  features: int | None,
  processes: Processes,
  progress: Progress,
) -> dict[tuple[str, str], tuple[dict[str, Any], str | None]]:
  """(scorer, model) -> key and space of its scores, after those that are missing are computed."""
  result = {}
  for number, (name, source) in enumerate(zip(names, scorers, strict=True)):
    scorer = source.load()
    if number == (features or 0):
      space = score_files.PIXELS if features is None else "features"
    else:
      space = None
    for model, sampled in images.items():
      key = {"scorer": source.key, "space": space, "images": sampled.content}
      score_files.score_chunks(
        _folder(out, model, name),
        sampled.files,
        units,
        scorer,
        key=key,
        space=space,
        share=(processes.index, processes.count),
        sources=sampled.sources,
        progress=progress(f"score {model} {name}"),
      )
      result[name, model] = (key, space)
    del scorer
  return result


def _folder(out: paths.Path, model: str, scorer: str) -> paths.Path:
  safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in scorer)
  return out / SCORES / model / safe


def _measured(
  out: paths.Path,
  images: Mapping[str, ModelImages],
  units: Units,
  names: Sequence[str],
  keys: Mapping[tuple[str, str], tuple[dict[str, Any], str | None]],
) -> comparison.Measured:
  """The scores of all models, read from their files."""
  scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
  vendi, distance, space_name = {}, {}, score_files.PIXELS
  for (name, model), (key, space) in keys.items():
    read = score_files.read_scores(_folder(out, model, name), units, key=key, space=space)
    scores[name][model] = read.scores
    if space is not None:
      vendi[model], distance[model] = read.vendi, read.distance
      space_name = score_files.PIXELS if space == score_files.PIXELS else name
  return comparison.Measured(
    list(images), units.groups, units.categories, scores, space_name, vendi, distance
  )
