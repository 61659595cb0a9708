"""Tiny random pipelines made of torch's classes, as folders."""

import torch
from diffusers import (
  AutoencoderKL,
  DDIMScheduler,
  DiffusionPipeline,
  EulerDiscreteScheduler,
  StableDiffusionInstructPix2PixPipeline,
  StableDiffusionPipeline,
  StableDiffusionXLInstructPix2PixPipeline,
  StableDiffusionXLPipeline,
  UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dmpo_jax import interop
from tests.interop.helpers import edit_json

CONTEXT = 8
WORDS = ["the", "digit", "seven", "one"]

# Of StableDiffusionPipelines: latents [4, 8, 8], images [3, 16, 16].
LATENTS = {"sample_size": 8, "in_channels": 4, "out_channels": 4}
PIXELS = {"sample_size": 8, "in_channels": 1, "out_channels": 1}


def make_tokenizer():
  return interop.build_tokenizer(WORDS, CONTEXT)


def make_text_encoder(tokenizer, seed=1, *, kind=CLIPTextModel, **changes):
  torch.manual_seed(seed)
  config = {
    "vocab_size": len(tokenizer),
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": tokenizer.eos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
  }
  return perturb(kind(CLIPTextConfig(**{**config, **changes})))


def make_unet(**config):
  torch.manual_seed(0)
  blocks = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
  }
  return perturb(UNet2DConditionModel(**{**blocks, **config}))


def make_sdxl_unet(**latents):
  """Conditioned on sizes and on pooled text: 6 numbers of 4 features each, and 10 of the text."""
  return make_unet(
    **{**LATENTS, **latents},
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2),
    attention_head_dim=(2, 4),
    cross_attention_dim=12 + 16,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=6 * 4 + 10,
  )


def make_vae(**changes):
  torch.manual_seed(2)
  config = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 12),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
  }
  return perturb(AutoencoderKL(**{**config, **changes}))


def write_tiny_pixels(folder):
  """A StableDiffusionPipeline without a VAE: it denoises images [1, 8, 8]."""
  tokenizer = make_tokenizer()
  pipeline = StableDiffusionPipeline(
    vae=None,
    text_encoder=make_text_encoder(tokenizer),
    tokenizer=tokenizer,
    unet=make_unet(**PIXELS),
    scheduler=DDIMScheduler(
      steps_offset=1, clip_sample=False, beta_schedule="squaredcos_cap_v2", set_alpha_to_one=False
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipeline.save_pretrained(folder)
  return folder


def write_tiny_sd(folder, **saving):
  """A StableDiffusionPipeline with a VAE: latents [4, 8, 8], images [3, 16, 16]."""
  tokenizer = make_tokenizer()
  pipeline = StableDiffusionPipeline(
    vae=make_vae(),
    text_encoder=make_text_encoder(tokenizer),
    tokenizer=tokenizer,
    unet=make_unet(**LATENTS),
    scheduler=DDIMScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      steps_offset=1,
      clip_sample=False,
      set_alpha_to_one=False,
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipeline.save_pretrained(folder, **saving)
  return folder


def write_tiny_sdxl(folder, **saving):
  """A StableDiffusionXLPipeline: latents [4, 8, 8], images [3, 16, 16], pooled text 10."""
  tokenizer, tokenizer_2 = make_tokenizer(), make_tokenizer()
  tokenizer_2.pad_token = "!"  # as published
  pipeline = StableDiffusionXLPipeline(
    vae=make_vae(scaling_factor=0.13025, force_upcast=False),
    text_encoder=make_text_encoder(tokenizer),
    text_encoder_2=make_text_encoder(
      tokenizer_2,
      seed=3,
      kind=CLIPTextModelWithProjection,
      hidden_size=16,
      hidden_act="gelu",
      projection_dim=10,
    ),
    tokenizer=tokenizer,
    tokenizer_2=tokenizer_2,
    unet=make_sdxl_unet(),
    scheduler=EulerDiscreteScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule="scaled_linear",
      steps_offset=1,
      timestep_spacing="leading",
    ),
    force_zeros_for_empty_prompt=True,
    add_watermarker=False,
  )
  pipeline.save_pretrained(folder, **saving)
  return folder


def as_editing(folder):
  """Makes a tiny pipeline with a VAE one for editing, with a UNet of twice the channels."""
  cls = DiffusionPipeline.from_pretrained(folder).__class__
  kinds = {
    StableDiffusionPipeline: (StableDiffusionInstructPix2PixPipeline, make_unet),
    StableDiffusionXLPipeline: (StableDiffusionXLInstructPix2PixPipeline, make_sdxl_unet),
  }
  cls, unet = kinds[cls]
  fields = LATENTS if unet is make_unet else {}
  pipeline = cls.from_pretrained(folder, unet=unet(**{**fields, "in_channels": 8}))
  pipeline.save_pretrained(folder)
  return folder


def write_tiny_pixel_editing(folder):
  """A StableDiffusionInstructPix2PixPipeline without a VAE: it edits images [1, 8, 8]."""
  write_tiny_pixels(folder)
  make_unet(**{**PIXELS, "in_channels": 2}).save_pretrained(folder / "unet")
  edit_json(folder / "model_index.json", _class_name="StableDiffusionInstructPix2PixPipeline")
  return folder


def perturb(module):
  """Random numbers in every parameter: scales of 1 and biases of 0 would hide a swapped name."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
  return module.eval()
