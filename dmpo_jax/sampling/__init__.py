"""From noise to images: the solver loop, guidance and the randomness of each image."""

from dmpo_jax.sampling.images import to_floats, to_uint8
from dmpo_jax.sampling.noise import initial_noise, seed_keys
from dmpo_jax.sampling.solve import guided, guided_edit, solve
from dmpo_jax.sampling.sources import Sources

__all__ = [
  "Sources",
  "guided",
  "guided_edit",
  "initial_noise",
  "seed_keys",
  "solve",
  "to_floats",
  "to_uint8",
]
