"""A tiny random CLIP of transformers with a tokenizer, as a folder."""

import pathlib

import torch
import transformers

from dmpo_jax import interop
from dmpo_jax.interop.tokenizer import write_tokenizer
from tests.models import torch_map

WORDS = ["a", "red", "fox", "blue", "house", "photo", "depicts"]
CONTEXT, SIZE, WIDTH = 8, 16, 20


def make(folder: pathlib.Path, *, act: str = "gelu", width: int = WIDTH):
  """Writes the folder; returns transformers' model and the tokenizer."""
  tokenizer = interop.build_tokenizer(WORDS, CONTEXT)
  layers = {"intermediate_size": 40, "num_hidden_layers": 2, "hidden_act": act}
  text = {
    **layers,
    "vocab_size": len(tokenizer),
    "hidden_size": 24,
    "num_attention_heads": 3,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": tokenizer.eos_token_id,
  }
  vision = {**layers, "hidden_size": 30, "num_attention_heads": 2, "image_size": SIZE}
  config = transformers.CLIPConfig(
    text_config=text, vision_config={**vision, "patch_size": 4}, projection_dim=width
  )
  network = torch_map.randomise(transformers.CLIPModel(config))
  network.save_pretrained(folder)
  write_tokenizer(folder, tokenizer)
  return network, tokenizer


@torch.no_grad()
def features(network, tokenizer, pixels, prompts):
  """transformers' features of norm 1 of normalised images `[N, 3, S, S]` and of prompts."""
  ids = torch.from_numpy(interop.tokenize(tokenizer, prompts).ids.astype("int64"))
  both = (
    network.get_image_features(torch.from_numpy(pixels)).pooler_output,
    network.get_text_features(ids).pooler_output,
  )
  return [(x / x.norm(dim=-1, keepdim=True)).numpy() for x in both]
