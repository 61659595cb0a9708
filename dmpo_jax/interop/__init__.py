"""Diffusers folders and torch state dicts, to and from parameter trees."""

from dmpo_jax.interop.pipeline import Pipeline, load_pipeline, pixel_pipeline, save_pipeline
from dmpo_jax.interop.state_dict import from_torch_state, to_torch_state
from dmpo_jax.interop.tokenizer import Tokens, build_tokenizer, tokenize

__all__ = [
  "Pipeline",
  "Tokens",
  "build_tokenizer",
  "from_torch_state",
  "load_pipeline",
  "pixel_pipeline",
  "save_pipeline",
  "to_torch_state",
  "tokenize",
]
