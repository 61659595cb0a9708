"""Model families: the only room that knows what a pipeline is made of."""

from dmpo_jax.pipelines.sampler import (
  Networks,
  Sampler,
  make_sampler,
  sample_batches,
  sample_in_batches,
)
from dmpo_jax.pipelines.stable_diffusion import Requests, size_ids

__all__ = [
  "Networks",
  "Requests",
  "Sampler",
  "make_sampler",
  "sample_batches",
  "sample_in_batches",
  "size_ids",
]
