"""Options of a conversion. No default drops rows."""

from typing import NamedTuple

from dmpo_jax.data.captions import CONTEXT
from dmpo_jax.data.pairs import check_splits, check_text
from dmpo_jax.errors import InputError, unknown

# Choices of an option, the default first, and their meaning for the command line's help.
CHOICES = {
  "ties": (("soft", "drop"), "soft keeps them with p0 = 0.5"),
  "labels": (
    ("soft", "votes", "hard"),
    "soft: the data set's probabilities; votes: fractions of votes; hard: 0 or 1",
  ),
  "unlabelled": (("stop", "drop"), "rows without a label"),
  "long_captions": (("keep", "drop"), f"captions of more than {CONTEXT} CLIP tokens"),
  "size_mismatch": (("keep", "drop"), "pairs whose images differ in size"),
  "duplicates": (
    ("keep", "drop"),
    "same caption, images, label and annotator as an earlier pair, under another id",
  ),
  "rejected": (
    ("none", "source"),
    "the rejected image of data sets with one edit per instruction; source: the unedited image",
  ),
  "on_bad_row": (("stop", "skip"), "invalid rows; skip lists them in bad_rows.jsonl"),
}
LABELS = CHOICES["labels"][0]
# Options that an interrupted conversion may change: rows converted so far do not depend on them.
MUTABLE = ("unlabelled", "on_bad_row")


class Options(NamedTuple):
  """How rows become pairs.

  Attributes:
    ties: "soft" keeps ties with p0 = 0.5, "drop" leaves them out.
    labels: "soft" takes the source's probabilities, "votes" fractions of votes, "hard" 0 or 1.
    unlabelled: "stop" at a row without a label, or "drop" it.
    long_captions: "keep" or "drop" captions of more than 77 CLIP tokens.
    size_mismatch: "keep" or "drop" pairs whose images differ in size.
    duplicates: "keep" or "drop" pairs whose caption, images, label and annotator occurred before.
    rejected: "source": an edit is preferred to its source image, in data sets that have one edit
      for each instruction; "none" for all others.
    on_bad_row: "stop" at an invalid row, or "skip" and list it.
    splits: Fraction of the prompts by split.
    split_seed: Decides which prompts go to which split; any text.
    tokenizer: Folder of a CLIP tokenizer that counts tokens; None counts a lower bound.
    score_temperature: Turns scores into probabilities, see `pairs.p0_of_scores`.
    rows_per_shard: Approximate number of the source's rows in an output shard.
  """

  ties: str = "soft"
  labels: str = "soft"
  unlabelled: str = "stop"
  long_captions: str = "keep"
  size_mismatch: str = "keep"
  duplicates: str = "keep"
  rejected: str = "none"
  on_bad_row: str = "stop"
  splits: dict[str, float] = {"train": 1.0}  # noqa: RUF012  never changed
  split_seed: str = "split"
  tokenizer: str | None = None
  score_temperature: float = 1.0
  rows_per_shard: int = 1000


def check(options: Options) -> Options:
  """Returns the options if every one is valid.

  Args:
    options: The options.

  Returns:
    The same.

  Raises:
    InputError: An option is unknown or out of range.
  """
  for name, (choices, _) in CHOICES.items():
    if getattr(options, name) not in choices:
      raise unknown(f"choice for {name}", getattr(options, name), choices)
  check_splits(options.splits)
  for name in ("split_seed", "tokenizer"):
    if getattr(options, name) is not None:
      check_text(name, getattr(options, name))
  if not 1 <= options.rows_per_shard <= 1_000_000:
    raise InputError(f"rows_per_shard must be from 1 to 1,000,000, got {options.rows_per_shard}")
  if not 1e-30 < options.score_temperature < 1e30:
    raise InputError(
      f"score_temperature must be positive and finite, got {options.score_temperature}"
    )
  return options


def immutable(options: Options) -> dict:
  """The options that an interrupted conversion cannot change, for its plan."""
  fixed = {name: value for name, value in options._asdict().items() if name not in MUTABLE}
  if options.rejected == "none":  # conversions and reports of a time without it stay as they are
    del fixed["rejected"]
  return fixed | {"splits": dict(options.splits), "caption_tokens": CONTEXT}
