"""Controls that keep training stable, around any loss: anchors, gradient scales, automatic beta."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.errors import InputError, unknown
from dmpo_jax.losses.base import (
  NOT_NEGATIVE,
  POSITIVE,
  Diagnostics,
  Interval,
  PairErrors,
  check_errors,
  check_number,
)
from dmpo_jax.losses.requirements import Requirements, requirements
from dmpo_jax.losses.residuals import Residuals, inner

# Controls by name: default, interval.
CONTROLS: dict[str, tuple[float, Interval]] = {
  "sft_weight": (0.0, NOT_NEGATIVE),
  "anchor_weight": (0.0, NOT_NEGATIVE),
  "preferred_gradient_scale": (1.0, NOT_NEGATIVE),
  "rejected_gradient_scale": (1.0, NOT_NEGATIVE),
  "auto_gradient_factor": (0.0, Interval(0, 0.5, closed_low=True)),
  "auto_scale_min": (1e-3, POSITIVE),
  "auto_scale_max": (1e3, POSITIVE),
}
# Losses whose slope is a function of the logit and vanishes as it grows; beta multiplies errors.
SCALED_BY_BETA = ("alpha_dpo", "dmpo", "dpo", "dynamic_alpha_dpo", "f_dpo", "kto")


def control(base: Callable, **controls: float) -> Callable:
  """A loss with controls around it.

      loss = base(s e, √s R) + sft_weight e_w + anchor_weight/2 (D_w + D_l)
      D = ‖f_policy - f_reference‖²/d
      s = clip(log(1/a - 1)/mean |z|, auto_scale_min, auto_scale_max), without gradient

  s, the automatic beta, multiplies the beta of the base; a is auto_gradient_factor, |z| the logit
  of the base without it, and the mean is over the global batch of this step. For DPO a pair with
  the mean |z| then has the gradient factor σ(-|z|) = a. At policy = reference s is auto_scale_max.
  Nothing is kept between steps.

  Args:
    base: A loss of this package, its hyperparameters bound by functools.partial.
    **controls: Keys of `CONTROLS`; what is left out has no effect.
      sft_weight: Weight of the preferred image's error, >= 0; in use: 0.1 to 0.25.
      anchor_weight: Weight of the distance from the reference on both images, >= 0.
      preferred_gradient_scale, rejected_gradient_scale: Factor of the base's gradient through the
        errors and residuals of that image, >= 0. The value of the loss does not change.
      auto_gradient_factor: a in (0, 1/2); 0: beta is fixed. In use: 0.2.
      auto_scale_min, auto_scale_max: Bounds of s, > 0.

  Returns:
    The loss: (errors) or (errors, residuals), as its requirements say. Its diagnostics are those of
    the base at the scaled beta, with `beta_scale`.

  Raises:
    InputError: A control is unknown or out of range, has no effect beside the others, or has no
      meaning for the base.

  Source: formulas of public trainers: SFT weights, an anchor on both images (SimpleTuner), an
    automatic beta from the margin (SimpleTuner, over a moving average of earlier steps; here over
    the batch itself).
  """
  values = {name: default for name, (default, _) in CONTROLS.items()}
  for name, value in controls.items():
    if name not in CONTROLS:
      raise unknown("control of a loss", name, CONTROLS)
    values[name] = check_number(name, value, CONTROLS[name][1])
  automatic = values["auto_gradient_factor"] > 0
  if not automatic and (beside := {"auto_scale_min", "auto_scale_max"} & controls.keys()):
    raise InputError(f"{min(beside)} has no effect without auto_gradient_factor; set that, or none")
  if automatic:
    _check_automatic(base, values)
  scales = values["preferred_gradient_scale"], values["rejected_gradient_scale"]
  if scales != (1, 1):
    base = functools.partial(_scaled_gradients, base=base, scales=scales)
  if automatic:
    bounds = values["auto_scale_min"], values["auto_scale_max"]
    base = functools.partial(
      _automatic_beta, base=base, factor=values["auto_gradient_factor"], bounds=bounds
    )
  if values["sft_weight"]:
    base = functools.partial(_with_sft, base=base, weight=values["sft_weight"])
  if values["anchor_weight"]:
    base = functools.partial(_with_anchor, base=base, weight=values["anchor_weight"])
  return base


def split_controls(section: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The keys of a config's loss section that are the loss's own, and those that are controls."""
  controls = {key: value for key, value in section.items() if key in CONTROLS}
  return {key: value for key, value in section.items() if key not in CONTROLS}, controls


def _check_automatic(base: Callable, values: Mapping[str, float]) -> None:
  if not values["auto_scale_min"] <= values["auto_scale_max"]:
    raise InputError(
      f"auto_scale_min is {values['auto_scale_min']:g}, above auto_scale_max "
      f"{values['auto_scale_max']:g}"
    )
  while isinstance(base, functools.partial) and "base" in base.keywords:
    base = base.keywords["base"]
  name = getattr(base, "func", base).__name__
  if name not in SCALED_BY_BETA:
    raise InputError(
      f"auto_gradient_factor has no meaning for the loss {name!r}, whose slope does not depend on "
      f"beta times the errors alone; it has for {', '.join(SCALED_BY_BETA)}, and sdpo around them"
    )


def _call(base: Callable, errors: PairErrors, residuals: Residuals | None) -> tuple:
  return base(errors, residuals) if requirements(base).residuals else base(errors)


def _wrapper(needs: Requirements) -> Callable[[Callable], Callable]:
  """Decorator of a control: checks the errors, and attaches the requirements."""

  def decorate(function: Callable) -> Callable:
    @functools.wraps(function)
    def checked(errors: PairErrors, residuals: Residuals | None = None, *, base, **arguments):
      return function(check_errors(errors, "the loss", needs), residuals, base=base, **arguments)

    checked.requirements = needs
    return checked

  return decorate


_NOTHING = Requirements(rejected=False, reference=False)


@_wrapper(_NOTHING)
def _scaled_gradients(errors, residuals, *, base, scales):
  """The base with its gradient scaled on each side."""

  def scale(x: jax.Array | None, factor: float) -> jax.Array | None:
    fixed = jax.lax.stop_gradient(x)
    return None if x is None else fixed + factor * (x - fixed)

  def both(pairs):
    w, l = pairs.policy_w, pairs.policy_l
    return pairs._replace(policy_w=scale(w, scales[0]), policy_l=scale(l, scales[1]))

  return _call(base, both(errors), None if residuals is None else both(residuals))


@_wrapper(Requirements(needs_global_batch=True))
def _automatic_beta(errors, residuals, *, base, factor, bounds):
  """The base at a beta under which the mean pair has a given gradient factor."""
  _, diagnostics = _call(base, errors, residuals)
  size = jax.lax.stop_gradient(jnp.mean(jnp.abs(diagnostics.logit)))
  # Division by 0 is infinity, which the bounds cut.
  scale = jnp.clip(math.log(1 / factor - 1) / size, *bounds)
  errors = jax.tree.map(lambda e: scale * e, errors)
  root = jnp.sqrt(scale)
  residuals = jax.tree.map(lambda r: root * r.astype(jnp.float32), residuals)
  loss, diagnostics = _call(base, errors, residuals)
  return loss, diagnostics._replace(beta_scale=jnp.broadcast_to(scale, loss.shape))


@_wrapper(_NOTHING)
def _with_sft(errors, residuals, *, base, weight):
  """The base plus the preferred image's error."""
  loss, diagnostics = _call(base, errors, residuals)
  return loss + weight * errors.policy_w, diagnostics


@_wrapper(Requirements(rejected=False, residuals=True))
def _with_anchor(errors, residuals, *, base, weight) -> tuple[jax.Array, Diagnostics]:
  """The base plus the distance of the policy's predictions from the reference's."""
  loss, diagnostics = _call(base, errors, residuals)
  pairs = ((residuals.policy_w, residuals.reference_w), (residuals.policy_l, residuals.reference_l))
  for policy, reference in pairs:
    if policy is not None:
      away = policy.astype(jnp.float32) - reference.astype(jnp.float32)
      loss += weight / 2 * inner(away, away)
  return loss, diagnostics
