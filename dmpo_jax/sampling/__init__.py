"""Prompt in, image out."""

from dmpo_jax.sampling.images import to_uint8
from dmpo_jax.sampling.noise import initial_noise, seed_keys
from dmpo_jax.sampling.sampler import ddim, guided

__all__ = ["ddim", "guided", "initial_noise", "seed_keys", "to_uint8"]
