"""The benchmark of scorers: both sides compute the same."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import scorers
import scorers_setting
from scorers_ours import OurSide
from scorers_torch import TorchSide

from dmpo_jax import models
from dmpo_jax.models import trees


def test_both_sides_compute_the_same(tmp_path):
  scorers_setting.write(scorers_setting.SIZES["tiny"], tmp_path)
  sides = OurSide(tmp_path, None), TorchSide(tmp_path)
  for side in sides:
    side.prepare()
  ours, theirs = (side.check() for side in sides)
  assert ours.shape == (4, 16)
  assert scorers.difference(ours, theirs) < scorers.TOLERANCE


def test_the_difference_is_relative_to_the_largest_number():
  assert scorers.difference(np.array([1.0, 4.4]), np.array([1.0, 4.0])) == pytest.approx(0.1)


@pytest.mark.parametrize(("name", "millions"), [("B/32", 151.3), ("L/14", 427.6), ("H/14", 986.1)])
def test_the_sizes_are_the_published_ones(name, millions):
  count = trees.count(models.abstract(scorers_setting.SIZES[name].config))
  assert count / 1e6 == pytest.approx(millions, abs=0.05)
