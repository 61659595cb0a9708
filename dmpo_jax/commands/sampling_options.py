"""Options of the commands that sample images, and their checks."""

import argparse
from collections.abc import Sequence

DTYPES = ("float32", "bfloat16", "float16")
LARGEST_SIDE, MOST_IMAGES = 16_384, 1_000_000
LARGEST_FLOAT32 = 3.4028234e38


def add_arguments(
  parser: argparse.ArgumentParser, *, count: str = "--seeds", default: int = 4
) -> None:
  """Declares the options that images depend on beside pipeline and prompts.

  Args:
    parser: The command's parser.
    count: Name of the option for the number of images per prompt; its value is `seeds`.
    default: Its default.
  """
  add = parser.add_argument
  add("--negative", help="a negative prompt for all images")
  add(
    count,
    dest="seeds",
    metavar="N",
    type=int,
    default=default,
    help=f"images per prompt (default: {default})",
  )
  parser.set_defaults(count_option=count)
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
  add(
    "--image-guidance",
    type=float,
    help="of edits, guidance scale of the source image, at least 1, which is none (default: 1.5)",
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


def settings_of(options: argparse.Namespace):
  """The options as `pipelines.SamplingSettings`."""
  import dataclasses

  from dmpo_jax.pipelines.sample_folder import SamplingSettings

  names = [field.name for field in dataclasses.fields(SamplingSettings)]
  return SamplingSettings(**{name: getattr(options, name) for name in names})


def check(options: argparse.Namespace, prompts: Sequence[str]) -> None:
  """Raises InputError for a value out of range, or a prompt that is no UTF-8 text."""
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
        option = options.count_option if name == "seeds" else f"--{name.replace('_', '-')}"
        raise InputError(f"{option} must be {bound}, got {short(value)}")
  last, count = options.first_seed + options.seeds - 1, options.count_option
  if last >= 2**32:
    raise InputError(f"--first-seed and {count} give seed {last}; the largest is {2**32 - 1}")
  if len(prompts) * options.seeds > MOST_IMAGES:
    raise InputError(
      f"{len(prompts)} prompts with {count} {options.seeds} are more than {MOST_IMAGES} images; "
      "sample them in several folders"
    )
  for text in [*prompts, options.negative or ""]:
    if any("\ud800" <= character <= "\udfff" for character in text):
      raise InputError(f"the prompt {short(text)} is not UTF-8 text")
  if options.guidance is not None and not abs(options.guidance) <= LARGEST_FLOAT32:
    raise InputError(f"--guidance must be a finite float32 number, got {options.guidance}")
  if not 0 <= options.guidance_rescale <= 1:
    raise InputError(f"--guidance-rescale must be from 0 to 1, got {options.guidance_rescale}")
