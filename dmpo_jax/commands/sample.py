"""Sample images from a pipeline: a folder in diffusers' format or a repository of the hub.

Writes one PNG per prompt and seed, each batch at once, then a grid (a row per prompt, a column per
seed) and manifest.json with all settings. The same prompt and seed give the same image whatever the
other prompts and the batch size. Interrupted, the same command resumes; a folder of images belongs
to the weights that it was begun with.

Pipelines for editing need --source: every prompt is an instruction for every image of it, image by
image. A table of --prompts with a column source_image (or source) names one for each instead; its
paths are relative to --source, or to the table's folder.
"""

import argparse
import logging

from dmpo_jax.commands import sampling_options
from dmpo_jax.common import paths

LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  add = parser.add_argument
  add("--pipeline", required=True, help='pipeline folder, or "owner/name" on the hub')
  add("--revision", help="branch, tag or commit of the repository on the hub")
  add("--variant", help="variant of the weights, such as fp16 (default: weights without a variant)")
  add("--lora", type=paths.argument, help="LoRA file to merge into the pipeline")
  add(
    "--negative-lora",
    type=paths.argument,
    help="LoRA file for the negative branch of guidance alone (Diffusion-NPO)",
  )
  add(
    "--negative-weight",
    type=float,
    help="fraction of --lora that the negative branch leaves out, 0 to 1 (default: 1, all)",
  )
  add("--potential", type=paths.argument, help="folder of a potential to follow (docs/ddo.md)")
  add(
    "--drift",
    help="estimator of the potential's drift: nested, reinforce, log_h or denoising (default: the "
    "one that the potential has learned, otherwise nested)",
  )
  add("--particles", type=int, help="particles of nested and reinforce (default: 64)")
  add("--inner-steps", type=int, help="steps of each of their simulations (default: 15)")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--prompt", action="append", help="a prompt; can be repeated")
  source.add_argument(
    "--prompts",
    type=paths.argument,
    help="text file with one prompt per line, or a table as evaluate reads it",
  )
  add("--source", type=paths.argument, help="image to edit, or folder of images")
  add("--out", required=True, type=paths.argument, help="folder for the images")
  sampling_options.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
  """Samples the missing images and prints the folder."""
  edits = _prompts(options)
  prompts = edits.prompts
  sampling_options.check(options, prompts)

  import functools

  import jax
  import numpy as np
  from tqdm import tqdm

  from dmpo_jax import pipelines
  from dmpo_jax.pipelines import sample_folder
  from dmpo_jax.sampling import image_folder

  check_no_workdir(paths.parse(options.pipeline))
  pipeline = pipelines.load(
    options.pipeline, revision=options.revision, variant=options.variant, dtype=None
  )
  seeds = list(range(options.first_seed, options.first_seed + options.seeds))
  rows = [(row, prompt, seed) for row, prompt in enumerate(prompts) for seed in seeds]
  names = [image_folder.image_name(row, seed) for row, _, seed in rows]
  job = sample_folder.prepare(
    pipeline,
    [prompt for _, prompt, _ in rows],
    np.array([seed for _, _, seed in rows], np.uint32),
    sampling_options.settings_of(options),
    lora=options.lora,
    negative_lora=options.negative_lora,
    negative_weight=options.negative_weight,
    steer=_steer(options),
    sources=edits.sources and [edits.sources[row] for row, _, _ in rows],
  )
  del pipeline
  settings = {**job.settings, "prompts": prompts, "seeds": seeds, "content": job.content}
  with image_folder.locked(options.out):
    done = image_folder.open_folder(options.out, settings, names, shape=job.shape)
    sources = sample_folder.write_sources(job, options.out, [row for row, _, _ in rows])
    batch_size = sample_folder.sample_missing(
      job,
      options.out,
      names,
      done,
      batch_size=options.batch_size,
      progress=functools.partial(tqdm, desc="sample", unit="batch"),
    )
    grid_rows = image_folder.write_grid(options.out, names, len(seeds))
    results = {
      "pipeline": options.pipeline,
      "revision": options.revision,
      "variant": options.variant,
      "lora": str(options.lora) if options.lora else None,
      "negative_lora": str(options.negative_lora) if options.negative_lora else None,
      "negative_weight": options.negative_weight,
      **({"potential": str(options.potential)} if options.potential else {}),
      "scheduler": job.scheduler,
      "batch_size": batch_size,
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "prompts_truncated": job.truncated // len(seeds),
      "grid_rows": grid_rows,
      "images": image_folder.listed(
        names,
        [prompt for _, prompt, _ in rows],
        [seed for _, _, seed in rows],
        sources=sources,
        source_files=edits.sources and [edits.sources[row] for row, _, _ in rows],
        captions=edits.captions and [edits.captions[row] for row, _, _ in rows],
      ),
    }
    image_folder.close_folder(options.out, settings, results)
  if job.truncated:
    LOGGER.warning(
      "%d prompts are longer than the text encoder's context and were cut",
      results["prompts_truncated"],
    )
  print(f"{len(names)} images in {options.out}" + (f", {sum(done)} from before" * any(done)))


def _prompts(options: argparse.Namespace):
  """The prompts, with the source images of edits."""
  from dmpo_jax.data import prompt_sets
  from dmpo_jax.sampling import sources

  if options.prompt is None and options.prompts.suffix.lower() in prompt_sets.FORMATS[1:]:
    listed = prompt_sets.read(options.prompts)
    return sources.pair(listed, options.source, options.prompts)
  prompts = options.prompt or prompt_sets.lines(options.prompts)
  empty = [""] * len(prompts)
  return sources.pair(prompt_sets.PromptSet(prompts, empty, empty, 0), options.source, None)


def _steer(options: argparse.Namespace):
  """The potential to follow; None without one."""
  from dmpo_jax.errors import InputError
  from dmpo_jax.pipelines import potential_folder, sample_folder, steering

  if options.potential is None:
    for name in ("drift", "particles", "inner_steps"):
      if getattr(options, name) is not None:
        raise InputError(f"--{name.replace('_', '-')} has no effect without --potential")
    return None
  drift = options.drift or potential_folder.learned_drift(options.potential) or "nested"
  nested = drift in steering.NESTED or drift not in steering.DRIFTS
  for name in ("particles", "inner_steps"):
    if getattr(options, name) is not None and not nested:
      raise InputError(f"--{name.replace('_', '-')} has no effect on the learned drift {drift!r}")
  defaults = steering.Steering._field_defaults
  return sample_folder.Steer(
    options.potential,
    drift,
    defaults["particles"] if options.particles is None else options.particles,
    defaults["inner_steps"] if options.inner_steps is None else options.inner_steps,
  )


def check_no_workdir(folder: paths.Path) -> None:
  """Raises InputError if the pipeline is the work directory of a run."""
  from dmpo_jax.errors import InputError
  from dmpo_jax.training.run_directory import RUN_FILE, read_run

  if (folder / RUN_FILE).is_file() and not (folder / "model_index.json").is_file():
    read_run(folder)
    raise InputError(
      f"{folder} is a work directory; sample from {folder / 'pipeline'}, which training writes "
      "at its end, or from a pipeline that dmpo-jax export writes"
    )
