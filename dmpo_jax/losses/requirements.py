"""What an objective needs and refuses, as requirements that stand beside it in its own file."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from dmpo_jax.errors import InputError


class Requirements(NamedTuple):
  """What the caller of an objective must know; every objective carries its own as `.requirements`.

  Attributes:
    losers: Whether it needs the errors of the rejected images.
    reference: Whether it needs the errors of the frozen reference.
    residuals: Whether it takes `Residuals` as its second argument.
    needs_global_batch: Whether the loss of a pair depends on a mean over the batch. The loss must
      then see the whole global batch at once: under one jit a mean over sharded arrays is global,
      but gradient accumulation needs the statistic of all microbatches first.
    why_no_soft_labels: Reason why soft labels are not defined for it; empty where they are.
  """

  losers: bool = True
  reference: bool = True
  residuals: bool = False
  needs_global_batch: bool = False
  why_no_soft_labels: str = ""


def requirements(loss: Callable) -> Requirements:
  """The requirements of an objective, of one with its hyperparameters bound, or of a wrapped one.

  Args:
    loss: An objective of this package, or a functools.partial of one; what is wrapped is the
      keyword `base`, and a wrapper needs what either of the two needs.

  Returns:
    `Requirements`.

  Raises:
    InputError: `loss` is something else.
  """
  if isinstance(loss, functools.partial):
    found = requirements(loss.func)
    base = loss.keywords.get("base")
    return found if base is None else Requirements(*map(_either, found, requirements(base)))
  if not isinstance(getattr(loss, "requirements", None), Requirements):
    raise InputError(
      f"{loss!r} does not say what it needs; give an objective of dmpo_jax.losses, its "
      "hyperparameters bound by functools.partial"
    )
  return loss.requirements


def _either(one: bool | str, other: bool | str) -> bool | str:
  return one or other
