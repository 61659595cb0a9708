"""Data sets by their names in a config."""

import numpy as np
import pytest

from dmpo_jax import data
from dmpo_jax.common import choose
from dmpo_jax.data import datasets
from dmpo_jax.errors import InputError


def test_swapped_labels_exchange_the_digits_of_a_pair():
  options = {"num_pairs": 5, "temperature": 0.03, "seed": 1}
  plain, swapped = (datasets.digit_pairs(**options, swap_labels=s) for s in (False, True))
  np.testing.assert_array_equal(swapped.images, plain.images[:, ::-1])
  assert swapped.captions == plain.captions


def test_labels_of_single_images_cannot_be_swapped():
  section = {"name": "digits", "swap_labels": True}
  with pytest.raises(InputError, match="unknown key of data set 'digits': 'swap_labels'"):
    choose.select("data set", section, data.DATASETS)
