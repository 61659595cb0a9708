"""Held-out accuracy of scorers on the art revisions of emoji, beside linear judges of features.

    python benchmarks/emoji_scorer.py data/emoji_revisions runs/emoji/scorer/scorer

The folder has the splits train and test. A linear judge is a logistic regression on the difference
of the two images' features, trained on the split train with a ridge penalty of 0.01. All accuracies
are of the split test, without ties, with 95% intervals that resample captions.

Features: "pixels" are the means of 16x16 blocks; "colours" shares of 4x4x4 bins of RGB; "hand"
these, means and deviations of the channels, histograms, the share of white, bounding box,
saturation, and statistics of differences between neighbouring pixels.
"""

import argparse
import io
import pathlib

import numpy as np
from PIL import Image

from dmpo_jax import data
from dmpo_jax.evaluation.scorers import load_scorer
from dmpo_jax.reward import held_out

RIDGE, STEPS = 0.01, 60


def pixels(x):
  """Means of 16x16 blocks, `[N, H, W, 3]` in [0, 1] -> `[N, F]`."""
  side = x.shape[1] // 16
  return x.reshape(len(x), 16, side, 16, side, 3).mean((2, 4)).reshape(len(x), -1)


def colours(x):
  """Shares of the pixels in 4x4x4 bins of RGB."""
  bins = np.minimum((x * 4).astype(int), 3)
  number = bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]
  return np.stack([(number == i).mean((1, 2)) for i in range(64)], axis=1)


def hand(x):
  """Colours, histograms, white, saturation, bounding box and differences of neighbours."""
  grey, low, high = x.mean(-1), x.min(-1), x.max(-1)
  across, down = np.diff(x, axis=2), np.diff(x, axis=1)
  laplace = 4 * grey[:, 1:-1, 1:-1] - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1]
  laplace = laplace - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
  ink = grey < 0.95
  rows, columns = ink.any(2), ink.any(1)
  shares = [grey > 0.98, high < 0.2]
  sums = [high - low, (high - low) ** 2]
  edges = [rows, rows[:, ::-1], columns, columns[:, ::-1]]
  parts = [
    *(x.mean((1, 2)), x.std((1, 2))),
    *(f(d).mean((1, 2)) for d in (across, down) for f in (np.abs, np.square)),
    *((np.abs(across) < 1 / 255).mean((1, 2)), (np.abs(across) > 0.3).mean((1, 2))),
    *(v.mean((1, 2))[:, None] for v in (*shares, *sums, np.abs(laplace), laplace**2)),
    *(np.stack([edge.argmax(1) for edge in edges], axis=1) / 64,),
    *(
      np.stack([((x[..., c] * 7.999).astype(int) == i).mean((1, 2)) for i in range(8)], axis=1)
      for c in range(3)
    ),
    colours(x),
  ]
  return np.concatenate(parts, axis=1)


def logistic(x, y):
  """Weights of the logistic regression with a ridge, by Newton's method."""
  w = np.zeros(x.shape[1])
  for _ in range(STEPS):
    p = 1 / (1 + np.exp(-x @ w))
    gradient = x.T @ (p - y) / len(y) + RIDGE * w
    hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y) + RIDGE * np.eye(len(w))
    step = np.linalg.solve(hessian, gradient)
    w -= step
    if np.abs(step).max() < 1e-6:
      break
  return w


def read(folder, split):
  """Images uint8 `[N, 2, H, W, 3]`, p0 and prompts of a split, without ties."""
  source = data.PairSource(folder, split)
  pairs = [pair for pair in map(source.__getitem__, range(len(source))) if pair.p0 != 0.5]
  images = [
    [np.asarray(Image.open(io.BytesIO(x))) for x in (pair.image_0, pair.image_1)] for pair in pairs
  ]
  return np.array(images), np.array([p.p0 for p in pairs]), [p.prompt for p in pairs]


def row(name, scores, p0, prompts):
  record = held_out.summarise(scores, p0, prompts)
  low, high = (100 * record[f"accuracy_{end}"] for end in ("low", "high"))
  print(f"| {name} | {100 * record['accuracy']:.1f}% [{low:.1f}, {high:.1f}] |", flush=True)


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=pathlib.Path, help="converted folder with train and test")
  parser.add_argument("scorers", nargs="*", help="folders that dmpo-jax train-scorer wrote")
  options = parser.parse_args(arguments)
  train, test = (read(options.folder, split) for split in ("train", "test"))
  print(f"{len(test[1])} pairs of {len(set(test[2]))} captions\n\n| judge | accuracy |\n|---|---|")
  for features in (pixels, colours, hand):
    x, held = (features(s[0][:, 0] / 255.0) - features(s[0][:, 1] / 255.0) for s in (train, test))
    scale = x.std(0) + 1e-6
    logits = held / scale @ logistic(x / scale, train[1])
    row(f"linear, {features.__name__}", np.stack([logits, 0 * logits], 1), *test[1:])
  for folder in options.scorers:
    scorer = load_scorer("pickscore", folder)
    scores = [scorer.score(list(test[0][:, i]), test[2]) for i in range(2)]
    row(f"scorer {folder}", np.stack(scores, axis=1), *test[1:])


if __name__ == "__main__":
  main()
