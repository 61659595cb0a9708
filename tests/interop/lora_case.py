"""A tiny torch pipeline, its parameters here, and a LoRA for all of its networks."""

import copy

import jax
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextModelWithProjection

from dmpo_jax import interop, models
from dmpo_jax.models import lora
from tests.interop import tiny

WRITERS = {"peft": interop.save_lora, "kohya": interop.save_kohya_lora}


# Every kind of layer: attention, linear and 1x1 projections, residual blocks, samplers, the rest.
UNET_TARGETS = (
  *lora.ATTENTION,
  "*.proj_in",
  "*.ff.net.*",
  "*.conv1",
  "*.conv_shortcut",
  "*.time_emb_proj",
  "*samplers.0.conv",
  "conv_in",
  "time_embedding.*",
)


def prefixed(state):
  """transformers' names with the prefix that published text encoders, and our trees, have."""
  return {k if k.startswith("text_") else f"text_model.{k}": v for k, v in state.items()}


def filled(tree, seed):
  generator = np.random.default_rng(seed)
  return jax.tree.map(lambda x: generator.normal(0, 0.2, x.shape).astype(np.float32), tree)


class Case:
  """A torch pipeline, its parameters here, and a LoRA for all of its networks."""

  def __init__(self, xl):
    self.xl = xl
    tokenizer = tiny.make_tokenizer()
    self.networks = {
      "unet": tiny.make_sdxl_unet() if xl else tiny.make_unet(**tiny.LATENTS),
      "text_encoder": tiny.make_text_encoder(tokenizer),
    }
    if xl:
      self.networks["text_encoder_2"] = tiny.make_text_encoder(
        tokenizer, seed=3, kind=CLIPTextModelWithProjection, hidden_size=16, projection_dim=10
      )
    self.config = {**self.networks["unet"].config, "_class_name": "UNet2DConditionModel"}
    self.base, params = {}, {}
    for name, network in self.networks.items():
      state = {k: v.detach().numpy() for k, v in network.state_dict().items()}
      if name == "unet":
        shapes = models.abstract(self.config)
        targets = (*UNET_TARGETS, "add_embedding.*") if xl else UNET_TARGETS
      else:
        state = prefixed(state)
        kind = {"architectures": [type(network).__name__]}
        shapes = models.abstract({**network.config.to_dict(), **kind})
        targets = (*lora.TEXT_ATTENTION, "*.fc1")
      self.base[name] = interop.from_torch_state(state, shapes)
      fresh = lora.init(jax.random.key(0), self.base[name], targets=targets, rank=3)
      params[name] = filled(fresh, seed=len(params))
    self.lora = interop.Lora(params, dict.fromkeys(params, 6.0))

  def pipeline(self):
    """A torch pipeline with copies of the networks."""
    copies = copy.deepcopy(self.networks)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    none = {"vae": None, "tokenizer": None, "feature_extractor": None, "scheduler": scheduler}
    if self.xl:
      return StableDiffusionXLPipeline(**copies, **none, tokenizer_2=None)
    return StableDiffusionPipeline(
      **copies, **none, safety_checker=None, requires_safety_checker=False
    )

  def inputs(self):
    generator = np.random.default_rng(5)
    width = self.config["cross_attention_dim"]
    arrays = {
      "sample": generator.normal(size=(2, 8, 8, 4)).astype(np.float32),
      "timesteps": np.int32([3, 700]),
      "encoder_hidden_states": generator.normal(size=(2, 5, width)).astype(np.float32),
    }
    if self.xl:
      arrays["text_embeds"] = generator.normal(size=(2, 10)).astype(np.float32)
      arrays["time_ids"] = np.float32([[64, 64, 0, 0, 64, 64], [32, 48, 0, 4, 64, 48]])
    return arrays

  def output(self, unet):
    """Output of a torch UNet, in our layout."""
    arrays = {name: torch.from_numpy(x) for name, x in self.inputs().items()}
    extra = {k: arrays[k] for k in ("text_embeds", "time_ids") if k in arrays}
    with torch.no_grad():
      out = unet(
        arrays["sample"].permute(0, 3, 1, 2),
        arrays["timesteps"],
        arrays["encoder_hidden_states"],
        added_cond_kwargs=extra or None,
      ).sample
    return out.permute(0, 2, 3, 1).numpy()
