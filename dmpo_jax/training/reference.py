"""The reference of a loss where it moves during a run: an EMA of the policy, or copies of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax.models import trees

KINDS = ("frozen", "ema", "hard")


class ReferenceUpdate(NamedTuple):
  """How the reference r follows the policy θ, after n optimizer steps.

      "frozen"  r stays the starting pipeline
      "ema"     r <- decay r + (1 - decay) θ    for n > start
      "hard"    r <- θ                          for n > start where every divides n

  With LoRA, θ and r are adapters of one base.

  Attributes:
    kind: One of `KINDS`.
    decay: Decay of the EMA.
    start: Steps during which the reference stays frozen.
    every: Steps between copies.

  Source: "ema": Linear-DPO (arXiv 2605.21123) and FlowCPO (arXiv 2609.09905).
  """

  kind: str = "frozen"
  decay: float = 0.0
  start: int = 0
  every: int = 0

  @property
  def moves(self) -> bool:
    """Whether the reference changes during a run."""
    return self.kind != "frozen"

  def __call__(self, reference: trees.Tree, policy: trees.Tree, step: jax.Array) -> dict[str, Any]:
    """The reference after an optimizer step.

    Args:
      reference: r, float32.
      policy: θ after the step.
      step: int32 scalar, the steps done, this one included.

    Returns:
      The next r, bit for bit `reference` where nothing is due, and `policy` after a copy.
    """
    if self.kind == "hard":
      due = self._is_copied(step)
      return jax.tree.map(lambda r, p: jnp.where(due, p, r), reference, policy)
    return trees.ema(reference, policy, jnp.where(step > self.start, self.decay, 1.0))

  def is_policy(self, step: jax.Array) -> jax.Array:
    """Whether the reference is the policy after `step` steps of a run: at 0, and after a copy."""
    at_start = step == 0
    return at_start | self._is_copied(step) if self.kind == "hard" else at_start

  def _is_copied(self, step: jax.Array) -> jax.Array:
    return (step > self.start) & (step % self.every == 0)


FROZEN = ReferenceUpdate()


def from_config(section: Mapping[str, Any]) -> ReferenceUpdate:
  """The update that a config's `reference` section describes."""
  values = section.to_dict() if hasattr(section, "to_dict") else section
  return ReferenceUpdate(values["kind"], values["decay"], values["start"], values["every"])
