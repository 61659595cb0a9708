"""The choices of a conversion; what loses rows is never a default."""

from typing import NamedTuple

from dmpo_jax.data.captions import CONTEXT
from dmpo_jax.data.convert.sources import LABELS
from dmpo_jax.data.pairs import check_splits
from dmpo_jax.errors import InputError, unknown

CHOICES = {
  "ties": ("soft", "drop"),
  "labels": LABELS,
  "unlabelled": ("stop", "drop"),
  "long_captions": ("keep", "drop"),
  "size_mismatch": ("keep", "drop"),
  "duplicates": ("keep", "drop"),
  "on_bad_row": ("stop", "skip"),
}
# With another of these choices a conversion may go on: where "stop" did not stop, nothing differs.
FREE = ("unlabelled", "on_bad_row")


class Options(NamedTuple):
  """How rows become pairs.

  Attributes:
    ties: "soft" keeps them with p0 = 0.5, "drop" leaves them out.
    labels: "soft" takes the source's probabilities, "votes" shares of votes, "hard" 0 or 1.
    unlabelled: "stop" at a row that nobody judged, or "drop" it.
    long_captions: "keep" or "drop" captions of more than 77 CLIP tokens.
    size_mismatch: "keep" or "drop" pairs whose images differ in size.
    duplicates: "keep" or "drop" pairs whose caption, images, label and judge occurred before.
    on_bad_row: "stop" at a row that cannot be used, or "skip" and list it.
    splits: Share of the prompts by split name.
    split_salt: Another one divides the prompts in another way.
    tokenizer: Folder of a CLIP tokenizer that counts tokens; None counts a lower bound.
    score_temperature: Turns scores of one's own tables into probabilities.
    rows_per_shard: Rows of the source in an output shard, about.
  """

  ties: str = "soft"
  labels: str = "soft"
  unlabelled: str = "stop"
  long_captions: str = "keep"
  size_mismatch: str = "keep"
  duplicates: str = "keep"
  on_bad_row: str = "stop"
  splits: dict[str, float] = {"train": 1.0}  # noqa: RUF012  never changed
  split_salt: str = "split"
  tokenizer: str | None = None
  score_temperature: float = 1.0
  rows_per_shard: int = 1000


def check(options: Options) -> Options:
  """The options, if each is one that exists.

  Args:
    options: The choices.

  Returns:
    The same.

  Raises:
    InputError: One is unknown or out of range.
  """
  for name, known in CHOICES.items():
    if getattr(options, name) not in known:
      raise unknown(f"choice for {name}", getattr(options, name), known)
  check_splits(options.splits)
  if not 1 <= options.rows_per_shard <= 1_000_000:
    raise InputError(f"rows_per_shard must be from 1 to 1,000,000, got {options.rows_per_shard}")
  if not 0 < options.score_temperature < float("inf"):
    raise InputError(f"score_temperature must be positive, got {options.score_temperature}")
  return options


def lasting(options: Options) -> dict:
  """The choices that a conversion cannot change once it has begun, for its plan."""
  found = {name: value for name, value in options._asdict().items() if name not in FREE}
  return found | {"splits": dict(options.splits), "caption_tokens": CONTEXT}
