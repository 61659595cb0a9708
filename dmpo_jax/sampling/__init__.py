"""Prompt in, image out."""

from dmpo_jax.sampling.images import to_uint8
from dmpo_jax.sampling.noise import initial_noise, seed_keys
from dmpo_jax.sampling.prompts import Requests, size_ids
from dmpo_jax.sampling.sampler import guided, solve
from dmpo_jax.sampling.text_to_image import (
  Networks,
  Sampler,
  make_sampler,
  sample_batches,
  sample_in_batches,
)

__all__ = [
  "Networks",
  "Requests",
  "Sampler",
  "guided",
  "initial_noise",
  "make_sampler",
  "sample_batches",
  "sample_in_batches",
  "seed_keys",
  "size_ids",
  "solve",
  "to_uint8",
]
