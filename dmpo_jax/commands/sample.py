"""Sample images from a pipeline: a folder in diffusers' format or a repository of the hub.

Writes one PNG per prompt and seed, each batch at once, then a grid (a row per prompt, a column per
seed) and manifest.json with all settings. The same prompt and seed give the same image whatever the
other prompts and the batch size. Interrupted, the same command resumes; a folder of images belongs
to the weights that it was begun with.
"""

import argparse
import logging
import pathlib

LOGGER = logging.getLogger(__name__)
DTYPES = ("float32", "bfloat16", "float16")
LARGEST_SIDE, MOST_IMAGES, LARGEST_FILE = 16_384, 1_000_000, 2**26
LARGEST_FLOAT32 = 3.4028234e38


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  add = parser.add_argument
  add("--pipeline", required=True, help='pipeline folder, or "owner/name" on the hub')
  add("--revision", help="branch, tag or commit of the repository on the hub")
  add("--variant", help="variant of the weights, such as fp16 (default: weights without a variant)")
  add("--lora", type=pathlib.Path, help="LoRA file to merge into the pipeline")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--prompt", action="append", help="a prompt; can be repeated")
  source.add_argument("--prompts", type=pathlib.Path, help="text file with one prompt per line")
  add("--negative", help="a negative prompt for all images")
  add("--out", required=True, type=pathlib.Path, help="folder for the images")
  add("--seeds", type=int, default=4, help="images per prompt (default: 4)")
  add("--first-seed", type=int, default=0, help="seed of the first image (default: 0)")
  add(
    "--solver",
    help="ddim, euler, euler_ancestral, dpm_solver_pp_2m, heun or pndm; of SD3 euler, heun or "
    "dpm_solver_pp_2m (default: the pipeline's)",
  )
  add(
    "--karras",
    action=argparse.BooleanOptionalAction,
    help="Karras sigmas for euler, heun and dpm_solver_pp_2m (default: the pipeline's)",
  )
  add("--steps", type=int, default=50, help="steps of the solver (default: 50)")
  add(
    "--guidance",
    type=float,
    help="guidance scale; 1 and less is none, as in diffusers (default: 7.5, SDXL 5, pixel "
    "pipelines 2)",
  )
  add(
    "--guidance-rescale",
    type=float,
    default=0.0,
    help="guidance rescale, 0 to 1 (default: 0, none)",
  )
  add("--height", type=int, help="height in pixels (default: the pipeline's training size)")
  add("--width", type=int, help="width in pixels (default: the pipeline's training size)")
  size = {"type": int, "nargs": 2}
  add(
    "--original-size",
    **size,
    metavar=("H", "W"),
    help="SDXL's original size (default: height and width)",
  )
  add("--crop", **size, metavar=("TOP", "LEFT"), help="SDXL's crop (default: 0 0)")
  add(
    "--target-size",
    **size,
    metavar=("H", "W"),
    help="SDXL's target size (default: height and width)",
  )
  add("--batch-size", type=int, help="images per batch (default: 64 without a VAE, otherwise 4)")
  add(
    "--dtype",
    choices=DTYPES,
    help="dtype of the networks (default: float32 on CPUs, else bfloat16)",
  )


def run(options: argparse.Namespace) -> None:
  """Samples the missing images and prints the folder."""
  prompts = options.prompt or _read_prompts(options.prompts)
  _check(options, prompts)

  import dataclasses

  import jax
  import numpy as np
  from tqdm import tqdm

  from dmpo_jax import interop, models, pipelines, sampling
  from dmpo_jax.sampling import image_folder

  _check_no_workdir(pathlib.Path(options.pipeline))
  pipeline = pipelines.load(
    options.pipeline, revision=options.revision, variant=options.variant, dtype=None
  )
  dtype = options.dtype or pipelines.default_dtype()
  functions = pipelines.build(pipeline, dtype=dtype)
  settings = _settings(options, functions, prompts, dtype)
  scheduler = settings.pop("scheduler", None)  # its numbers are in the solver's digest
  _check_effects(options, functions, settings["guidance"])
  size = (settings["height"], settings["width"])
  solver = functions.make_solver(
    settings["steps"], name=settings["solver"], karras=options.karras, size=size
  )
  sampler = pipelines.make_sampler(
    functions,
    solver,
    size=size,
    guidance=settings["guidance"],
    guidance_rescale=settings["guidance_rescale"],
    negative=options.negative is not None,
  )
  rows = [(row, prompt, seed) for row, prompt in enumerate(prompts) for seed in settings["seeds"]]
  names = [image_folder.image_name(row, seed) for row, _, seed in rows]
  inputs, truncated = pipelines.sampling_inputs(
    functions,
    [prompt for _, prompt, _ in rows],
    np.array([seed for _, _, seed in rows], np.uint32),
    negative=options.negative,
    size=size,
    original=options.original_size,
    crop=tuple(options.crop or (0, 0)),
    target=options.target_size,
  )
  if options.lora:
    lora = interop.load_lora(options.lora, pipeline.params)
    merged = {
      name: models.lora.merge(pipeline.params[name], tree, alpha=lora.alphas[name])
      for name, tree in lora.params.items()
    }
    pipeline = dataclasses.replace(pipeline, params={**pipeline.params, **merged})
  params = pipelines.cast_params(functions, pipeline.params, dtype)
  pipelines.check_params(params, pipeline.params, dtype=dtype)
  settings["content"] = pipelines.sampling_fingerprint(pipeline, solver, inputs)
  batch_size = options.batch_size or (64 if functions.autoencoder is None else 4)
  with image_folder.locked(options.out):
    done = image_folder.open_folder(
      options.out, settings, names, shape=(*size, functions.image_channels)
    )
    missing = np.flatnonzero(~np.array(done))
    if missing.size:
      batches = pipelines.sample_batches(
        sampler,
        params,
        jax.tree.map(lambda x: x[missing], inputs),
        batch_size=batch_size,
        progress=lambda batches: tqdm(batches, desc="sample", unit="batch"),
      )
      positions = iter(missing)
      for batch in batches:
        for image in batch:
          _, prompt, seed = rows[position := next(positions)]
          pipelines.check_image(image, prompt=prompt, seed=seed, dtype=dtype)
          picture = np.asarray(sampling.to_uint8(image))
          image_folder.write_picture(options.out / names[position], picture)
    grid_rows = image_folder.write_grid(options.out, names, len(settings["seeds"]))
    results = {
      "pipeline": options.pipeline,
      "revision": options.revision,
      "variant": options.variant,
      "lora": str(options.lora) if options.lora else None,
      "scheduler": scheduler,
      "batch_size": batch_size,
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "prompts_truncated": truncated // len(settings["seeds"]),
      "grid_rows": grid_rows,
      "images": [
        {"file": file, "prompt": prompt, "seed": seed}
        for file, (_, prompt, seed) in zip(names, rows, strict=True)
      ],
    }
    image_folder.close_folder(options.out, settings, results)
  if truncated:
    LOGGER.warning(
      "%d prompts are longer than the text encoder's context and were cut",
      results["prompts_truncated"],
    )
  existing = len(names) - missing.size
  print(f"{len(names)} images in {options.out}" + (f", {existing} from before" if existing else ""))


def _check_no_workdir(folder: pathlib.Path) -> None:
  """Raises InputError if the pipeline is the work directory of a run."""
  from dmpo_jax.errors import InputError
  from dmpo_jax.training.run_directory import RUN_FILE, read_run

  if (folder / RUN_FILE).is_file() and not (folder / "model_index.json").is_file():
    read_run(folder)
    raise InputError(
      f"{folder} is a work directory; sample from {folder / 'pipeline'}, which training writes "
      "at its end, or from a pipeline that dmpo-jax export writes"
    )


def _settings(options: argparse.Namespace, functions, prompts: list[str], dtype: str) -> dict:
  """All settings that the images depend on, with the defaults of the pipeline."""
  import jax

  import dmpo_jax

  height, width = options.height, options.width
  if height is None or width is None:
    size = functions.default_size()
    height, width = height or size[0], width or size[1]
  guidance = options.guidance
  return {
    "dmpo_jax": dmpo_jax.__version__,
    "jax": jax.__version__,
    **functions.solver_settings(options.solver, options.karras),
    "steps": options.steps,
    "guidance": functions.default_guidance if guidance is None else guidance,
    "guidance_rescale": options.guidance_rescale,
    "height": height,
    "width": width,
    "original_size": options.original_size,
    "crop": options.crop,
    "target_size": options.target_size,
    "dtype": dtype,
    "negative": options.negative,
    "prompts": prompts,
    "seeds": list(range(options.first_seed, options.first_seed + options.seeds)),
  }


def _check(options: argparse.Namespace, prompts: list[str]) -> None:
  """Raises InputError for a value out of range."""
  from dmpo_jax.errors import InputError, short

  for name, least, most in (
    ("seeds", 1, 2**32),
    ("first_seed", 0, 2**32 - 1),
    ("steps", 1, 2**20),
    ("height", 1, LARGEST_SIDE),
    ("width", 1, LARGEST_SIDE),
    ("original_size", 1, LARGEST_SIDE),
    ("target_size", 1, LARGEST_SIDE),
    ("crop", 0, LARGEST_SIDE),
    ("batch_size", 1, 2**20),
  ):
    values = getattr(options, name)
    for value in [] if values is None else values if isinstance(values, list) else [values]:
      if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise InputError(f"--{name.replace('_', '-')} must be {bound}, got {short(value)}")
  last = options.first_seed + options.seeds - 1
  if last >= 2**32:
    raise InputError(f"--first-seed and --seeds give seed {last}; the largest is {2**32 - 1}")
  if len(prompts) * options.seeds > MOST_IMAGES:
    raise InputError(
      f"{len(prompts)} prompts with --seeds {options.seeds} are more than {MOST_IMAGES} images; "
      "sample them in several folders"
    )
  for text in [*prompts, options.negative or ""]:
    if any("\ud800" <= character <= "\udfff" for character in text):
      raise InputError(f"the prompt {short(text)} is not UTF-8 text")
  if options.guidance is not None and not abs(options.guidance) <= LARGEST_FLOAT32:
    raise InputError(f"--guidance must be a finite float32 number, got {options.guidance}")
  if not 0 <= options.guidance_rescale <= 1:
    raise InputError(f"--guidance-rescale must be from 0 to 1, got {options.guidance_rescale}")


def _check_effects(options: argparse.Namespace, functions, guidance: float) -> None:
  """Raises InputError for an option that has no effect beside another or on this pipeline."""
  from dmpo_jax import diffusion
  from dmpo_jax.errors import InputError

  if not diffusion.has_guidance(guidance):
    for name, is_set in (
      ("negative", options.negative is not None),
      ("guidance-rescale", options.guidance_rescale > 0),
    ):
      if is_set:
        raise InputError(
          f"--{name} has no effect without guidance, and {guidance:g} is none; give --guidance "
          f"above 1, or leave --{name} out"
        )
  for name in ("original_size", "crop", "target_size"):
    if getattr(options, name) is not None and not functions.uses_geometry:
      raise InputError(
        f"--{name.replace('_', '-')} has no effect: this pipeline is not conditioned on sizes, as "
        "SDXL is"
      )


def _read_prompts(path: pathlib.Path) -> list[str]:
  from dmpo_jax.common import files
  from dmpo_jax.errors import InputError

  text = files.read_text(
    path, advice="give a text file with one prompt per line", pipes=True, max_bytes=LARGEST_FILE
  )
  prompts = [line.strip(" \t") for line in files.split_lines(text) if line.strip()]
  if not prompts:
    raise InputError(f"{path} has no prompt; write one per line")
  return prompts
