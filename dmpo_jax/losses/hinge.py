"""The hinge loss of the preference margin."""

import jax

from dmpo_jax.losses.base import POSITIVE, Diagnostics, PairErrors, checked, diagnose


@checked(beta=POSITIVE)
def hinge(errors: PairErrors, *, beta: float) -> tuple[jax.Array, Diagnostics]:
  """Hinge: a gradient of constant size until the margin is reached, then none.

      loss = max(0, 1 + beta Δ) = max(0, 1 - 2 z),   Δ = (e_w - e_l) - (r_w - r_l)

  Args:
    errors: float32 `[pairs]`, all four fields.
    beta: Inverse of the wanted margin in mean errors, > 0. The default of the reference
      implementation is that of DPO, 5000. There is no factor 1/2 before it, so the margin is
      reached at z = 1/2.

  Returns:
    loss: float32 `[pairs]`; at the kink, and past it, the gradient is 0.
    diagnostics: `Diagnostics`, float32 `[pairs]`.

  Raises:
    InputError: A hyperparameter is out of range, a field is missing, shapes or dtypes are wrong.

  Source: arXiv 2305.10425 (SLiC-HF), for language models. Reference implementation on errors:
    diffusers' research project Diffusion-DPO.
  """
  diagnostics = diagnose(errors, beta=beta)
  return jax.nn.relu(1 - 2 * diagnostics.logit), diagnostics
