"""Edits by random pipelines against torch diffusers', image by image from the same noise."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image

from dmpo_jax import diffusion, interop, pipelines, sampling
from dmpo_jax.errors import InputError
from dmpo_jax.sampling.noise import step_noise
from dmpo_jax.training.config import default
from dmpo_jax.training.monitor.run_sampler import RunSampler
from tests.interop import tiny

PROMPTS = ["the digit seven", "one", "the the seven one"]
SEEDS = np.array([5, 0, 2**32 - 1])
SIZE, STEPS = (16, 24), 4
SOURCE = np.random.default_rng(3).integers(0, 256, (3, *SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Kind -> folder of a tiny random pipeline that edits images."""
  root = tmp_path_factory.mktemp("editing")
  writers = {"sd": tiny.write_tiny_sd, "sdxl": tiny.write_tiny_sdxl}
  return {kind: tiny.as_editing(write(root / kind)) for kind, write in writers.items()}


@pytest.fixture(scope="module")
def loaded(folders):
  return {kind: interop.load_pipeline(folder) for kind, folder in folders.items()}


def to_torch(x):
  """[B, H, W, C] to torch's [B, C, H, W]."""
  return torch.from_numpy(np.moveaxis(np.array(x), -1, 1))


def theirs(folder, solver, scheduler, monkeypatch, noise, **options):
  """[N, H, W, C] in [0, 1], by diffusers' pipeline of the folder."""
  pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
  pipeline.set_progress_bar_config(disable=True)
  if solver is not None:
    cls = getattr(diffusers, diffusion.CLASSES[solver])
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **scheduler)
  keys, count = sampling.seed_keys(SEEDS), iter(range(1, STEPS + 1))
  monkeypatch.setattr(
    "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
    lambda *_, **__: to_torch(step_noise(keys, next(count), noise.shape[1:])),
  )
  with torch.inference_mode():
    return pipeline(
      PROMPTS,
      image=[Image.fromarray(image) for image in SOURCE],
      latents=to_torch(noise),
      num_inference_steps=STEPS,
      output_type="np",
      **options,
    ).images


def ours(pipeline, solver=None, *, guidance, source=SOURCE, **options):
  """[N, H, W, C] in [0, 1]."""
  functions = pipelines.build(pipeline)
  negative = options.pop("negative", None)
  sampler = pipelines.make_sampler(
    functions,
    functions.make_solver(STEPS, name=solver),
    size=SIZE,
    guidance=guidance,
    negative=negative is not None,
    **options,
  )
  inputs, _ = pipelines.sampling_inputs(
    functions, PROMPTS, SEEDS, negative=negative, size=SIZE, source=source
  )
  images = pipelines.sample_all(
    sampler, pipeline.params, inputs, batch_size=3, devices=jax.devices()[:1]
  )
  return np.clip(images / 2 + 0.5, 0, 1)


# Kind, solver, scheduler, guidance, image guidance, further options of ours and of theirs.
CASES = {
  "sd, both scales": ("sd", None, {}, 7.5, 1.5, {}),
  "sd, karras": ("sd", "euler", {"use_karras_sigmas": True}, 7.5, 1.5, {}),
  "sd, ancestral, as InstructPix2Pix is published": ("sd", "euler_ancestral", {}, 7.5, 1.5, {}),
  "sd, heun": ("sd", "heun", {}, 7.5, 1.5, {}),
  "sd, dpm_solver_pp_2m": ("sd", "dpm_solver_pp_2m", {}, 7.5, 1.5, {}),
  "sd, pndm": (
    "sd",
    "pndm",
    {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False},
    7.5,
    1.5,
    {},
  ),
  "sd, negative prompt": ("sd", None, {}, 7.5, 1.5, {"negative": "one"}),
  "sd, instruction alone": ("sd", None, {}, 7.5, 1.0, {}),
  "sd, no guidance": ("sd", None, {}, 1.0, 1.0, {}),
  "sdxl, both scales": ("sdxl", None, {}, 5.0, 1.5, {}),
  "sdxl, instruction alone, rescaled": ("sdxl", None, {}, 5.0, 1.0, {"guidance_rescale": 0.6}),
}


FAST = ("sd, ancestral, as InstructPix2Pix is published", "sdxl, both scales")


@pytest.mark.parametrize(
  "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_edits_are_those_of_diffusers_from_the_same_noise(case, folders, loaded, monkeypatch):
  kind, solver, scheduler, guidance, image_guidance, options = CASES[case]
  pipeline = loaded[kind]
  config = {**pipeline.configs["scheduler"], **scheduler}
  pipeline = dataclasses.replace(pipeline, configs={**pipeline.configs, "scheduler": config})
  images = ours(pipeline, solver, guidance=guidance, image_guidance=image_guidance, **options)
  further = {k: v for k, v in options.items() if k != "negative"}
  if "negative" in options:
    further["negative_prompt"] = [options["negative"]] * len(PROMPTS)
  if kind == "sdxl":
    further |= {"height": SIZE[0], "width": SIZE[1]}
  expected = theirs(
    folders[kind],
    solver,
    scheduler,
    monkeypatch,
    sampling.initial_noise(SEEDS, (SIZE[0] // 2, SIZE[1] // 2, 4)),
    guidance_scale=guidance,
    image_guidance_scale=image_guidance,
    **further,
  )
  assert np.ptp(expected) > 0.2
  assert np.mean((expected > 0) & (expected < 1)) > 0.3, "most of it is clipped"
  np.testing.assert_allclose(images, expected, atol=1e-4)


def test_a_sources_scale_of_one_leaves_out_the_forward_without_a_source():
  """guided_edit at image_scale 1 calls the network on 2 B, and its result is the formula's."""
  rows = []

  def network(x, t, level):
    rows.append(len(x))
    return x * level[:, None]

  x, t = np.arange(6.0).reshape(3, 2).astype(np.float32), np.zeros(3, np.float32)
  full, source, null = (np.full(3, value, np.float32) for value in (2.0, 1.0, 0.5))
  for image_scale, expected in ((1.0, 2), (1.5, 3)):
    predict = sampling.guided_edit(network, full, source, null, scale=4.0, image_scale=image_scale)
    np.testing.assert_allclose(predict(x, t), x * (0.5 + image_scale * 0.5 + 4.0 * 1.0), rtol=1e-6)
    assert rows.pop() == 3 * expected


def test_samples_during_the_training_of_an_editing_model_are_refused(loaded):
  with pytest.raises(InputError, match="sample the result with dmpo-jax sample"):
    RunSampler(
      default(),
      loaded["sd"],
      None,
      jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]),
      {},
      PROMPTS,
      SEEDS,
      steps=2,
      guidance=None,
    )


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (None, "edits images, and there are no source images"),
    (SOURCE[:, :8], r"are \(3, 8, 24, 3\); expected \(3, 16, 24, 3\)"),
    (SOURCE.astype(np.float64), "are float64; expected uint8"),
  ],
)
def test_sources_that_do_not_fit_are_refused(loaded, source, message):
  functions = pipelines.build(loaded["sd"])
  with pytest.raises(InputError, match=message):
    pipelines.sampling_inputs(functions, PROMPTS, SEEDS, size=SIZE, source=source)
