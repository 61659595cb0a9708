"""A LoRA for the negative branch of guidance, against torch diffusers with two networks."""

import types

import diffusers
import jax
import numpy as np
import pytest
import torch

from dmpo_jax import interop, models, pipelines, sampling
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import negative_branch, sample_folder
from tests.interop import tiny

PROMPTS = ["the digit seven", "one", "the the seven one"]
SEEDS = np.array([5, 0, 2**32 - 1], np.uint32)
WEIGHT, STEPS, GUIDANCE = 0.3, 3, 3.0
KINDS = {
  "sd": (tiny.write_tiny_sd, diffusers.StableDiffusionPipeline, ("unet", "text_encoder")),
  "sdxl": (tiny.write_tiny_sdxl, diffusers.StableDiffusionXLPipeline, ("unet",)),
}


def write_lora(file, params, components, seed):
  """A random LoRA, large enough to change images."""
  rng, parts = np.random.default_rng(seed), {}
  for name in components:
    targets = models.lora.ATTENTION if name == "unet" else models.lora.TEXT_ATTENTION
    tree = models.lora.init(jax.random.key(seed), params[name], targets=targets, rank=2)
    parts[name] = jax.tree.map(
      lambda x: (0.4 * rng.standard_normal(x.shape)).astype(np.float32), tree
    )
  interop.save_lora(file, interop.Lora(parts, dict.fromkeys(parts, 2.0)), params)
  return file


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
  """Folder, class, our pipeline and the two LoRA files."""
  write, cls, components = KINDS[request.param]
  folder = write(tmp_path_factory.mktemp(request.param))
  pipeline = interop.load_pipeline(folder)
  lora = write_lora(folder / "lora.safetensors", pipeline.params, ("unet",), 1)
  negative = write_lora(folder / "negative.safetensors", pipeline.params, components, 2)
  return types.SimpleNamespace(
    folder=folder, cls=cls, pipeline=pipeline, lora=lora, negative=negative
  )


def job(case, **options):
  settings = sample_folder.SamplingSettings(
    steps=STEPS, solver="ddim", guidance=options.pop("guidance", GUIDANCE), negative="one"
  )
  return sample_folder.prepare(case.pipeline, PROMPTS, SEEDS, settings, **options)


def torch_pipeline(case, adapters):
  pipeline = case.cls.from_pretrained(case.folder)
  pipeline.set_progress_bar_config(disable=True)
  pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
  for name in adapters:
    pipeline.load_lora_weights(case.folder / f"{name}.safetensors", adapter_name=name)
  pipeline.set_adapters(list(adapters), list(adapters.values()))
  return pipeline


def theirs(case, noise):
  """diffusers' images with a UNet of its own for the unconditional half of each batch."""
  positive = torch_pipeline(case, {"lora": 1.0})
  negative = torch_pipeline(case, {"negative": 1.0, "lora": 1.0 - WEIGHT})
  forward = positive.unet.forward

  def two_networks(sample, timestep, encoder_hidden_states, **options):
    added = options.pop("added_cond_kwargs", None) or {}
    outputs = []
    for half, network in enumerate((negative.unet, forward)):
      rows = slice(half * len(PROMPTS), (half + 1) * len(PROMPTS))
      conditions = {name: x[rows] for name, x in added.items()}
      outputs.append(
        network(
          sample[rows],
          timestep,
          encoder_hidden_states[rows],
          added_cond_kwargs=conditions or None,
          return_dict=False,
        )[0]
      )
    return (torch.cat(outputs),)

  positive.unet.forward = two_networks
  texts = {"prompt": PROMPTS, "negative_prompt": ["one"] * len(PROMPTS)}
  if case.cls is diffusers.StableDiffusionPipeline:
    with torch.inference_mode():
      own, _ = positive.encode_prompt(PROMPTS, "cpu", 1, False)
      other, _ = negative.encode_prompt(["one"] * len(PROMPTS), "cpu", 1, False)
    texts = {"prompt_embeds": own, "negative_prompt_embeds": other}
  with torch.inference_mode():
    return positive(
      **texts,
      latents=torch.from_numpy(np.moveaxis(np.array(noise), -1, 1)),
      num_inference_steps=STEPS,
      guidance_scale=GUIDANCE,
      output_type="np",
    ).images


def sampled(job):
  batches = pipelines.sample_batches(
    job.sampler,
    job.params,
    job.inputs,
    batch_size=3,
    negative_params=job.negative_params,
    devices=jax.devices()[:1],
  )
  return np.clip(np.concatenate(list(batches)) / 2 + 0.5, 0, 1)


def test_the_images_are_those_of_diffusers_with_two_networks(case):
  ours = job(case, lora=case.lora, negative_lora=case.negative, negative_weight=WEIGHT)
  height, width, _ = ours.shape
  expected = theirs(case, sampling.initial_noise(SEEDS, (height // 2, width // 2, 4)))
  images = sampled(ours)
  assert np.ptp(expected) > 0.2
  np.testing.assert_allclose(images, expected, atol=1e-4)
  own = {name: ours.params[name] for name in ours.negative_params}
  plain = sampled(ours._replace(negative_params=own))
  assert np.abs(plain - images).max() > 0.01, "the negative LoRA changes nothing"


def test_by_default_the_negative_branch_leaves_the_lora_out(case):
  default = job(case, lora=case.lora, negative_lora=case.negative).negative_params
  alone = job(case, negative_lora=case.negative).negative_params
  jax.tree.map(np.testing.assert_array_equal, default, alone)


def test_images_know_the_weights_of_the_negative_branch(case):
  contents = [
    job(case, lora=case.lora, negative_lora=case.negative, negative_weight=w).content
    for w in (1.0, 0.5)
  ]
  assert contents[0]["weights"] == contents[1]["weights"]
  assert contents[0]["negative_weights"] != contents[1]["negative_weights"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"guidance": 1.0, "negative": True}, "--negative-lora has no effect without guidance"),
    ({"negative": True, "weight": 0.5}, "no effect without --lora"),
    ({"lora": True, "weight": 0.5}, "no effect without --negative-lora"),
    ({"negative": True, "lora": True, "weight": 1.5}, "must be from 0 to 1, got 1.5"),
    ({"negative": True, "lora": True, "weight": float("nan")}, "must be from 0 to 1, got nan"),
  ],
)
def test_an_option_without_effect_or_out_of_range_is_refused(case, options, message):
  files = {
    "lora": case.lora if options.get("lora") else None,
    "negative_lora": case.negative if options.get("negative") else None,
  }
  with pytest.raises(InputError, match=message):
    negative_branch.check(
      options.get("guidance", 4.0), **files, negative_weight=options.get("weight")
    )
