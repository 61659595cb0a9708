"""The preference pair, and pure functions from rankings, votes and scores to pairs."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dmpo_jax.errors import InputError, short

MAX_PROMPT_CHARACTERS = 20_000
MAX_ID_CHARACTERS = 1_000
MAX_SIDE = 65_535
MAX_RANKED = 100  # items of a ranking, which make 4,950 pairs
SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Pair(NamedTuple):
  """Two images for one prompt, and the probability that the first one is preferred.

  Attributes:
    id: Unique in its data set.
    prompt: Caption of both images.
    image_0: Encoded bytes (JPEG, PNG or WebP; 8-bit RGB, upright, opaque).
    image_1: The same for the other image.
    p0: P(image_0 is preferred), in [0, 1]; 0.5 is a tie.
    weight: Multiplies the loss of the pair, > 0.
    prompt_id: `prompt_key(prompt)`: equal for prompts that differ in case and spacing only.
    source: Name of the data set.
    size_0: (height, width) of image_0 in pixels.
    size_1: (height, width) of image_1.
    model_0: Model that made image_0; "" where unknown.
    model_1: Model that made image_1; "" where unknown.
    user_id: Annotator; "" where unknown.
    condition: Encoded image that both images were edited from; b"" for none.
    seed_0: Seed from which image_0 was sampled, in [0, 2^32); None where unknown.
    seed_1: The same of image_1.
    score_0: Score of image_0, higher is better; None where unknown. The gap of a pair is
      score_0 - score_1.
    score_1: The same of image_1.
  """

  id: str
  prompt: str
  image_0: bytes
  image_1: bytes
  p0: float
  weight: float
  prompt_id: str
  source: str
  size_0: tuple[int, int]
  size_1: tuple[int, int]
  model_0: str = ""
  model_1: str = ""
  user_id: str = ""
  condition: bytes = b""
  seed_0: int | None = None
  seed_1: int | None = None
  score_0: float | None = None
  score_1: float | None = None


def validate(pair: Pair) -> Pair:
  """Checks a pair, its encoded images excepted.

  Args:
    pair: The pair.

  Returns:
    The same pair.

  Raises:
    InputError: A value has the wrong type or is out of range.
  """
  for name in ("id", "prompt", "prompt_id", "source", "model_0", "model_1", "user_id"):
    check_text(name, getattr(pair, name))
  if not pair.id.strip() or len(pair.id) > MAX_ID_CHARACTERS:
    raise InputError(f"id {pair.id[:80]!r} is empty or longer than {MAX_ID_CHARACTERS} characters")
  check_prompt(pair.prompt)
  if pair.prompt_id != prompt_key(pair.prompt):
    raise InputError(f"prompt_id {pair.prompt_id[:80]!r} is not prompt_key of the prompt")
  for name in ("image_0", "image_1", "condition"):
    if not isinstance(getattr(pair, name), bytes):
      raise InputError(f"{name} must be bytes, got {type(getattr(pair, name)).__name__}")
  if not pair.image_0 or not pair.image_1:
    raise InputError("a pair needs the bytes of two images; one is empty")
  check_probability("p0", pair.p0)
  check_weight(pair.weight)
  for name in ("size_0", "size_1"):
    size = getattr(pair, name)
    if len(size) != 2 or not all(isinstance(s, int) and 0 < s <= MAX_SIDE for s in size):
      raise InputError(f"{name} must be (height, width) in pixels, got {size!r}")
  for name in ("seed_0", "seed_1"):
    check_seed(name, getattr(pair, name))
  for name in ("score_0", "score_1"):
    check_score(name, getattr(pair, name))
  return pair


def check_text(name: str, value: object) -> str:
  """Returns the value if it is text that UTF-8 can encode; raises InputError otherwise."""
  if not isinstance(value, str):
    raise InputError(f"{name} must be text, got {type(value).__name__}")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise InputError(
      f"{name} is not valid UTF-8 at character {error.start}: {value[:60]!r}; save it as UTF-8"
    ) from error
  return value


def check_prompt(prompt: str) -> str:
  """Returns the prompt if it is neither empty nor too long; raises InputError otherwise."""
  if not prompt.strip():
    raise InputError("the caption is empty")
  if len(prompt) > MAX_PROMPT_CHARACTERS:
    raise InputError(
      f"the caption has {len(prompt)} characters, at most {MAX_PROMPT_CHARACTERS} are allowed"
    )
  return prompt


def check_probability(name: str, value: object) -> float:
  """Returns the value as a float if it is in [0, 1]; raises InputError otherwise."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f"{name} must be a number from 0 to 1, got {value!r}")
  if not 0 <= value <= 1:  # refuses NaN too
    raise InputError(f"{name} must lie in [0, 1], got {value!r}")
  return float(value)


def check_weight(value: object) -> float:
  """Returns the value as a float if it is positive; raises InputError otherwise."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f"weight must be a number, got {value!r}")
  if not 1e-30 < value < 1e30:  # the range of float32
    raise InputError(f"weight must be positive and finite, got {value!r}")
  return float(value)


def image_order(p0: float, swap_labels: bool = False) -> int:
  """Order of the images of a pair in an example: 1 as in the record, -1 reversed.

  The first is the one more probably preferred; with swapped labels, the one more probably rejected.

  Args:
    p0: Probability that image_0 is preferred.
    swap_labels: Whether the labels are swapped.
  """
  return -1 if (p0 < 0.5) != swap_labels else 1


def check_seed(name: str, value: object) -> int | None:
  """Returns the value if it is None or a seed in [0, 2^32); raises InputError otherwise."""
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
    raise InputError(f"{name} must be a whole number from 0 to 2^32 - 1, got {short(value)}")
  return value


def check_score(name: str, value: object) -> float | None:
  """Returns the value as a float if it is None or finite; raises InputError otherwise."""
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e38:
    raise InputError(f"{name} must be a finite float32 number, got {short(value)}")
  return float(value)


def prompt_key(prompt: str) -> str:
  """Key of a prompt, equal for prompts that differ in Unicode form, case and spacing only.

  Args:
    prompt: Any text.

  Returns:
    32 hexadecimal digits.
  """
  normalized = " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
  return hashlib.sha256(normalized.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def fraction_of(key: str, *, salt: str = "") -> float:
  """Hash of a key as a number in [0, 1), equal on every machine.

  Args:
    key: Any text.
    salt: Keys have independent numbers under different salts.

  Returns:
    53 bits of SHA-256 as a fraction.
  """
  digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
  return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(prompt_id: str, fractions: Mapping[str, float], *, salt: str = "split") -> str:
  """The split of a prompt and all its pairs.

  Args:
    prompt_id: From `prompt_key`.
    fractions: Fraction of the prompts by split; they sum to 1 (see `check_splits`).
    salt: Different salts give independent assignments.

  Returns:
    Name of the split.
  """
  u, names = fraction_of(prompt_id, salt=salt), list(fractions)
  total = 0.0
  for name in names:
    total += fractions[name]
    if u < total:
      return name
  return names[-1]  # in floats the sum may be 1 - 1e-16


def check_splits(fractions: Mapping[str, float]) -> dict[str, float]:
  """Checks names and fractions of splits.

  Args:
    fractions: Fraction of the prompts by split.

  Returns:
    The same as a dict.

  Raises:
    InputError: A name is not lower-case letters, digits and underscores, a fraction is not in
      (0, 1], or they do not sum to 1.
  """
  for name, fraction in fractions.items():
    if not SPLIT_NAME.fullmatch(name) or name == "all":
      raise InputError(f"split name {name!r}: use lower-case letters, digits and _ (not 'all')")
    if not 0 < fraction <= 1:
      raise InputError(f"the fraction of split {name!r} must lie in (0, 1], got {fraction!r}")
  if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-9):
    raise InputError(f"the fractions of the splits sum to {sum(fractions.values())!r}, not to 1")
  return dict(fractions)


def preferred_first(key: str) -> bool:
  """Whether image_0 of the pair with this key is the preferred one, true for half of all keys.

  For data sets that always name the preferred image first: positions must not reveal the label.
  """
  return fraction_of(key, salt="order") < 0.5


def ranking_pairs(ranks: Sequence[float]) -> Iterator[tuple[int, int, float, float]]:
  """The pairs of a ranking.

      p0(i, j) = 1 if rank_i < rank_j, 0 if rank_i > rank_j, 1/2 if they are equal

  Args:
    ranks: Rank of each of n items, the smallest is best; equal ranks are ties.

  Returns:
    (i, j, p0, weight) for each i < j. The weight is 2 / (n (n - 1)), so the weights of a ranking
    sum to one.

  Raises:
    InputError: There are fewer than 2 or more than 100 ranks, or a rank is NaN or infinite.
  """
  return votes_pairs([ranks])


def votes_pairs(rankings: Sequence[Sequence[float]]) -> Iterator[tuple[int, int, float, float]]:
  """The pairs of items that several people ranked, with the fraction that prefers the first item.

      p0(i, j) = mean over annotators of [rank_i < rank_j] + [rank_i = rank_j]/2

  Args:
    rankings: Ranking of the same n items by each annotator, see `ranking_pairs`.

  Returns:
    (i, j, p0, weight) for each i < j, with weight 2 / (n (n - 1)).

  Raises:
    InputError: There is no ranking, lengths differ, there are fewer than 2 or more than 100 ranks,
      or a rank is NaN or infinite.
  """
  count = len(rankings[0]) if rankings else 0
  if not 2 <= count <= MAX_RANKED:
    raise InputError(f"a ranking must have 2 to {MAX_RANKED} items, got {count}")
  for ranks in rankings:
    if len(ranks) != count:
      raise InputError(f"the rankings of one set have lengths {count} and {len(ranks)}")
    if not all(math.isfinite(r) for r in ranks):
      raise InputError(f"ranks must be finite numbers, got {list(ranks)!r}")

  def pairs():
    for i in range(count):
      for j in range(i + 1, count):
        wins = sum((r[i] < r[j]) + (r[i] == r[j]) / 2 for r in rankings)
        yield i, j, wins / len(rankings), 2 / (count * (count - 1))

  return pairs()


def p0_of_scores(score_0: float, score_1: float, *, temperature: float) -> float:
  """P(image_0 is preferred) under the Bradley-Terry model of two scores.

      p0 = σ((score_0 - score_1)/temperature)

  Args:
    score_0: Score of image_0; higher is better.
    score_1: Score of image_1.
    temperature: Difference of scores that corresponds to odds of e : 1; > 0.

  Returns:
    p0 in [0, 1].

  Raises:
    InputError: A number is NaN or infinite, or the temperature is not positive.
  """
  if not (math.isfinite(score_0) and math.isfinite(score_1)):
    raise InputError(f"scores must be finite numbers, got {score_0!r} and {score_1!r}")
  if not (temperature > 0 and math.isfinite(temperature)):
    raise InputError(f"the temperature of scores must be a positive number, got {temperature!r}")
  z = (score_0 / temperature) - (score_1 / temperature)
  if math.isnan(z):  # both quotients overflowed
    raise InputError(f"scores {score_0!r}, {score_1!r} are too large for {temperature!r}")
  return 1 / (1 + math.exp(-z)) if z >= 0 else 1 - 1 / (1 + math.exp(max(z, -700)))
