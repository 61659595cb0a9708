"""Whole random pipelines against torch diffusers', image by image from the same noise."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch

from dmpo_jax import diffusion, interop, pipelines, sampling
from dmpo_jax.sampling.noise import step_noise
from tests.interop import tiny

PROMPTS = ["the digit seven", "one", "the the seven one"]
SEEDS = np.array([5, 0, 2**32 - 1])
WRITERS = {
  "sd": tiny.write_tiny_sd,
  "sdxl": tiny.write_tiny_sdxl,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Kind -> folder of a tiny random pipeline."""
  return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in WRITERS.items()}


def to_torch(x):
  """[B, H, W, C] to torch's [B, C, H, W]."""
  return torch.from_numpy(np.moveaxis(np.array(x), -1, 1))


def torch_pipeline(folder, kind):
  cls = diffusers.StableDiffusionXLPipeline if kind == "sdxl" else diffusers.StableDiffusionPipeline
  pipeline = cls.from_pretrained(folder)
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


def theirs(folder, kind, solver, scheduler, monkeypatch, *, noise, num_steps, **options):
  """[N, H, W, C] in [0, 1], by diffusers' pipeline of the folder."""
  pipeline = torch_pipeline(folder, kind)
  if solver is not None:
    cls = getattr(diffusers, diffusion.CLASSES[solver])
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **scheduler)
  keys, count = sampling.seed_keys(SEEDS), iter(range(1, num_steps + 1))

  def fresh(*_, **__):
    return to_torch(step_noise(keys, next(count), noise.shape[1:]))

  monkeypatch.setattr(
    "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor", fresh
  )
  with torch.inference_mode():
    images = pipeline(
      PROMPTS,
      latents=to_torch(noise),
      num_inference_steps=num_steps,
      output_type="np",
      **options,
    ).images
  return images


# Cases of one shape and one kind of guidance share a compilation.
WIDE = {"guidance_scale": 4.0, "negative_prompt": "one", "height": 16, "width": 24}
CASES = {
  "sd by its own scheduler": ("sd", None, {}, WIDE),
  "sd, karras": ("sd", "euler", {"use_karras_sigmas": True}, WIDE),
  "sd by the scheduler that Stable Diffusion 1.5 is published with": (
    "sd",
    "pndm",
    {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False},
    WIDE,
  ),
  "sd, heun": ("sd", "heun", {}, WIDE),
  "sd, velocity, karras": (
    "sd",
    "dpm_solver_pp_2m",
    {"prediction_type": "v_prediction", "use_karras_sigmas": True},
    WIDE,
  ),
  "sd, rescaled": (
    "sd",
    "euler_ancestral",
    {},
    {"guidance_scale": 6.0, "guidance_rescale": 0.7},
  ),
  "sd, guidance 0, which is none": ("sd", "euler", {}, {**WIDE, "guidance_scale": 0.0}),
  "sdxl, guidance 0.5, which is none": ("sdxl", "euler", {}, {"guidance_scale": 0.5}),
  "sdxl by its own scheduler, zeros for the empty prompt": (
    "sdxl",
    None,
    {},
    {"guidance_scale": 5.0},
  ),
  "sdxl, high, negative prompt, rescaled, sizes": (
    "sdxl",
    "dpm_solver_pp_2m",
    {},
    {
      "guidance_scale": 5.0,
      "guidance_rescale": 0.5,
      "negative_prompt": "seven",
      "height": 24,
      "width": 16,
      "original_size": (40, 30),
      "crops_coords_top_left": (3, 5),
      "target_size": (32, 24),
    },
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_images_are_those_of_diffusers_from_the_same_noise(case, folders, monkeypatch):
  kind, solver, scheduler, options = CASES[case]
  num_steps = 4
  pipeline = interop.load_pipeline(folders[kind])
  config = {**pipeline.configs["scheduler"], **scheduler}
  pipeline = dataclasses.replace(pipeline, configs={**pipeline.configs, "scheduler": config})
  size = (options["height"], options["width"]) if "height" in options else None
  functions = pipelines.build(pipeline)
  sampler = pipelines.make_sampler(
    functions,
    functions.make_solver(num_steps, name=solver),
    size=size,
    guidance=options["guidance_scale"],
    guidance_rescale=options.get("guidance_rescale", 0.0),
    negative="negative_prompt" in options,
  )
  inputs, _ = pipelines.sampling_inputs(
    functions,
    PROMPTS,
    SEEDS,
    negative=options.get("negative_prompt"),
    size=size,
    original=options.get("original_size"),
    crop=options.get("crops_coords_top_left", (0, 0)),
    target=options.get("target_size"),
  )
  ours = pipelines.sample_all(
    sampler, pipeline.params, inputs, batch_size=3, devices=jax.devices()[:1]
  )
  height, width = size or functions.default_size()
  noise = sampling.initial_noise(SEEDS, (height // 2, width // 2, 4))
  if "negative_prompt" in options:
    options = {**options, "negative_prompt": [options["negative_prompt"]] * len(PROMPTS)}
  expected = theirs(
    folders[kind],
    kind,
    solver,
    scheduler,
    monkeypatch,
    noise=noise,
    num_steps=num_steps,
    **options,
  )
  images = np.clip(ours / 2 + 0.5, 0, 1)
  assert np.ptp(expected) > 0.2
  assert np.mean((expected > 0) & (expected < 1)) > 0.3, "most of it is clipped"
  np.testing.assert_allclose(images, expected, atol=1e-4)
