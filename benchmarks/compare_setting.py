"""Data, objectives and scores of the comparison of objectives at equal movement."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from dmpo_jax import configs, losses
from dmpo_jax.data import datasets
from dmpo_jax.data.in_memory import Examples
from dmpo_jax.data.toy import digits, image_captions
from dmpo_jax.demos.digits import classifier
from dmpo_jax.evaluation.scorers import pixels
from dmpo_jax.training import config as training_config
from dmpo_jax.training.config_file import load_config

# The question of DMPO's paper: which part of it matters. Each differs from DMPO in one thing.
CENTRAL = ("dmpo", "cdpo", "dpo", "dpo_beta_up", "dpo_beta_down")


class Setting(NamedTuple):
  """Data and measurements of a comparison.

  Attributes:
    name: "digits" or "emoji".
    config: The config of every run, but for its loss and seed.
    held_out: Images that no run trains on, on which movement is measured.
    prompts: Caption of each sample, one after the other.
    groups: Number of the caption of each sample, `[N]`.
    score: images `[N, H, W, C]` -> `[N]`, by whose rule the pairs are labelled.
    is_right: images -> bool `[N]`, whether each sample shows its caption.
    score_name, right_name: Their names in the report.
  """

  name: str
  config: ConfigDict
  held_out: Examples
  prompts: list[str]
  groups: np.ndarray
  score: Callable[[np.ndarray], np.ndarray]
  is_right: Callable[[np.ndarray], np.ndarray]
  score_name: str
  right_name: str


def objectives() -> dict[str, dict[str, Any]]:
  """Section `loss` of each objective's config by name, and those of three controls of DMPO.

      dpo_beta_up = DPO at cβ,   dpo_beta_down = DPO at β/c,   dpo_gradient = c · DPO
      c = (d DMPO/dz)/(d DPO/dz) = u*/2 at z = 0

  dpo_beta_up and dpo_gradient have DMPO's gradient at the start. dpo_beta_down saturates at c times
  the margin of DPO. Adam removes the factor of dpo_gradient, but for the clip of the gradient.
  """
  folder = pathlib.Path(configs.__file__).parent
  names = sorted({*losses.LOSSES, "cdpo"})
  sections = {name: load_config(str(folder / f"digits_{name}.py")).loss.to_dict() for name in names}
  alpha = sections["dmpo"]["alpha"]
  ratio = math.log((1 - alpha) / alpha) / 2
  dpo = sections["dpo"]
  scales = {"preferred_gradient_scale": ratio, "rejected_gradient_scale": ratio}
  sections["dpo_gradient"] = {**dpo, **scales}
  sections["dpo_beta_up"] = {**dpo, "beta": ratio * dpo["beta"]}
  sections["dpo_beta_down"] = {**dpo, "beta": dpo["beta"] / ratio}
  return {name: sections[name] for name in (*CENTRAL, "dpo_gradient", *sections)}


def digits_setting(reference: pathlib.Path, per_caption: int) -> Setting:
  """Handwritten digits; heavier strokes are mostly preferred.

  Args:
    reference: Pipeline folder of the quickstart's reference.
    per_caption: Samples of each of the ten captions.
  """
  labels = np.repeat(np.arange(10), per_caption)
  parts = digits.split(
    digits.load(), test_fraction=datasets.TEST_FRACTION, seed=datasets.SPLIT_SEED
  )
  fitted = classifier.fit(*parts)
  return Setting(
    name="digits",
    config=_config("digits_dmpo", reference),
    held_out=datasets.digit_images(split="test"),
    prompts=digits.captions(labels),
    groups=labels,
    score=digits.ink,
    is_right=lambda images: fitted.predict(images) == labels,
    score_name="ink",
    right_name="digit right",
  )


def emoji_setting(
  reference: pathlib.Path, per_caption: int, *, folder: pathlib.Path, pairs: pathlib.Path
) -> Setting:
  """Emoji on held-out captions; the more colourful sample is mostly preferred.

  Args:
    reference: Pipeline folder of the emoji model.
    per_caption: Samples of each held-out caption.
    folder: Captioned drawings, from `dmpo-jax data emoji`.
    pairs: Converted pairs of the model's own samples.
  """
  config = _config("emoji_dmpo", reference)
  config.data.folder = str(pairs)
  held_out = image_captions.load(folder, size=config.data.size, split="test")
  groups = np.repeat(np.arange(len(held_out)), per_caption)
  drawings = held_out.images.reshape(len(held_out), -1)

  def is_right(images: np.ndarray) -> np.ndarray:
    x = np.clip(images, -1, 1).reshape(len(images), -1)
    distance = np.square(drawings).sum(1) - 2 * x @ drawings.T  # [N, captions], but for |x|²
    return distance.argmin(axis=1) == groups

  return Setting(
    name="emoji",
    config=config,
    held_out=held_out,
    prompts=np.repeat(held_out.captions, per_caption).tolist(),
    groups=groups,
    score=pixels.colourfulness,
    is_right=is_right,
    score_name="colourfulness",
    right_name="nearest held-out drawing right",
  )


def _config(name: str, reference: pathlib.Path) -> ConfigDict:
  config = load_config(str(pathlib.Path(configs.__file__).parent / f"{name}.py"))
  config.pipeline = str(reference)
  return training_config.check(config)
