"""config.json files of published pipelines: those of the package and more.

Unusual fields come from old versions of the libraries.
"""

from dmpo_jax.interop.published import (
  CROSS_DOWN,
  CROSS_UP,
  PLAIN_DOWN,
  PLAIN_UP,
  SD3_TRANSFORMER,
  SD3_VAE,
  SD15_TEXT,
  SD15_UNET,
  SD21_TEXT,
  SD21_UNET,
  SD35_LARGE_TRANSFORMER,
  SD35_MEDIUM_TRANSFORMER,
  SD_VAE,
  SDXL_TEXT,
  SDXL_TEXT_2,
  SDXL_UNET,
  SDXL_VAE,
)

__all__ = ["CROSS_DOWN", "CROSS_UP", "PLAIN_DOWN", "PLAIN_UP"]  # other tests import them from here

# instruct-pix2pix: 4 channels of noisy latents, 4 of the latents of the image to edit
IP2P_UNET = {
  **SD15_UNET,
  "_diffusers_version": "0.12.0.dev0",
  "class_embed_type": None,
  "dual_cross_attention": False,
  "in_channels": 8,
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "num_class_embeds": None,
  "only_cross_attention": False,
  "resnet_time_scale_shift": "default",
  "upcast_attention": False,
  "use_linear_projection": False,
}

# stable-diffusion-xl-1.0-inpainting-0.1 was saved by diffusers' EMAModel, which adds its own state.
SDXL_INPAINTING_UNET = {
  **SDXL_UNET,
  "_diffusers_version": "0.21.0.dev0",
  "attention_type": "default",
  "decay": 0.9999,
  "in_channels": 9,
  "inv_gamma": 1.0,
  "min_decay": 0.0,
  "optimization_step": 37000,
  "power": 0.6666666666666666,
  "update_after_step": 0,
  "use_ema_warmup": False,
}

UNETS = {
  "sd15": SD15_UNET,
  "sd21": SD21_UNET,
  "ip2p": IP2P_UNET,
  "sdxl": SDXL_UNET,
  "sdxl_inpainting": SDXL_INPAINTING_UNET,
}

MMDITS = {
  "sd3_medium": SD3_TRANSFORMER,
  "sd35_medium": SD35_MEDIUM_TRANSFORMER,
  "sd35_large": SD35_LARGE_TRANSFORMER,
}

TEXT_ENCODERS = {
  "sd15": SD15_TEXT,
  "sd21": SD21_TEXT,
  "sdxl": SDXL_TEXT,
  "sdxl_2": SDXL_TEXT_2,
}

# sdxl-vae-fp16-fix: SDXL's with activations scaled down to fit float16
SDXL_FP16_FIX_VAE = {
  **SD_VAE,
  "_diffusers_version": "0.18.0.dev0",
  "force_upcast": False,
  "scaling_factor": 0.13025,
}

VAES = {
  "sd": SD_VAE,
  "sdxl": SDXL_VAE,
  "sdxl_fp16_fix": SDXL_FP16_FIX_VAE,
  "sd3": SD3_VAE,
}
