"""Requirements of a loss, which stand beside it in its own file, and the checks of its inputs."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from dmpo_jax.errors import InputError


class Requirements(NamedTuple):
  """Inputs that a loss needs from its caller; every loss carries its own as `.requirements`.

  Attributes:
    rejected: True where the loss needs the errors of the rejected images.
    reference: True where it needs the errors of the frozen reference.
    residuals: True where it takes `Residuals` as its second argument.
    needs_global_batch: True where the loss of a pair depends on a mean over the batch. The loss
      must then receive the whole global batch at once: under one jit a mean over sharded arrays is
      global, but gradient accumulation needs the statistic of all microbatches first.
    why_no_soft_labels: Reason why soft labels are not defined for it; empty where they are.
  """

  rejected: bool = True
  reference: bool = True
  residuals: bool = False
  needs_global_batch: bool = False
  why_no_soft_labels: str = ""


def requirements(loss: Callable) -> Requirements:
  """The requirements of a loss, also where its hyperparameters are bound or it wraps another loss.

  Args:
    loss: A loss of this package, or a functools.partial of one. A wrapper has the wrapped loss as
      its keyword `base` and needs what either of the two needs.

  Returns:
    `Requirements`.

  Raises:
    InputError: `loss` has no requirements.
  """
  if isinstance(loss, functools.partial):
    own, base = requirements(loss.func), loss.keywords.get("base")
    if base is None:
      return own
    return Requirements(*(a or b for a, b in zip(own, requirements(base), strict=True)))
  if not isinstance(getattr(loss, "requirements", None), Requirements):
    raise InputError(
      f"{loss!r} does not say what it needs; give a loss of dmpo_jax.losses, its hyperparameters "
      "bound by functools.partial"
    )
  return loss.requirements
