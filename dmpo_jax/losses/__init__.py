"""Objectives over the four errors of a preference pair: arrays in, arrays out."""

from dmpo_jax.losses.base import Diagnostics, PairErrors, denoising_error
from dmpo_jax.losses.dmpo import dmpo
from dmpo_jax.losses.dpo import dpo
from dmpo_jax.losses.sft import sft

OBJECTIVES = {"dmpo": dmpo, "dpo": dpo, "sft": sft}

__all__ = ["OBJECTIVES", "Diagnostics", "PairErrors", "denoising_error", "dmpo", "dpo", "sft"]
