"""The four errors of a pair, their logit, and the checks of every loss."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax.common.ranges import Interval, check_number
from dmpo_jax.errors import InputError
from dmpo_jax.losses.requirements import Requirements


class PairErrors(NamedTuple):
  """Squared errors of the policy and the frozen reference on a batch of preference pairs.

  Each field is float32 `[pairs]`, as `denoising_error` gives them. The preferred image (w) and the
  rejected one (l) of a pair share timestep, noise and caption.

  Attributes:
    policy_w: e_w, the policy's error on the preferred images.
    policy_l: e_l, the policy's error on the rejected images; None for single images (`sft`).
    reference_w: r_w, the reference's error on the preferred images; None for reference-free losses.
    reference_l: r_l, the reference's error on the rejected images; None for reference-free losses.
  """

  policy_w: jax.Array
  policy_l: jax.Array | None = None
  reference_w: jax.Array | None = None
  reference_l: jax.Array | None = None


class Diagnostics(NamedTuple):
  """Logit, implicit rewards and accuracy of each pair, float32 `[pairs]`; for reporting only.

  Attributes:
    logit: z = -beta/2 ((e_w - r_w) - (e_l - r_l)); z > 0: the policy prefers the preferred image
      more than the reference does. None where the batch holds no rejected images. The logits of
      `kto` and `mapo` are defined in their docstrings.
    reward_w: Implicit reward of the preferred image, -beta/2 (e_w - r_w).
    reward_l: Implicit reward of the rejected image, -beta/2 (e_l - r_l). None where there are no
      rejected images.
    accuracy: 1 where z > 0, 0 where z < 0, 1/2 on a tie. None where there are no rejected images.
    beta_scale: Factor of beta that the automatic beta of `control` chose; None without it.
  """

  logit: jax.Array | None
  reward_w: jax.Array
  reward_l: jax.Array | None
  accuracy: jax.Array | None
  beta_scale: jax.Array | None = None


def denoising_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Mean squared error of each example, reduced in float32 whatever the inputs' dtype.

      e_i = (1/d) Σ_j (prediction_ij - target_ij)²,   d = C·H·W

  Args:
    prediction: `[batch, ...]`, any floating dtype.
    target: `[batch, ...]`, the same shape.

  Returns:
    float32 `[batch]`.

  Raises:
    InputError: The shapes differ, or there is no axis to average over.

  Source: arXiv 2311.12908, Eq. 14, with the mean over elements instead of the sum.
  """
  if prediction.shape != target.shape or prediction.ndim < 2:
    raise InputError(
      f"prediction {prediction.shape} and target {target.shape} must have one shape [batch, ...]"
    )
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.mean(jnp.square(difference), axis=tuple(range(1, difference.ndim)))


FOUR_ERRORS = Requirements()
# Beyond these, float32 has no room left for the errors that a hyperparameter multiplies.
POSITIVE = Interval(1e-30, 1e30, closed_low=True, closed_high=True)
NOT_NEGATIVE = Interval(0, 1e30, closed_low=True, closed_high=True)


def checked(
  requirements: Requirements = FOUR_ERRORS, **hyperparameters: Interval
) -> Callable[[Callable], Callable]:
  """Decorator of a loss: its inputs are checked and converted before it is called.

  The loss receives its errors as `check_errors` and its hyperparameters as `check_number` return
  them, and carries its requirements as `.requirements`.

  Args:
    requirements: Inputs that the loss needs.
    **hyperparameters: Interval of each hyperparameter that is a number.

  Returns:
    The decorator.
  """

  def decorate(loss: Callable) -> Callable:
    @functools.wraps(loss)
    def checked_loss(errors: PairErrors, *residuals, **arguments):
      for name, interval in hyperparameters.items():
        if name in arguments:
          arguments[name] = check_number(name, arguments[name], interval)
      return loss(check_errors(errors, loss.__name__, requirements), *residuals, **arguments)

    checked_loss.requirements = requirements
    return checked_loss

  return decorate


def check_errors(errors: PairErrors, loss: str, needs: Requirements) -> PairErrors:
  """The errors as float32 arrays, after a check of shapes, dtypes and required fields.

  Args:
    errors: The errors.
    loss: Name of the loss, for the message.
    needs: The loss's requirements.

  Returns:
    `PairErrors` of float32 arrays `[pairs]` (None stays None).

  Raises:
    InputError: A needed field is None, half of the reference is missing, a field is not a vector in
      float32 or wider, or lengths differ.
  """
  fields = ["policy_w"] + ["policy_l"] * needs.rejected + ["reference_w"] * needs.reference
  fields += ["reference_l"] * (needs.rejected and needs.reference)
  for name in fields:
    if getattr(errors, name) is None:
      raise InputError(f"{loss} needs {name}, which is None; give the float32 errors [pairs]")
  if errors.policy_l is not None and (errors.reference_w is None) != (errors.reference_l is None):
    raise InputError(f"{loss}: give both of reference_w and reference_l, or neither")
  arrays = {k: None if v is None else jnp.asarray(v) for k, v in errors._asdict().items()}
  for name, value in arrays.items():
    if value is None:
      continue
    if value.ndim != 1 or value.shape != arrays["policy_w"].shape:
      shapes = {k: v.shape for k, v in arrays.items() if v is not None}
      raise InputError(f"{loss} takes errors of one shape [pairs]; {name} differs: {shapes}")
    if value.dtype not in (jnp.float32, jnp.float64):
      raise InputError(
        f"{loss}: {name} is {value.dtype}; errors must be reduced in float32 "
        "(losses.denoising_error does), for beta multiplies their rounding"
      )
  return PairErrors(**{k: None if v is None else v.astype(jnp.float32) for k, v in arrays.items()})


def diagnose(errors: PairErrors, *, beta: float) -> Diagnostics:
  """Logit, implicit rewards and implicit accuracy of each pair.

      z = -beta/2 Δ,   Δ = (e_w - e_l) - (r_w - r_l)

  The difference is computed as (e_w - r_w) - (e_l - r_l): policy and reference are close, so these
  inner differences are exact in float32 where e_w - e_l is not. A missing reference counts as 0.

  Args:
    errors: float32 `[pairs]`.
    beta: Temperature of Diffusion-DPO on mean errors; the number of timesteps is a factor of it.

  Returns:
    `Diagnostics`, float32 `[pairs]`.
  """

  def reward(policy: jax.Array, reference: jax.Array | None) -> jax.Array:
    return -beta / 2 * (policy if reference is None else policy - reference)

  reward_w = reward(errors.policy_w, errors.reference_w)
  if errors.policy_l is None:
    return Diagnostics(logit=None, reward_w=reward_w, reward_l=None, accuracy=None)
  reward_l = reward(errors.policy_l, errors.reference_l)
  logit = reward_w - reward_l
  return Diagnostics(logit, reward_w, reward_l, implicit_accuracy(logit))


def implicit_accuracy(logit: jax.Array) -> jax.Array:
  """1 where the logit is > 0, 0 where it is < 0, 1/2 on a tie, NaN where it is NaN."""
  return jnp.where(logit > 0, 1.0, jnp.where(logit < 0, 0.0, jnp.where(logit == 0, 0.5, jnp.nan)))
