"""Scorers of images; higher is more of it.

A scorer is a function of images `[N, H, W, 3]` in [-1, 1] and their N prompts that returns one
float per image, `[N]`. A new one is a file in this folder and a line in `SCORERS`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from dmpo_jax.evaluation.scorers.pixels import brightness, colourfulness, warmth

Scorer = Callable[[np.ndarray, Sequence[str]], np.ndarray]

SCORERS: dict[str, Scorer] = {
  "brightness": brightness,
  "colourfulness": colourfulness,
  "warmth": warmth,
}
