"""Models of the GPU benchmark: config, networks and size, which all sides share."""

from typing import NamedTuple

from ml_collections import ConfigDict

from dmpo_jax import interop, pipelines
from dmpo_jax.interop import published
from dmpo_jax.planning.inputs import Inputs
from dmpo_jax.training.config import check, default

TOKENS = 77


class Model(NamedTuple):
  """A model and how it is trained.

  Attributes:
    pipeline: Name in `interop.published.PIPELINES`, or "tiny".
    size: Height and width of the images in pixels.
    pairs: Preference pairs a step where a variant does not say.
    lora: Rank of the LoRA; 0: all of the UNet is trained.
    optimizer: "adamw" or "adafactor".
  """

  pipeline: str
  size: int
  pairs: int
  lora: int = 0
  optimizer: str = "adamw"


MODELS = {
  "sd15": Model("sd15", 512, 8),
  "sd15_lora": Model("sd15", 512, 8, lora=16),
  "sdxl": Model("sdxl", 1024, 2, optimizer="adafactor"),
  "sdxl_lora": Model("sdxl", 1024, 2, lora=16),
  # For tests on a CPU.
  "tiny": Model("tiny", 32, 2),
  "tiny_lora": Model("tiny", 32, 2, lora=2),
}


def load(name: str) -> interop.Pipeline:
  """The configs of a model's pipeline, without parameters.

  Args:
    name: A key of `MODELS`.
  """
  model = MODELS[name]
  if model.pipeline != "tiny":
    return published.pipeline(model.pipeline)
  pipeline = published.pipeline("sd15")
  small = {"norm_num_groups": 4, "layers_per_block": 1}
  unet = {**small, "block_out_channels": [8, 16], "cross_attention_dim": 8}
  unet |= {"attention_head_dim": 2, "sample_size": 4}
  unet |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
  unet |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
  vae = {**small, "block_out_channels": [4, 4, 4, 4]}
  text = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
  changes = {"unet": unet, "vae": vae, "text_encoder": {**text, "num_hidden_layers": 1}}
  configs = {key: {**value, **changes.get(key, {})} for key, value in pipeline.configs.items()}
  return interop.Pipeline(pipeline.model_index, configs, {}, pipeline.tokenizers)


def config(name: str, overrides: dict[str, str]) -> ConfigDict:
  """The config of a model's step: Diffusion-DPO in bfloat16 with an EMA.

  Args:
    name: A key of `MODELS`.
    overrides: Config keys with dots and their values as text, such as {"remat": "none"}.
  """
  model, result = MODELS[name], default()
  result.pipeline = model.pipeline
  result.data = ConfigDict({"name": "cached_latents", "folder": "none"})
  result.loss = ConfigDict({"name": "dpo", "beta": 2000.0})
  result.dtype = result.reference_dtype = "bfloat16"
  result.remat = "convolutions"
  result.batch_size, result.num_devices, result.num_steps = model.pairs, 1, 1
  result.checkpoint.every = 1
  result.optimizer.name, result.optimizer.learning_rate = model.optimizer, 1e-6
  result.ema_decay = 0.0 if model.lora else 0.999
  if model.lora:
    result.lora.rank, result.lora.alpha = model.lora, float(model.lora)
  for key, text in overrides.items():
    section, _, last = key.rpartition(".")
    target = result
    for part in filter(None, section.split(".")):
      target = target[part]
    if last not in target:
      raise ValueError(f"the config has no key {key!r}")
    old = target[last]
    target[last] = text == "True" if isinstance(old, bool) else type(old)(text)
  return check(result)


def inputs(name: str) -> Inputs:
  """The form of a batch: cached latents and text embeddings, so that a step is the UNet alone."""
  return Inputs("latents_and_embeddings", MODELS[name].size)


def pair_flops(name: str) -> int:
  """Model FLOPs of a pair: the UNet forward and backward and the reference forward, two images."""
  import jax

  from dmpo_jax.parallel import sharding
  from dmpo_jax.planning import train_step

  settings = config(name, {})
  mesh = sharding.make_mesh(1, devices=jax.devices("cpu")[:1])
  return train_step.abstract(settings, load(name), mesh, inputs(name)).example_flops


def latent_shape(name: str) -> tuple[int, int, int]:
  """(h, w, Z) of an image's latents."""
  size = MODELS[name].size
  return pipelines.build(load(name)).sample_shape((size, size))
