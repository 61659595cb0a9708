"""Sample images from a pipeline: a folder in diffusers' format or a repository of the hub.

Writes one PNG per prompt and seed, each batch at once, then a grid (a row per prompt, a column per
seed) and manifest.json with all settings. The same prompt and seed give the same image whatever the
other prompts and the batch size. Interrupted, the same command resumes.
"""

import argparse
import logging
import math
import pathlib

LOGGER = logging.getLogger(__name__)
DTYPES = ("float32", "bfloat16", "float16")


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
    help="ddim, euler, euler_ancestral or dpm_solver_pp_2m (default: the pipeline's)",
  )
  add(
    "--karras",
    action=argparse.BooleanOptionalAction,
    help="Karras sigmas for euler and dpm_solver_pp_2m (default: the pipeline's)",
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
  _check(options)
  prompts = options.prompt or _read_prompts(options.prompts)

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
  size = (settings["height"], settings["width"])
  sampler = pipelines.make_sampler(
    functions,
    functions.make_solver(
      settings["steps"], name=settings["solver"], karras=options.karras, size=size
    ),
    size=size,
    guidance=settings["guidance"],
    guidance_rescale=settings["guidance_rescale"],
    negative=options.negative is not None,
  )
  rows = [(row, prompt, seed) for row, prompt in enumerate(prompts) for seed in settings["seeds"]]
  names = [f"{row:05d}_{seed:010d}.png" for row, _, seed in rows]
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
  missing = np.flatnonzero(~np.array(image_folder.open_folder(options.out, settings, names)))
  batch_size = options.batch_size or (64 if functions.autoencoder is None else 4)
  if missing.size:
    batches = pipelines.sample_batches(
      sampler,
      pipelines.cast_params(functions, pipeline.params, dtype),
      jax.tree.map(lambda x: x[missing], inputs),
      batch_size=batch_size,
      progress=lambda batches: tqdm(batches, desc="sample", unit="batch"),
    )
    positions = iter(missing)
    for batch in batches:
      for image in np.asarray(sampling.to_uint8(batch)):
        image_folder.write_picture(options.out / names[next(positions)], image)
  grid_rows = image_folder.write_grid(options.out, names, len(settings["seeds"]))
  results = {
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
    "pipeline": options.pipeline,
    "revision": options.revision,
    "variant": options.variant,
    "lora": str(options.lora) if options.lora else None,
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


def _check(options: argparse.Namespace) -> None:
  """Raises InputError for a value out of range."""
  from dmpo_jax.errors import InputError

  for name, least in (
    ("seeds", 1),
    ("first_seed", 0),
    ("steps", 1),
    ("height", 1),
    ("width", 1),
    ("batch_size", 1),
  ):
    value = getattr(options, name)
    if value is not None and value < least:
      raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
  last = options.first_seed + options.seeds - 1
  if last >= 2**32:
    raise InputError(f"--first-seed and --seeds give seed {last}; the largest is {2**32 - 1}")
  if options.guidance is not None and not math.isfinite(options.guidance):
    raise InputError(f"--guidance must be finite, got {options.guidance}")
  if not 0 <= options.guidance_rescale <= 1:
    raise InputError(f"--guidance-rescale must be from 0 to 1, got {options.guidance_rescale}")


def _read_prompts(path: pathlib.Path) -> list[str]:
  from dmpo_jax.errors import InputError

  try:
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"cannot read prompts from {path}: {error}") from error
  prompts = [prompt for prompt in prompts if prompt]
  if not prompts:
    raise InputError(f"{path} has no prompt; write one per line")
  return prompts
