"""Draw images from a pipeline folder.

Writes one PNG per prompt and seed, a grid of all of them (a row per prompt, a column per seed), and
manifest.json with the settings. The same prompt and seed give the same image in any company.
"""

import argparse
import json
import pathlib

IMAGES_AT_A_TIME = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--pipeline", required=True, type=pathlib.Path, help="folder to draw from")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--prompt", action="append", help="a prompt; may be given several times")
  source.add_argument("--prompts", type=pathlib.Path, help="a text file with a prompt per line")
  parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the images")
  parser.add_argument("--seeds", type=int, default=4, help="images per prompt (default: 4)")
  parser.add_argument("--first-seed", type=int, default=0, help="seed of the first (default: 0)")
  parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: 50)")
  parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale (default: 2)")


def run(options: argparse.Namespace) -> None:
  """Draws the images and says where they lie."""
  import numpy as np
  from PIL import Image
  from tqdm import tqdm

  from dmpo_jax import interop, sampling
  from dmpo_jax.commands.drawing import sampler_of
  from dmpo_jax.errors import InputError

  prompts = options.prompt or _read_prompts(options.prompts)
  if options.seeds < 1:
    raise InputError(f"--seeds must be at least 1, got {options.seeds}")
  pipeline = interop.load_pipeline(options.pipeline)
  sampler = sampler_of(pipeline, num_steps=options.steps, guidance=options.guidance)
  tokens = interop.tokenize(pipeline.tokenizer, [*prompts, ""])
  seeds = np.arange(options.first_seed, options.first_seed + options.seeds)
  images = sampling.sample_in_batches(
    sampler,
    pipeline.params,
    np.repeat(tokens.ids[:-1], len(seeds), axis=0),
    tokens.ids[-1],
    np.tile(seeds, len(prompts)),
    batch_size=IMAGES_AT_A_TIME,
    progress=lambda batches: tqdm(batches, desc="sample", unit="batch"),
  )
  pictures = np.asarray(sampling.to_uint8(images))
  pictures = pictures.reshape(len(prompts), len(seeds), *pictures.shape[1:])  # [P, S, H, W, C]
  options.out.mkdir(parents=True, exist_ok=True)
  files = []
  for row, prompt in enumerate(prompts):
    for column, seed in enumerate(seeds.tolist()):
      file = f"{row:05d}_{seed:010d}.png"
      Image.fromarray(_drop_grey_axis(pictures[row, column])).save(options.out / file)
      files.append({"file": file, "prompt": prompt, "seed": seed})
  rows = np.concatenate(np.moveaxis(pictures, 1, 2), axis=0)  # [P * H, S, W, C]
  grid = rows.reshape(rows.shape[0], -1, rows.shape[-1])  # [P * H, S * W, C]
  Image.fromarray(_drop_grey_axis(grid)).save(options.out / "grid.png")
  manifest = {
    "pipeline": str(options.pipeline),
    "steps": options.steps,
    "guidance": options.guidance,
    "prompts_truncated": tokens.truncated,
    "images": files,
  }
  (options.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
  if tokens.truncated:
    print(f"{tokens.truncated} prompts were longer than the text encoder's context and were cut")
  print(f"{len(files)} images in {options.out}")


def _read_prompts(path: pathlib.Path) -> list[str]:
  from dmpo_jax.errors import InputError

  try:
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"cannot read prompts from {path}: {error}") from error
  prompts = [prompt for prompt in prompts if prompt]
  if not prompts:
    raise InputError(f"{path} holds no prompt; write one per line")
  return prompts


def _drop_grey_axis(picture):
  return picture[..., 0] if picture.shape[-1] == 1 else picture
