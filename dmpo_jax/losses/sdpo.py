"""SDPO: a safeguard around another loss, so that the preferred image does not get worse."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dmpo_jax.losses.base import Diagnostics, Interval, PairErrors, checked
from dmpo_jax.losses.requirements import Requirements, requirements
from dmpo_jax.losses.residuals import Residuals, check_residuals, inner


@checked(
  Requirements(reference=False, residuals=True),
  mu=Interval(0, 1, closed_low=True, closed_high=True),
)
def sdpo(
  errors: PairErrors, residuals: Residuals, *, base: Callable, mu: float
) -> tuple[jax.Array, Diagnostics]:
  """SDPO: another loss, its gradient through the rejected image scaled down where it does harm.

      loss = base with e_l replaced by sg(e_l) + λ (e_l - sg(e_l))
      λ = clip((1 - mu) ‖R_w‖²/<R_w, R_l>, 0, 1) where <R_w, R_l> > 0, and 1 elsewhere

  sg stops the gradient and R = f_policy - target. The value is that of the base loss; only the
  gradient changes. To first order, and with the outputs as the parameters, a step that lowers
  e_w - e_l then lowers e_w by at least mu times the decrease without the rejected image.

  Args:
    errors: float32 `[pairs]`: the fields that the base loss needs, and `policy_l`.
    residuals: `[pairs, ...]`, any floating dtype; `policy_w` and `policy_l` enter here.
    base: The base loss, its hyperparameters bound: functools.partial(losses.dpo, beta=2000).
    mu: Fraction of the preferred image's progress that is kept, in [0, 1]; published: 0.9 for SD1.5
      (0.2 around `dspo`), 0.6 for SDXL.

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics` of the base loss, float32 `[pairs]`.

  Raises:
    InputError: mu is out of range, base has no requirements, a field is missing, shapes or
      dtypes are wrong.

  Source: arXiv 2511.03317. Reference implementation: AIDC-AI/Diffusion-SDPO, which averages λ
    over a microbatch; here every pair has its own, independent of the batch layout.
  """
  check_residuals(residuals, "sdpo", fields=["policy_w", "policy_l"], pairs=len(errors.policy_w))
  scale = safeguard(residuals, mu)
  fixed = jax.lax.stop_gradient(errors.policy_l)
  errors = errors._replace(policy_l=fixed + scale * (errors.policy_l - fixed))
  return base(errors, residuals) if requirements(base).residuals else base(errors)


def safeguard(residuals: Residuals, mu: float) -> jax.Array:
  """λ of each pair, without gradient; float32 `[pairs]` in [0, 1]."""
  along = jax.lax.stop_gradient(inner(residuals.policy_w, residuals.policy_l))
  square = jax.lax.stop_gradient(inner(residuals.policy_w, residuals.policy_w))
  hurts = along > 0
  return jnp.where(hurts, jnp.clip((1 - mu) * square / jnp.where(hurts, along, 1.0), 0, 1), 1.0)
