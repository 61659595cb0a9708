"""The hinge loss of the preference margin."""

import math

import jax

from dmpo_jax.losses.base import Diagnostics, PairErrors, check_errors, check_number, diagnose
from dmpo_jax.losses.requirements import Requirements


def hinge(errors: PairErrors, *, beta: float) -> tuple[jax.Array, Diagnostics]:
  """Hinge: pushes with constant force until the margin is reached, then not at all.

      loss = max(0, 1 + beta Δ) = max(0, 1 - 2 z),   Δ = (e_w - e_l) - (r_w - r_l)

  Args:
    errors: float32 `[pairs]`, all four fields.
    beta: Inverse of the wanted margin in mean errors, > 0. The default of the public program is
      that of DPO, 5000; there is no factor 1/2 before it, so the margin is reached at z = 1/2.

  Returns:
    loss: float32 `[pairs]`; at the kink, and past it, the gradient is 0.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2305.10425 (SLiC-HF) for language models; on errors as in diffusers' research
    program for Diffusion-DPO.
  """
  beta = check_number("beta", beta, low=0.0, high=math.inf)
  diagnostics = diagnose(check_errors(errors, hinge), beta=beta)
  return jax.nn.relu(1 - 2 * diagnostics.logit), diagnostics


hinge.requirements = Requirements()
