"""Prompt in, image out."""

from dmpo_jax.sampling.images import to_uint8
from dmpo_jax.sampling.noise import initial_noise, seed_keys
from dmpo_jax.sampling.sampler import guided, solve
from dmpo_jax.sampling.text_to_image import Sampler, make_sampler, sample_in_batches

__all__ = [
  "Sampler",
  "guided",
  "initial_noise",
  "make_sampler",
  "sample_in_batches",
  "seed_keys",
  "solve",
  "to_uint8",
]
