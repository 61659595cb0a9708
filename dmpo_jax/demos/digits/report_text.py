"""Sentences that summarise the numbers of a report."""

from collections.abc import Mapping, Sequence

from dmpo_jax.evaluation.html import (
  name_list,
  percent,
  points,
  signed,
  with_interval,
)
from dmpo_jax.evaluation.statistics import Interval

# The comparisons with the reference, paired by caption and seed.
COMPARED = ("ink_gain", "win_rate", "accuracy_change")


def assessment(model: Mapping, reference: Mapping) -> tuple[str, str, list[str]]:
  """Assessment of a model against the reference, from 95% intervals.

  Args:
    model: An aligned model, as `render` takes it.
    reference: The reference.

  Returns:
    kind: "good" (heavier and the digits stay right), "warn" (heavier, but the digits suffer) or
      "bad" (not heavier).
    summary: A few words.
    notes: Sentences on what got worse or is not shown; may be empty.
  """
  gain, rate, change = (Interval(*model[key]) for key in COMPARED)
  heavier = rate.low > 0.5 and gain.low > 0
  wrong = change.high < 0
  notes = []
  if not heavier:
    how = "lighter than" if rate.high < 0.5 and gain.high < 0 else "not shown to be heavier than"
    notes.append(
      f"Its digits are {how} the reference's: win rate {percent(rate.value)} "
      f"({with_interval(rate, percent)}), ink {signed(gain.value)} ({with_interval(gain, signed)})."
    )
  if wrong:
    notes.append(
      f"The digit asked for is recognised less often than in the reference: "
      f"{percent(reference['digit_accuracy'][0])} before, "
      f"{percent(model['digit_accuracy'][0])} now "
      f"({points(change.value)} points, {with_interval(change, points)})."
    )
  before, after = (Interval(*m["diversity"]["pairwise"]) for m in (reference, model))
  if after.high < before.low:
    notes.append(
      f"Its samples of one caption differ less from each other: distance {after.value:.3f} "
      f"against {before.value:.3f}, the intervals apart."
    )
  if not heavier:
    kind, summary = "bad", "Did not learn the preference"
    if wrong:
      summary += ", and digits get lost"
  elif wrong:
    kind, summary = "warn", "Heavier strokes, but digits get lost"
  else:
    kind, summary = "good", "Heavier strokes, same digits"
  return kind, summary, notes


def headline(aligned: Sequence[Mapping], reference: Mapping) -> str:
  """Sentences on which models learned the preference and at what cost.

  Args:
    aligned: The aligned models, as `render` takes them.
    reference: The reference.

  Returns:
    Plain text.
  """
  if not aligned:
    return "Only the reference was sampled; nothing was aligned."
  groups = {"good": [], "warn": [], "bad": []}
  for model in aligned:
    groups[assessment(model, reference)[0]].append(model)
  sentences = []
  for kind, models in groups.items():
    if not models:
      continue
    one = len(models) == 1
    if kind == "good":
      sentences.append(
        f"{name_list(models)} learned the preference: heavier strokes, and the digits stay right."
      )
    elif kind == "warn":
      sentences.append(
        f"{name_list(models)} {'writes' if one else 'write'} heavier, but digits get lost."
      )
    else:
      sentences.append(f"{name_list(models)} did not learn to write heavier than the reference.")
  return " ".join(sentences)
