"""Edits of scikit-learn's handwritten digits by instruction, and preferences between them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.ranges import Integers, check_integer, check_number
from dmpo_jax.data.toy.digits import MAX_PAIRS, SEEDS, TEMPERATURES, WORDS, Digits, ink
from dmpo_jax.errors import InputError, unknown

BOLDER, THINNER = "make it bolder", "make it thinner"
TURN = tuple(f"turn it into {'an' if word[0] == 'e' else 'a'} {word}" for word in WORDS)
SEVEN = 7  # the digit that is asked for most often
INSTRUCTIONS = (BOLDER, THINNER, *TURN)
# Change of the mean grey level that counts as a whole edit, or as nothing kept of the weight.
FULL_CHANGE = 0.1
# Candidates: fraction that keeps the source's shape, that turns into the digit, largest strengths.
KEEPS, TURNS, SPREAD, POWER = 0.6, 0.8, 0.6, 1.2


class Edits(NamedTuple):
  """Edits of N source images, K of each.

  Attributes:
    sources: float32 `[N, H, W, 1]` in [-1, 1].
    instructions: N texts of `INSTRUCTIONS`.
    images: float32 `[N, K, H, W, 1]`; of pairs, axis 1 is (preferred, rejected).
    scores: float64 `[N, K]`, strength + kept of each, see `strength` and `kept`.
  """

  sources: np.ndarray
  instructions: list[str]
  images: np.ndarray
  scores: np.ndarray


def thicken(images: np.ndarray, spread: np.ndarray | float) -> np.ndarray:
  """Images with thicker strokes: each pixel has at least `spread` times its neighbours' ink.

  Args:
    images: `[N, H, W, C]` in [-1, 1].
    spread: Fraction of the ink that the four neighbours receive, in [0, 1]; one, or `[N]`.

  Returns:
    float32 `[N, H, W, C]` in [-1, 1].
  """
  spread = np.reshape(spread, (-1, 1, 1, 1))
  grey = np.pad((images + 1) / 2, ((0, 0), (1, 1), (1, 1), (0, 0)))  # [N, H + 2, W + 2, C]
  middle = slice(1, -1)
  neighbours = [
    grey[:, :-2, middle], grey[:, 2:, middle], grey[:, middle, :-2], grey[:, middle, 2:]
  ]  # fmt: skip
  heavy = np.maximum(grey[:, middle, middle], spread * np.maximum.reduce(neighbours))
  return (2 * heavy - 1).astype(np.float32)


def thin(images: np.ndarray, power: np.ndarray | float) -> np.ndarray:
  """Images with thinner strokes: grey levels to a power, which fades the rims of strokes.

  Args:
    images: `[N, H, W, C]` in [-1, 1].
    power: At least 1; one, or `[N]`.

  Returns:
    float32 `[N, H, W, C]` in [-1, 1].
  """
  power = np.reshape(power, (-1, 1, 1, 1))
  return (2 * ((images + 1) / 2) ** power - 1).astype(np.float32)


def strength(
  edits: np.ndarray, sources: np.ndarray, instructions: Sequence[str], digits: np.ndarray
) -> np.ndarray:
  """How far each edit follows its instruction: 1 is done, 0 is not at all, -1 is the contrary.

      bolder:  clip((ink(edit) - ink(source)) / 0.1, -1, 1);   thinner: the negative of it
      turn it into d:  1 if the edit shows d, else 0

  Args:
    edits: `[N, H, W, C]` in [-1, 1].
    sources: The same of the images that were edited.
    instructions: N texts of `INSTRUCTIONS`.
    digits: The digit that each edit shows, int `[N]`.

  Returns:
    float64 `[N]`.

  Raises:
    InputError: An instruction is unknown, or a pixel is not finite.
  """
  kinds = _numbers(instructions)
  change = np.clip((ink(edits) - ink(sources)) / FULL_CHANGE, -1, 1)
  shown = (np.asarray(digits) == kinds - 2).astype(np.float64)
  return np.select([kinds == 0, kinds == 1], [change, -change], shown)


def kept(edits: np.ndarray, sources: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
  """How much each edit keeps of what its instruction leaves alone; 1 is all.

      bolder, thinner:  the correlation of the pixels of edit and source, which is the shape
      turn it into d:  1 - min(|ink(edit) - ink(source)| / 0.1, 1), the weight of the strokes

  Args:
    edits: `[N, H, W, C]` in [-1, 1].
    sources: The same of the images that were edited.
    instructions: N texts of `INSTRUCTIONS`.

  Returns:
    float64 `[N]`, at most 1. The correlation with a blank image is 0.

  Raises:
    InputError: An instruction is unknown, or a pixel is not finite.
  """
  kinds = _numbers(instructions)
  weight = 1 - np.minimum(np.abs(ink(edits) - ink(sources)) / FULL_CHANGE, 1)
  flat = [np.clip(np.asarray(x, np.float64), -1, 1).reshape(len(x), -1) for x in (edits, sources)]
  a, b = (x - x.mean(axis=1, keepdims=True) for x in flat)
  norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
  shape = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 1e-9)
  return np.where(kinds < 2, shape, weight)


def candidates(digits: Digits, *, num_edits: int, count: int, seed: int) -> Edits:
  """Edits of uneven quality, as a data set for training an editing model has them.

  A source is uniform over the images. A quarter of the instructions is each of bolder, thinner,
  a seven (where the source is none) and one of the nine other digits. Candidates are independent:

  - bolder and thinner change the source, or with probability 0.4 another image of its digit, by a
    uniform strength: `thicken` by 0 to 0.6, `thin` by 1 to 2.2.
  - turn it into d: a uniform image of d, or with probability 0.2 the source as it is.

  Args:
    digits: The digits.
    num_edits: N.
    count: K, candidates of each source and instruction.
    seed: Seed of all of it.

  Returns:
    `Edits`, candidates in random order.

  Raises:
    InputError: A number is out of range, or a digit has no image.
  """
  check_integer("num_edits", num_edits, Integers(1, MAX_PAIRS))
  check_integer("seed", seed, SEEDS)
  members = [np.flatnonzero(digits.labels == label) for label in range(10)]
  if not all(map(len, members)):
    raise InputError(f"each digit needs an image; there are {[len(m) for m in members]}")
  rng = np.random.default_rng(seed)

  def image_of(labels: np.ndarray) -> np.ndarray:
    """A uniform image of each label."""
    counts = np.array([len(m) for m in members])[labels]
    places = (rng.random(labels.shape) * counts).astype(int)
    starts = np.cumsum([0, *(len(m) for m in members)])[labels]
    return np.concatenate(members)[starts + places]

  row = rng.integers(len(digits.labels), size=num_edits)
  label = digits.labels[row].astype(int)
  other = (label + rng.integers(1, 10, size=num_edits)) % 10
  kinds = rng.integers(4, size=num_edits)
  other = np.where((kinds == 3) & (label != SEVEN), SEVEN, other)
  kinds = np.where(kinds < 2, kinds, other + 2)
  instructions = [INSTRUCTIONS[kind] for kind in kinds]
  sources = digits.images[row]
  images, scores = [], []
  for _ in range(count):
    keeps, amount, turns = (rng.random(num_edits) for _ in range(3))
    base = np.where(keeps < KEEPS, row, image_of(label))
    shown = np.where((kinds < 2) | (turns >= TURNS), label, other)
    turned = np.where(turns < TURNS, image_of(other), row)
    image = np.select(
      [(kinds == 0)[:, None, None, None], (kinds == 1)[:, None, None, None]],
      [
        thicken(digits.images[base], SPREAD * amount),
        thin(digits.images[base], 1 + POWER * amount),
      ],
      digits.images[turned],
    ).astype(np.float32)
    images.append(image)
    scores.append(
      strength(image, sources, instructions, shown) + kept(image, sources, instructions)
    )
  return Edits(sources, instructions, np.stack(images, axis=1), np.stack(scores, axis=1))


def preference_pairs(digits: Digits, *, num_pairs: int, temperature: float, seed: int) -> Edits:
  """Pairs of candidates for one source and instruction; what wants both parts is preferred.

      P(a preferred over b) = σ((score(a) - score(b)) / temperature),   score = strength + kept

  Args:
    digits: The digits.
    num_pairs: N, number of pairs.
    temperature: Difference of scores at which the odds are e : 1; > 0.
    seed: Seed of pairs and labels.

  Returns:
    `Edits` with K = 2, (preferred, rejected). A label is wrong where scores[:, 0] < scores[:, 1].

  Raises:
    InputError: A number is out of range, or a digit has no image.
  """
  check_number("temperature", temperature, TEMPERATURES)
  check_integer("num_pairs", num_pairs, Integers(1, MAX_PAIRS))
  edits = candidates(digits, num_edits=num_pairs, count=2, seed=seed)
  gap = edits.scores[:, 0] - edits.scores[:, 1]
  p_first = np.exp(-np.logaddexp(0, -gap / temperature))
  first = np.random.default_rng([seed, 1]).random(num_pairs) < p_first
  sides = np.where(first[:, None], [[0, 1]], [[1, 0]])
  return edits._replace(
    images=np.take_along_axis(edits.images, sides[..., None, None, None], axis=1),
    scores=np.take_along_axis(edits.scores, sides, axis=1),
  )


def _numbers(instructions: Sequence[str]) -> np.ndarray:
  """Place of each instruction in `INSTRUCTIONS`, int `[N]`."""
  for text in instructions:
    if text not in INSTRUCTIONS:
      raise unknown("instruction", text, INSTRUCTIONS)
  return np.array([INSTRUCTIONS.index(text) for text in instructions])
