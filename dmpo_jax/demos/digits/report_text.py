"""What the numbers of a report say, in words, and how each is written."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence

from dmpo_jax.evaluation.statistics import Interval

# The comparisons with the reference, paired by caption and seed.
COMPARED = ("ink_gain", "win_rate", "accuracy_change")


def verdict(model: Mapping, reference: Mapping) -> tuple[str, str, list[str]]:
  """What a model's numbers say against the reference, beyond their 95% intervals.

  Args:
    model: An aligned model, as `render` takes it.
    reference: The reference.

  Returns:
    kind: "good" (heavier and the digits stay right), "warn" (heavier, but the digits suffer) or
      "bad" (not heavier).
    summary: A few words.
    remarks: Sentences on what got worse or is not shown; empty if there is nothing to say.
  """
  gain, rate, change = (Interval(*model[key]) for key in COMPARED)
  heavier = rate.low > 0.5 and gain.low > 0
  wrong = change.high < 0
  remarks = []
  if not heavier:
    how = "lighter than" if rate.high < 0.5 and gain.high < 0 else "not shown to be heavier than"
    remarks.append(
      f"Its digits are {how} the reference's: win rate {share(rate.value)} "
      f"({between(rate, share)}), ink {signed(gain.value)} ({between(gain, signed)})."
    )
  if wrong:
    remarks.append(
      f"The digit asked for is recognised less often than in the reference: "
      f"{share(reference['digit_accuracy'][0])} before, {share(model['digit_accuracy'][0])} now "
      f"({points(change.value)} points, {between(change, points)})."
    )
  before, after = (Interval(*m["diversity"]["pairwise"]) for m in (reference, model))
  if after.high < before.low:
    remarks.append(
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
  return kind, summary, remarks


# ---- checking what was given


def escaped(value: object) -> str:
  return html.escape(str(value))


def share(x: float) -> str:
  return f"{x:.0%}" if x in (0, 1) else f"{x:.1%}"


def signed(x: float) -> str:
  return f"{x:+.3f}".replace("-", "−")


def points(x: float) -> str:
  return f"{100 * x:+.1f}".replace("-", "−")


def ends(interval: Sequence[float], form: Callable[[float], str]) -> str:
  return f"{form(interval[1])} to {form(interval[2])}"


def between(interval: Sequence[float], form: Callable[[float], str]) -> str:
  return f"95% interval {ends(interval, form)}"


def name_list(models: Iterable[Mapping]) -> str:
  labels = [model["label"] for model in models]
  return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def shown(value: object) -> str:
  if isinstance(value, bool) or not isinstance(value, float):
    return escaped(value)
  return escaped(f"{value:.4g}")


def duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest} s"


# ---- pieces of HTML


def headline(aligned: Sequence[Mapping], reference: Mapping) -> str:
  """One or more sentences that say which models learned the preference and at what cost.

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
    groups[verdict(model, reference)[0]].append(model)
  said = []
  for kind, models in groups.items():
    if not models:
      continue
    one = len(models) == 1
    if kind == "good":
      said.append(
        f"{name_list(models)} learned the preference: heavier strokes, and the digits stay right."
      )
    elif kind == "warn":
      said.append(
        f"{name_list(models)} {'writes' if one else 'write'} heavier, but digits get lost."
      )
    else:
      said.append(f"{name_list(models)} did not learn to write heavier than the reference.")
  return " ".join(said)
