"""Supervised fine-tuning on the preferred images."""

import jax

from dmpo_jax.losses.base import Diagnostics, PairErrors, checked, diagnose
from dmpo_jax.losses.requirements import Requirements


@checked(Requirements(rejected=False, reference=False))
def sft(errors: PairErrors) -> tuple[jax.Array, Diagnostics]:
  """The denoising error of the preferred images.

      loss = e_w

  Args:
    errors: float32 `[pairs]`; only `policy_w` enters the loss, the other fields may be None.

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics` at beta = 1.

  Raises:
    InputError: Shapes or dtypes are wrong.

  Source: arXiv 2311.12908. Reference implementation: the SFT mode of Diffusion-DPO.
  """
  return errors.policy_w, diagnose(errors, beta=1.0)
