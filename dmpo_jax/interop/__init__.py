"""Pipelines, networks, LoRAs and tokenizers in the formats of diffusers, transformers and kohya."""

from dmpo_jax.interop.blip import load_image_reward
from dmpo_jax.interop.clip import load_clip, locate_file, open_tensors
from dmpo_jax.interop.load import load_network, load_pipeline, read_model_index
from dmpo_jax.interop.lora import Lora, kohya_holds, load_lora, save_kohya_lora, save_lora
from dmpo_jax.interop.pipeline import (
  EDITING,
  INDEX,
  SCHEDULER,
  Pipeline,
  components_of,
  pixel_pipeline,
)
from dmpo_jax.interop.save import save_pipeline
from dmpo_jax.interop.state_dict import from_torch_state, to_torch_state
from dmpo_jax.interop.tokenizer import (
  Tokens,
  build_tokenizer,
  load_tokenizer,
  read_tokenizer,
  tokenize,
)

__all__ = [
  "EDITING",
  "INDEX",
  "SCHEDULER",
  "Lora",
  "Pipeline",
  "Tokens",
  "build_tokenizer",
  "components_of",
  "from_torch_state",
  "kohya_holds",
  "load_clip",
  "load_image_reward",
  "load_lora",
  "load_network",
  "load_pipeline",
  "load_tokenizer",
  "locate_file",
  "open_tensors",
  "pixel_pipeline",
  "read_model_index",
  "read_tokenizer",
  "save_kohya_lora",
  "save_lora",
  "save_pipeline",
  "to_torch_state",
  "tokenize",
]
