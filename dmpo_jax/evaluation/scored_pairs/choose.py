"""Which images of a prompt make pairs, and which of two is preferred, by their scores."""

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmpo_jax.data import pairs
from dmpo_jax.errors import InputError, short, unknown

# Choices of an option, the default first, and their meaning for the command line's help.
PAIRS = (
  ("best-worst", "all", "top-bottom"),
  "best-worst: the image of the highest score with that of the lowest; all: every two images; "
  "top-bottom: each of the k best with each of the k worst",
)
LABELS = (
  ("hard", "soft", "sampled"),
  "hard: the higher score is preferred; soft: p0 = sigmoid((score_0 - score_1) / temperature); "
  "sampled: 0 or 1, one sample of that probability",
)
DROPPED = {
  "identical": "of identical images",
  "equal_scores": "of equal scores",
  "below_min_gap": "with a gap below --min-gap",
}


class Rule(NamedTuple):
  """How scored images of a prompt become labelled pairs.

  Attributes:
    pairs: "best-worst", "all" or "top-bottom", see `PAIRS`.
    k: Images on either side for "top-bottom".
    labels: "hard", "soft" or "sampled", see `LABELS`.
    temperature: Gap of scores at which the odds are e : 1; None for "hard".
    min_gap: Pairs whose scores differ by less are left out.
    seed: Seed of "sampled" labels.
  """

  pairs: str = PAIRS[0][0]
  k: int = 1
  labels: str = LABELS[0][0]
  temperature: float | None = None
  min_gap: float = 0.0
  seed: int = 0


class ScoredPair(NamedTuple):
  """A pair of images of one prompt by their numbers.

  Attributes:
    id: Hash of the prompt and the seeds of both images.
    first: Number of image_0, which has the lower seed: positions do not reveal the label.
    second: Number of image_1.
    p0: P(image_0 is preferred).
  """

  id: str
  first: int
  second: int
  p0: float


def check(rule: Rule) -> Rule:
  """Returns the rule if every value is valid.

  Args:
    rule: The rule.

  Returns:
    The same.

  Raises:
    InputError: A value is unknown, out of range, or has no effect.
  """
  for name, (choices, _) in (("pairs", PAIRS), ("labels", LABELS)):
    if getattr(rule, name) not in choices:
      raise unknown(f"choice for {name}", getattr(rule, name), choices)
  if rule.k < 1 or (rule.k > 1 and rule.pairs != "top-bottom"):
    raise InputError(f"k is {rule.k}; expected at least 1, and 1 unless pairs are top-bottom")
  if not 0 <= rule.min_gap < math.inf:
    raise InputError(f"min_gap must be a number of at least 0, got {rule.min_gap!r}")
  if rule.labels == "hard":
    if rule.temperature is not None:
      raise InputError("a temperature has no effect on hard labels; choose soft or sampled labels")
  elif rule.temperature is None:
    raise InputError(f"{rule.labels} labels need a temperature, a gap of scores")
  else:
    pairs.p0_of_scores(0.0, 0.0, temperature=rule.temperature)
  return rule


def choose(
  prompt: str,
  seeds: Sequence[int],
  scores: Sequence[float],
  contents: Sequence[Hashable],
  rule: Rule,
) -> tuple[list[ScoredPair], dict[str, Any]]:
  """Labelled pairs among the images of one prompt.

      P(image_0 preferred) = σ((score_0 - score_1) / temperature)

  or 1 and 0 for hard labels. A sampled label is one sample of that probability (Bradley-Terry) from
  (rule.seed, prompt, seeds of both images).

  Args:
    prompt: The prompt.
    seeds: Different seeds of the n images, ascending.
    scores: Their scores.
    contents: Equal for identical images.
    rule: See `Rule`; checked.

  Returns:
    The pairs in the order of their seeds, and counts for `merge`.

  Raises:
    InputError: There are fewer than two images, or fewer than 2 k.
  """
  count, key = len(seeds), pairs.prompt_key(prompt)
  need = 2 * rule.k
  if count < need:
    raise InputError(
      f"{count} images of the prompt {short(prompt)}; the pairs {rule.pairs} need {need}: sample "
      "more images a prompt"
    )
  if rule.pairs == "all":
    candidates = list(itertools.combinations(range(count), 2))
  else:
    order = sorted(range(count), key=lambda i: (-scores[i], seeds[i]))
    both = itertools.product(order[: rule.k], order[-rule.k :])
    candidates = sorted((min(i, j), max(i, j)) for i, j in both)
  made, dropped, flips = [], dict.fromkeys(DROPPED, 0), 0
  gaps = [abs(scores[i] - scores[j]) for i, j in candidates]
  for (i, j), gap in zip(candidates, gaps, strict=True):
    name = f"{key}:{seeds[i]}:{seeds[j]}"
    if contents[i] == contents[j]:
      dropped["identical"] += 1
    elif gap < rule.min_gap:
      dropped["below_min_gap"] += 1
    elif gap == 0 and rule.labels == "hard":
      dropped["equal_scores"] += 1
    else:
      p0 = _label(name, scores[i], scores[j], rule)
      flips += (p0 > 0.5) != (scores[i] > scores[j]) and gap > 0 and p0 != 0.5
      made.append(ScoredPair(name, i, j, p0))
  kept = [abs(scores[pair.first] - scores[pair.second]) for pair in made]
  return made, {
    "prompts": 1,
    "images": count,
    "pairs": len(made),
    "dropped": dropped,
    "flips": flips,
    "variance": float(np.var(np.asarray(scores, np.float64), ddof=1)),
    "gap": float(sum(kept)),
    "largest_gap": float(max(gaps)),
  }


def _label(name: str, score_0: float, score_1: float, rule: Rule) -> float:
  if rule.labels == "hard":
    return float(score_0 > score_1)
  p0 = pairs.p0_of_scores(score_0, score_1, temperature=rule.temperature)
  # The salt is part of the labels' definition: another one gives other labels.
  sampled = rule.labels == "sampled"
  return float(pairs.fraction_of(name, salt=f"judge {rule.seed}") < p0) if sampled else p0


def merge(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """Sums the counts of `choose` over prompts; `largest_gap` is the largest one."""
  total = {"prompts": 0, "images": 0, "pairs": 0, "flips": 0, "dropped": dict.fromkeys(DROPPED, 0)}
  total |= {"variance": 0.0, "gap": 0.0, "largest_gap": 0.0}
  for each in counts:
    for name in ("prompts", "images", "pairs", "flips", "variance", "gap"):
      total[name] += each[name]
    for name, number in each["dropped"].items():
      total["dropped"][name] += number
    total["largest_gap"] = max(total["largest_gap"], each["largest_gap"])
  return total


def summary(total: dict[str, Any]) -> dict[str, Any]:
  """Statistics of the labels for a report.

  Args:
    total: From `merge`, of at least one prompt.

  Returns:
    Counts; `score_spread`, the standard deviation of the score among the images of a prompt (root
    of the mean variance over prompts, n - 1 in the denominator); `mean_gap` of the pairs and
    `largest_gap` of all candidates; `flip_rate`, the fraction of the pairs in which the lower score
    is preferred.
  """
  count = max(total["pairs"], 1)
  return {
    **{name: total[name] for name in ("prompts", "images", "pairs", "dropped")},
    "score_spread": math.sqrt(total["variance"] / total["prompts"]),
    "mean_gap": total["gap"] / count,
    "largest_gap": total["largest_gap"],
    "flip_rate": total["flips"] / count,
  }


def lines(scorer: str, report: dict[str, Any]) -> str:
  """Lines of text about the labels.

  Args:
    scorer: Name of the scorer.
    report: From `summary`.

  Returns:
    The text.
  """
  out = [
    f"{report['images']} images of {report['prompts']} prompts scored; within a prompt {scorer} "
    f"spreads by {report['score_spread']:.4g} (standard deviation)",
    f"{report['pairs']} pairs with a mean gap of {report['mean_gap']:.4g} (largest "
    f"{report['largest_gap']:.4g}); the lower score is preferred in {report['flip_rate']:.1%}",
  ]
  left_out = [f"{n} {DROPPED[name]}" for name, n in report["dropped"].items() if n]
  return "\n".join(out + ([f"left out: pairs {', '.join(left_out)}"] if left_out else []))
