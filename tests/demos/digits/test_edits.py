"""The edits of digits that models are compared on, and the rule that scores them."""

import csv

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.data.toy import digit_edits
from dmpo_jax.demos.digits import edits
from dmpo_jax.evaluation.scorers import Edits


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  return edits.write_edits(tmp_path_factory.mktemp("edits"), 12)


@pytest.fixture(scope="module")
def rows(table):
  return list(csv.DictReader(table.open()))


def test_each_instruction_edits_as_many_held_out_digits_and_none_that_it_asks_for(table, rows):
  assert [row["prompt"] for row in rows[::12]] == list(edits.INSTRUCTIONS)
  held_out = {x.tobytes(): int(y) for x, y in zip(*edits._digits()[1], strict=True)}
  for row in rows:
    pixels = np.asarray(Image.open(table.parent / "sources" / row["source"]), np.float32)
    levels = np.round(pixels / 255 * 16) / 8 - 1  # of scikit-learn
    label = held_out[levels.astype(np.float32)[..., None].tobytes()]
    assert row["prompt"] != digit_edits.TURN[label]


def test_the_preference_is_the_rule_of_the_training_pairs(table, rows):
  pictures = [
    np.asarray(Image.open(table.parent / "sources" / row["source"]).convert("RGB")) for row in rows
  ]
  images, prompts = pictures[1:] + pictures[:1], [row["prompt"] for row in rows]
  x, source = (np.stack(p)[..., :1] / 127.5 - 1 for p in (images, pictures))
  strength = digit_edits.strength(x, source, prompts, edits._classifier()(x))
  kept = digit_edits.kept(x, source, prompts)
  scores = {
    name: edits.scorer(name).score(images, prompts, edits=Edits(pictures)) for name in edits.SCORES
  }
  np.testing.assert_allclose(scores["strength"], strength, atol=1e-6)
  np.testing.assert_allclose(scores["kept"], kept, atol=1e-6)
  np.testing.assert_allclose(scores["preference"], strength + kept, atol=1e-6)
