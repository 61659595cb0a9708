"""Supervised fine-tuning on the preferred images."""

import jax

from dmpo_jax.losses.base import Diagnostics, PairErrors, check_errors, diagnose
from dmpo_jax.losses.requirements import Requirements


def sft(errors: PairErrors) -> tuple[jax.Array, Diagnostics]:
  """The denoising error of the preferred images.

      loss = e_w

  Args:
    errors: float32 `[pairs]`; only `policy_w` enters the loss, the other fields may be None.

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics` in units of beta = 1, for there is no beta here.

  Raises:
    InputError: Shapes or dtypes are wrong.

  Source: the SFT mode of the public Diffusion-DPO program (arXiv 2311.12908).
  """
  errors = check_errors(errors, sft)
  return errors.policy_w, diagnose(errors, beta=1.0)


sft.requirements = Requirements(losers=False, reference=False)
