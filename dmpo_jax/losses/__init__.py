"""Losses over the four errors of a preference pair: arrays in, arrays out."""

from dmpo_jax.losses.alpha_dpo import alpha_dpo
from dmpo_jax.losses.base import Diagnostics, PairErrors, denoising_error
from dmpo_jax.losses.contrastive import contrastive
from dmpo_jax.losses.controls import CONTROLS, control, split_controls
from dmpo_jax.losses.dmpo import dmpo
from dmpo_jax.losses.dpo import dpo
from dmpo_jax.losses.dspo import dspo
from dmpo_jax.losses.dynamic_alpha_dpo import dynamic_alpha_dpo
from dmpo_jax.losses.f_dpo import f_dpo
from dmpo_jax.losses.hinge import hinge
from dmpo_jax.losses.ipo import ipo
from dmpo_jax.losses.kto import kto
from dmpo_jax.losses.labels import soft_label_loss, swap
from dmpo_jax.losses.linear_dpo import linear_dpo
from dmpo_jax.losses.mapo import mapo
from dmpo_jax.losses.pnapo import PRODUCT_OF_BETA, beta_factor
from dmpo_jax.losses.requirements import Requirements, requirements
from dmpo_jax.losses.residuals import Residuals
from dmpo_jax.losses.sdpo import sdpo
from dmpo_jax.losses.sft import sft

LOSSES = {
  "alpha_dpo": alpha_dpo,
  "contrastive": contrastive,
  "dmpo": dmpo,
  "dpo": dpo,
  "dspo": dspo,
  "dynamic_alpha_dpo": dynamic_alpha_dpo,
  "f_dpo": f_dpo,
  "hinge": hinge,
  "ipo": ipo,
  "kto": kto,
  "linear_dpo": linear_dpo,
  "mapo": mapo,
  "sdpo": sdpo,
  "sft": sft,
}

__all__ = [
  "CONTROLS",
  "LOSSES",
  "PRODUCT_OF_BETA",
  "Diagnostics",
  "PairErrors",
  "Requirements",
  "Residuals",
  "beta_factor",
  "control",
  "denoising_error",
  "requirements",
  "soft_label_loss",
  "split_controls",
  "swap",
  *LOSSES,
]
