"""Tiny pipelines with a VAE and one block, a batch of images for them, and torch's errors."""

import dataclasses

import jax
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from ml_collections import ConfigDict
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dmpo_jax import data, interop, pipelines
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, NoiseSample
from dmpo_jax.training.config import default
from dmpo_jax.training.objective import Objective
from tests.interop import tiny

CAPTIONS = ["the digit seven", "one", "seven seven", "the one", "digit", "the digit one"]
SMALL = {
  "down_block_types": ("CrossAttnDownBlock2D",),
  "up_block_types": ("CrossAttnUpBlock2D",),
  "block_out_channels": (8,),
}
SMALL_XL = {
  "cross_attention_dim": 12 + 16,
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 4,
  "projection_class_embeddings_input_dim": 6 * 4 + 10,
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A pipeline, its objective, a batch, and parameters of a policy that is not the reference."""

  folder: str
  pipeline: interop.Pipeline
  objective: Objective
  trained: dict
  frozen: dict
  reference: dict
  batch: Batch


def config(folder) -> ConfigDict:
  """Diffusion-DPO at beta 5000; half of the captions are dropped."""
  result = default()
  result.pipeline = str(folder)
  result.trained = ("unet", "text_encoder")
  result.loss = ConfigDict({"name": "dpo", "beta": 5000.0})
  result.caption_dropout = 0.5
  result.batch_size, result.num_steps = 6, 2
  result.optimizer.learning_rate = 1e-3
  result.checkpoint.every = 2
  result.num_devices = 1
  return result


def write(kind: str, folder) -> None:
  """A pipeline's folder: "sd" or "sdxl"."""
  if kind == "sd":
    tiny.write_tiny_sd(folder)
    unet = tiny.make_unet(**tiny.LATENTS, **SMALL)
  else:
    tiny.write_tiny_sdxl(folder)
    unet = tiny.make_unet(**tiny.LATENTS, **SMALL, **SMALL_XL)
  unet.save_pretrained(folder / "unet")


def examples(seed: int = 0) -> data.Examples:
  """Six pairs of images of noise, 16x16 pixels in three colours."""
  images = np.random.default_rng(seed).uniform(-1, 1, (6, 2, 16, 16, 3)).astype(np.float32)
  return data.Examples(images, CAPTIONS, np.arange(40, 46, dtype=np.uint32))


def setting(kind: str, folder) -> Setting:
  """A `Setting` with a new pipeline in a folder."""
  write(kind, folder)
  rng = np.random.default_rng(1)
  pipeline = setup.load_pipeline(config(folder), [])
  reference, frozen, _ = setup.split_params(config(folder), pipeline)
  trained = jax.tree.map(
    lambda x: x + 0.01 * rng.normal(size=x.shape).astype(np.float32), reference
  )
  pairs = examples()
  text, _ = pipelines.build(pipeline).tokenize(CAPTIONS)
  batch = Batch(text, pairs.ids, pixels=pairs.images)
  if kind == "sdxl":
    batch = batch._replace(geometry=rng.integers(0, 2000, (6, 6)).astype(np.float32))
  objective = setup.make_objective(config(folder), pipeline)
  return Setting(folder, pipeline, objective, trained, frozen, reference, batch)


class Torch:
  """Errors of the same pipeline by the classes of diffusers and transformers.

  Args:
    folder: Folder of the pipeline.
    params: Parameters by component, which replace those in the folder.
  """

  def __init__(self, folder, params: dict):
    self.vae = AutoencoderKL.from_pretrained(folder / "vae")
    self.unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    self.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    self.encoders = [
      kind.from_pretrained(folder / name)
      for name, kind in kinds.items()
      if (folder / name).is_dir()
    ]
    for name, module in {"unet": self.unet, "text_encoder": self.encoders[0]}.items():
      arrays = interop.to_torch_state(params[name])
      state = module.state_dict()
      # transformers 5 has no prefix where published files have one.
      named = {k if k in state else k.removeprefix("text_model."): v for k, v in arrays.items()}
      module.load_state_dict({k: torch.from_numpy(v) for k, v in named.items()})

  @torch.no_grad()
  def errors(self, batch: Batch, sample: NoiseSample, posterior_noise, null_text) -> np.ndarray:
    """Denoising errors `[examples, images]`.

    Args:
      batch: The examples, in pixels.
      sample: Their timesteps, noise and caption dropout.
      posterior_noise: Noise of their latents `[examples, images, h, w, Z]`.
      null_text: Token ids of the empty caption by name; None: a dropped caption is zeros.
    """
    images = _torch(batch.pixels).flatten(0, 1).permute(0, 3, 1, 2)
    posterior = self.vae.encode(images).latent_dist
    posterior_noise = _torch(posterior_noise).flatten(0, 1).permute(0, 3, 1, 2)
    latents = posterior.mean + posterior.std * posterior_noise
    latents = latents * self.vae.config.scaling_factor
    noise = _torch(sample.noise).permute(0, 3, 1, 2).repeat_interleave(2, 0)
    t = _torch(sample.timesteps).long().repeat_interleave(2, 0)
    source = None
    if batch.source is not None:  # the mode of its posterior, without scaling factor
      source = self.vae.encode(_torch(batch.source).permute(0, 3, 1, 2)).latent_dist.mode()
      source = source * (~_torch(sample.source_dropped)).float()[:, None, None, None]
      source = source.repeat_interleave(2, 0)
    dropped = _torch(sample.dropped)
    hidden, pooled = [], None
    for name, encoder in zip(("input_ids", "input_ids_2"), self.encoders, strict=False):
      ids = _torch(batch.text[name]).long()
      if null_text is not None:
        ids = torch.where(dropped[:, None], _torch(null_text[name]).long(), ids)
      output = encoder(ids, output_hidden_states=True)
      hidden.append(output.hidden_states[-2])
      pooled = output[0]
    if len(self.encoders) == 1:
      added, context = None, output.last_hidden_state
    else:
      keep = 1.0 - dropped.float()
      context = torch.cat(hidden, -1) * keep[:, None, None]
      added = {"text_embeds": pooled * keep[:, None], "time_ids": _torch(batch.geometry)}
      added = {k: v.repeat_interleave(2, 0) for k, v in added.items()}
    noisy = self.scheduler.add_noise(latents, noise, t)
    context = context.repeat_interleave(2, 0)
    inputs = noisy if source is None else torch.cat([noisy, source], 1)
    prediction = self.unet(inputs, t, context, added_cond_kwargs=added).sample
    target = noise
    if self.scheduler.config.prediction_type == "v_prediction":
      target = self.scheduler.get_velocity(latents, noise, t)
    return (prediction - target).square().mean((1, 2, 3)).reshape(-1, 2).numpy()


def _torch(x) -> torch.Tensor:
  return torch.from_numpy(np.array(x))
