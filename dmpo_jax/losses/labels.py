"""Losses under soft labels: pairs whose preferred image is known with a probability."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError
from dmpo_jax.losses.base import Diagnostics, PairErrors
from dmpo_jax.losses.requirements import requirements
from dmpo_jax.losses.residuals import Residuals


def swap(pairs: PairErrors | Residuals) -> PairErrors | Residuals:
  """The same pairs with preferred and rejected image exchanged."""
  return type(pairs)(
    policy_w=pairs.policy_l,
    policy_l=pairs.policy_w,
    reference_w=pairs.reference_l,
    reference_l=pairs.reference_w,
  )


def soft_label_loss(
  loss: Callable, errors: PairErrors, label: jax.Array, residuals: Residuals | None = None
) -> tuple[jax.Array, Diagnostics]:
  """A loss under soft labels: its expectation over which image is preferred.

      loss = p0 · loss(w, l) + (1 - p0) · loss(l, w)

  p0 is the label: a pair counts p0 times as it is and 1 - p0 times with its images swapped. 1 is
  the loss itself, 0 that of the swapped pair, and 1/2 a tie. Flipping labels at rate η is the
  same, in expectation, as p0 = 1 - η.

  For DPO this is the cross entropy to p0, the KL divergence to the mixed target; with label
  smoothing s, to p0 (1 - s) + (1 - p0) s. For DMPO it is not: mixing the two divergences mixes
  their targets in the logarithm, so that the optimum lies at the logit (2 p0 - 1) u*, that is
  (1 - 2η) u*, and not where the averaged probability p0 (1 - alpha) + (1 - p0) alpha lies.

  Args:
    loss: A loss of this package, its hyperparameters bound by functools.partial.
    errors: float32 `[pairs]`; the rejected images' fields are needed for every loss, also for
      `sft`.
    label: `[pairs]` or a scalar, p0 in [0, 1]: probability that the first image (`policy_w`) is the
      preferred one. The range is not checked, for it may be traced.
    residuals: `Residuals`, where the loss needs them.

  Returns:
    loss: float32 `[pairs]`.
    diagnostics: `Diagnostics`, float32 `[pairs]`, expectations too: the reward of the preferred
      image, the logit times 2 p0 - 1, the probability of ranking the pair right.

  Raises:
    InputError: The loss takes no soft labels (the message says why), the rejected images are
      missing, or `label` does not fit the errors.

  Source: the definition of the expected loss under label noise, as in cDPO (a follow-up to arXiv
    2305.18290).
  """
  needs = requirements(loss)
  if needs.why_no_soft_labels:
    raise InputError(f"this loss takes no soft labels: {needs.why_no_soft_labels}")
  if errors.policy_l is None:
    raise InputError(
      "soft labels are for pairs; these errors have no rejected images (policy_l is None)"
    )
  label = jnp.asarray(label, jnp.float32)
  if label.ndim and label.shape != errors.policy_w.shape:
    raise InputError(f"labels {label.shape} must have the errors' shape {errors.policy_w.shape}")
  inputs = (residuals,) if needs.residuals else ()
  swapped = tuple(swap(x) for x in inputs if x is not None)
  one, other = loss(errors, *inputs), loss(swap(errors), *swapped)
  return jax.tree.map(lambda a, b: label * a + (1 - label) * b, one, other)
