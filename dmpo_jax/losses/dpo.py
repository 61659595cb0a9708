"""Diffusion-DPO and its conservative form with label smoothing."""

import jax
from jax.nn import log_sigmoid

from dmpo_jax.losses.base import POSITIVE, Diagnostics, Interval, PairErrors, checked, diagnose


@checked(beta=POSITIVE, label_smoothing=Interval(0, 0.5, closed_low=True))
def dpo(
  errors: PairErrors, *, beta: float, label_smoothing: float = 0.0
) -> tuple[jax.Array, Diagnostics]:
  """Diffusion-DPO: the forward KL from the target preference to the policy's.

      loss = -(1 - s) log σ(z) - s log σ(-z),   z = -beta/2 ((e_w - e_l) - (r_w - r_l))

  With s > 0 it is conservative DPO (cDPO): the target says that w is preferred with probability
  1 - s, and the minimum lies at z = log((1 - s)/s) instead of at infinity.

  Args:
    errors: float32 `[pairs]`, all four fields.
    beta: Temperature on mean errors, > 0. The launch scripts of the paper use 5000; its text says
      2000 for SD1.5 and 5000 for SDXL (64x64x4 and 128x128x4 latents; smaller images want less).
    label_smoothing: s in [0, 1/2).

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2311.12908, Eq. 14, and its public program; label smoothing is that of cDPO for
    language models (a follow-up to arXiv 2305.18290).
  """
  diagnostics = diagnose(errors, beta=beta)
  z, s = diagnostics.logit, label_smoothing
  return -(1 - s) * log_sigmoid(z) - s * log_sigmoid(-z), diagnostics
