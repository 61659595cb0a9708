"""Configs of published pipelines, by which a run can be planned without access to the hub.

Fields are as published, without paths and library versions that do not describe the network. There
are no weights and no vocabularies.
"""

from collections.abc import Mapping
from typing import Any

from dmpo_jax.errors import unknown
from dmpo_jax.interop.pipeline import Pipeline
from dmpo_jax.interop.tokenizer import build_tokenizer

CONTEXT = "max_position_embeddings"
CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
WITH_PROJECTION = "CLIPTextModelWithProjection"

# stable-diffusion-v1-5
SD15_UNET = {
  "_class_name": "UNet2DConditionModel",
  "_diffusers_version": "0.6.0",
  "act_fn": "silu",
  "attention_head_dim": 8,
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": False,
  "cross_attention_dim": 768,
  "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN],
  "downsample_padding": 1,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "in_channels": 4,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "out_channels": 4,
  "sample_size": 64,
  "up_block_types": [PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP],
}

# stable-diffusion-2-1, whose scheduler has prediction_type "v_prediction"
SD21_UNET = {
  **SD15_UNET,
  "_diffusers_version": "0.10.0.dev0",
  "attention_head_dim": [5, 10, 20, 20],
  "cross_attention_dim": 1024,
  "dual_cross_attention": False,
  "num_class_embeds": None,
  "only_cross_attention": False,
  "sample_size": 96,
  "upcast_attention": True,
  "use_linear_projection": True,
}

# stable-diffusion-xl-base-1.0
SDXL_UNET = {
  "_class_name": "UNet2DConditionModel",
  "_diffusers_version": "0.19.0.dev0",
  "act_fn": "silu",
  "addition_embed_type": "text_time",
  "addition_embed_type_num_heads": 64,
  "addition_time_embed_dim": 256,
  "attention_head_dim": [5, 10, 20],
  "block_out_channels": [320, 640, 1280],
  "center_input_sample": False,
  "class_embed_type": None,
  "class_embeddings_concat": False,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "cross_attention_dim": 2048,
  "cross_attention_norm": None,
  "down_block_types": [PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN],
  "downsample_padding": 1,
  "dual_cross_attention": False,
  "encoder_hid_dim": None,
  "encoder_hid_dim_type": None,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "in_channels": 4,
  "layers_per_block": 2,
  "mid_block_only_cross_attention": None,
  "mid_block_scale_factor": 1,
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "num_attention_heads": None,
  "num_class_embeds": None,
  "only_cross_attention": False,
  "out_channels": 4,
  "projection_class_embeddings_input_dim": 2816,
  "resnet_out_scale_factor": 1.0,
  "resnet_skip_time_act": False,
  "resnet_time_scale_shift": "default",
  "sample_size": 128,
  "time_cond_proj_dim": None,
  "time_embedding_act_fn": None,
  "time_embedding_dim": None,
  "time_embedding_type": "positional",
  "timestep_post_act": None,
  "transformer_layers_per_block": [1, 2, 10],
  "up_block_types": [CROSS_UP, CROSS_UP, PLAIN_UP],
  "upcast_attention": None,
  "use_linear_projection": True,
}

# stable-diffusion-3-medium
SD3_TRANSFORMER = {
  "_class_name": "SD3Transformer2DModel",
  "_diffusers_version": "0.29.0.dev0",
  "attention_head_dim": 64,
  "caption_projection_dim": 1536,
  "in_channels": 16,
  "joint_attention_dim": 4096,
  "num_attention_heads": 24,
  "num_layers": 24,
  "out_channels": 16,
  "patch_size": 2,
  "pooled_projection_dim": 2048,
  "pos_embed_max_size": 192,
  "sample_size": 128,
}

# stable-diffusion-3.5-medium
SD35_MEDIUM_TRANSFORMER = {
  **SD3_TRANSFORMER,
  "_diffusers_version": "0.32.0.dev0",
  "dual_attention_layers": [*range(13)],
  "pos_embed_max_size": 384,
  "qk_norm": "rms_norm",
}

# stable-diffusion-3.5-large
SD35_LARGE_TRANSFORMER = {
  **SD3_TRANSFORMER,
  "_diffusers_version": "0.31.0.dev0",
  "caption_projection_dim": 2432,
  "num_attention_heads": 38,
  "num_layers": 38,
  "qk_norm": "rms_norm",
}

# T5 v1.1 XXL, whose encoder stable-diffusion-3-medium and 3.5 have
SD3_TEXT_3 = {
  "_name_or_path": "google/t5-v1_1-xxl",
  "architectures": ["T5EncoderModel"],
  "classifier_dropout": 0.0,
  "d_ff": 10240,
  "d_kv": 64,
  "d_model": 4096,
  "decoder_start_token_id": 0,
  "dense_act_fn": "gelu_new",
  "dropout_rate": 0.1,
  "eos_token_id": 1,
  "feed_forward_proj": "gated-gelu",
  "initializer_factor": 1.0,
  "is_encoder_decoder": True,
  "is_gated_act": True,
  "layer_norm_epsilon": 1e-06,
  "model_type": "t5",
  "num_decoder_layers": 24,
  "num_heads": 64,
  "num_layers": 24,
  "output_past": True,
  "pad_token_id": 0,
  "relative_attention_max_distance": 128,
  "relative_attention_num_buckets": 32,
  "tie_word_embeddings": False,
  "torch_dtype": "float16",
  "transformers_version": "4.41.2",
  "use_cache": True,
  "vocab_size": 32128,
}

# stable-diffusion-3-medium, 3.5-medium and 3.5-large
SD3_VAE = {
  "_class_name": "AutoencoderKL",
  "_diffusers_version": "0.29.0.dev0",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "force_upcast": True,
  "in_channels": 3,
  "latent_channels": 16,
  "latents_mean": None,
  "latents_std": None,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 1024,
  "scaling_factor": 1.5305,
  "shift_factor": 0.0609,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
  "use_post_quant_conv": False,
  "use_quant_conv": False,
}

# CLIP-L, stable-diffusion-v1-5
SD15_TEXT = {
  "_name_or_path": "openai/clip-vit-large-patch14",
  "architectures": ["CLIPTextModel"],
  "attention_dropout": 0.0,
  "bos_token_id": 0,
  "dropout": 0.0,
  "eos_token_id": 2,
  "hidden_act": "quick_gelu",
  "hidden_size": 768,
  "initializer_factor": 1.0,
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 12,
  "num_hidden_layers": 12,
  "pad_token_id": 1,
  "projection_dim": 768,
  "torch_dtype": "float32",
  "transformers_version": "4.22.0.dev0",
  "vocab_size": 49408,
}

# OpenCLIP-H without its last layer, stable-diffusion-2-1
SD21_TEXT = {
  **SD15_TEXT,
  "hidden_act": "gelu",
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_attention_heads": 16,
  "num_hidden_layers": 23,
  "projection_dim": 512,
  "transformers_version": "4.25.0.dev0",
}

# CLIP-L, stable-diffusion-xl-base-1.0
SDXL_TEXT = {**SD15_TEXT, "torch_dtype": "float16", "transformers_version": "4.32.0.dev0"}

# OpenCLIP-bigG, the second text encoder of stable-diffusion-xl-base-1.0
SDXL_TEXT_2 = {
  **SD15_TEXT,
  "architectures": [WITH_PROJECTION],
  "hidden_act": "gelu",
  "hidden_size": 1280,
  "intermediate_size": 5120,
  "num_attention_heads": 20,
  "num_hidden_layers": 32,
  "projection_dim": 1280,
  "torch_dtype": "float16",
  "transformers_version": "4.32.0.dev0",
}

# stable-diffusion-v1-5; SD2.1's differs in sample_size alone
SD_VAE = {
  "_class_name": "AutoencoderKL",
  "_diffusers_version": "0.6.0",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "in_channels": 3,
  "latent_channels": 4,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 512,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
}

# stable-diffusion-xl-base-1.0: its activations exceed float16
SDXL_VAE = {
  **SD_VAE,
  "_diffusers_version": "0.20.0.dev0",
  "force_upcast": True,
  "sample_size": 1024,
  "scaling_factor": 0.13025,
}

# stable-diffusion-v1-5
SD_SCHEDULER = {
  "_class_name": "PNDMScheduler",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
}

# stable-diffusion-3-medium, 3.5-medium and 3.5-large
SD3_SCHEDULER = {
  "_class_name": "FlowMatchEulerDiscreteScheduler",
  "_diffusers_version": "0.29.0.dev0",
  "num_train_timesteps": 1000,
  "shift": 3.0,
}

SD3_TEXT = {
  **SDXL_TEXT,
  "architectures": [WITH_PROJECTION],
  "projection_dim": 768,
}

SD3 = {
  "_class_name": "StableDiffusion3Pipeline",
  "vae": SD3_VAE,
  "text_encoder": SD3_TEXT,
  "text_encoder_2": SDXL_TEXT_2,
  "text_encoder_3": SD3_TEXT_3,
  "scheduler": SD3_SCHEDULER,
}

# Name -> component -> config, and the class of the pipeline as "_class_name".
PIPELINES: dict[str, dict[str, Any]] = {
  "sd15": {
    "_class_name": "StableDiffusionPipeline",
    "unet": SD15_UNET,
    "vae": SD_VAE,
    "text_encoder": SD15_TEXT,
    "scheduler": SD_SCHEDULER,
  },
  "sd21": {
    "_class_name": "StableDiffusionPipeline",
    "unet": SD21_UNET,
    "vae": {**SD_VAE, "sample_size": 768},
    "text_encoder": SD21_TEXT,
    "scheduler": {**SD_SCHEDULER, "prediction_type": "v_prediction"},
  },
  "sdxl": {
    "_class_name": "StableDiffusionXLPipeline",
    "unet": SDXL_UNET,
    "vae": SDXL_VAE,
    "text_encoder": SDXL_TEXT,
    "text_encoder_2": SDXL_TEXT_2,
    "scheduler": SD_SCHEDULER,
  },
  "sd3_medium": {**SD3, "transformer": SD3_TRANSFORMER},
  "sd35_medium": {**SD3, "transformer": SD35_MEDIUM_TRANSFORMER},
  "sd35_large": {**SD3, "transformer": SD35_LARGE_TRANSFORMER},
}


def pipeline(name: str) -> Pipeline:
  """A pipeline with the configs of a published one and without parameters.

  Args:
    name: A name in `PIPELINES`.

  Returns:
    A `Pipeline` whose tokenizers have no words: only the number of ids is the published one.

  Raises:
    InputError: The name is unknown.
  """
  if name not in PIPELINES:
    raise unknown("published pipeline", name, PIPELINES)
  configs = dict(PIPELINES[name])
  model_index = {"_class_name": configs.pop("_class_name")}
  tokenizers = {
    encoder.replace("text_encoder", "tokenizer"): _tokenizer(config)
    for encoder, config in configs.items()
    if encoder.startswith("text_encoder")
  }
  return Pipeline(model_index, configs, {}, tokenizers)


def _tokenizer(config: Mapping[str, Any]) -> Any:
  """A tokenizer without words for a text encoder."""
  if CONTEXT in config:
    return build_tokenizer([], config[CONTEXT])
  from transformers import T5Tokenizer

  return T5Tokenizer(model_max_length=512)
