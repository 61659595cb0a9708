"""Tiny random pipelines of Stable Diffusion 3 made of torch's classes, as folders."""

import torch
from diffusers import (
  FlowMatchEulerDiscreteScheduler,
  SD3Transformer2DModel,
  StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from tests.interop import tiny

# Latents [4, 8, 8] of images [3, 16, 16], in patches of 2 x 2; any aspect up to 12 patches.
JOINT, POOLED = 24, 10 + 6


def make_transformer(**changes):
  torch.manual_seed(0)
  config = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "joint_attention_dim": JOINT,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 12,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
  }
  return tiny.perturb(SD3Transformer2DModel(**{**config, **changes}))


def make_t5_tokenizer():
  pieces = ["<pad>", "</s>", "<unk>", "▁", "▁the", "▁digit", "▁seven", "▁one", "o", "n", "e", "t"]
  return T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])


def make_t5(tokenizer):
  torch.manual_seed(5)
  config = T5Config(
    vocab_size=len(tokenizer),
    d_model=JOINT,
    d_kv=6,
    d_ff=20,
    num_layers=2,
    num_heads=4,
    feed_forward_proj="gated-gelu",
  )
  return tiny.perturb(T5EncoderModel(config))


def write(folder, *, t5=True, scheduler=None, **saving):
  """A StableDiffusion3Pipeline; `t5`: with the third text encoder."""
  tokenizers = [tiny.make_tokenizer() for _ in range(2)]
  encoders = [
    tiny.make_text_encoder(
      tokenizer,
      seed,
      kind=CLIPTextModelWithProjection,
      hidden_size=hidden,
      projection_dim=projection,
      hidden_act=act,
    )
    for tokenizer, seed, hidden, projection, act in (
      (tokenizers[0], 1, 12, 10, "quick_gelu"),
      (tokenizers[1], 3, 8, 6, "gelu"),
    )
  ]
  t5_tokenizer = make_t5_tokenizer() if t5 else None
  pipeline = StableDiffusion3Pipeline(
    transformer=make_transformer(),
    scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"shift": 3.0})),
    vae=tiny.make_vae(
      scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False
    ),
    text_encoder=encoders[0],
    tokenizer=tokenizers[0],
    text_encoder_2=encoders[1],
    tokenizer_2=tokenizers[1],
    text_encoder_3=make_t5(t5_tokenizer) if t5 else None,
    tokenizer_3=t5_tokenizer,
  )
  pipeline.save_pretrained(folder, **saving)
  return folder
