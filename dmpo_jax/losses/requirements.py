"""What an objective needs and refuses, as facts that stand beside it in its own file."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from dmpo_jax.errors import InputError


class Facts(NamedTuple):
  """What the caller of an objective must know; every objective carries its own as `.facts`.

  Attributes:
    losers: Whether it needs the errors of the rejected images.
    reference: Whether it needs the errors of the frozen reference.
    residuals: Whether it takes `Residuals` as its second argument.
    batch_statistic: Whether the loss of a pair depends on a mean over the batch. It must be given
      the whole global batch at once: under one jit a mean over sharded arrays is global already,
      but a batch cut into parts (accumulation of gradients) needs the statistic of all parts first,
      or must be refused.
    no_labels: Why soft labels make no sense for it; empty where they do.
  """

  losers: bool = True
  reference: bool = True
  residuals: bool = False
  batch_statistic: bool = False
  no_labels: str = ""


def facts(loss: Callable) -> Facts:
  """The facts of an objective, of one with its hyperparameters bound, or of a wrapped one.

  Args:
    loss: An objective of this package, or a functools.partial of one; what is wrapped is the
      keyword `base`, and a wrapper needs what either of the two needs.

  Returns:
    `Facts`.

  Raises:
    InputError: `loss` is something else.
  """
  if isinstance(loss, functools.partial):
    found = facts(loss.func)
    base = loss.keywords.get("base")
    return found if base is None else Facts(*map(_either, found, facts(base)))
  if not isinstance(getattr(loss, "facts", None), Facts):
    raise InputError(
      f"{loss!r} does not say what it needs; give an objective of dmpo_jax.losses, its "
      "hyperparameters bound by functools.partial"
    )
  return loss.facts


def _either(one: bool | str, other: bool | str) -> bool | str:
  return one or other
