"""The pair, and pairs from rankings, votes and scores."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_jax.data import pairs
from dmpo_jax.errors import InputError

GOOD = pairs.Pair(
  "i", "a fox", b"0", b"1", 0.5, 1.0, pairs.prompt_key("a fox"), "s", (8, 8), (8, 9)
)


def test_a_valid_pair_is_returned():
  assert pairs.validate(GOOD) is GOOD


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("id", " ", "id ' ' is empty"),
    ("id", 3, "id must be text, got int"),
    ("prompt", " \n", "the caption is empty"),
    ("prompt", "x" * 20_001, "20001 characters"),
    ("prompt", "\ud800", "not valid UTF-8 at character 0"),
    ("prompt_id", "0" * 32, "is not prompt_key"),
    ("image_0", b"", "one is empty"),
    ("image_1", "1.png", "image_1 must be bytes"),
    ("p0", math.nan, "p0 must lie in"),
    ("p0", 1.1, "p0 must lie in"),
    ("p0", True, "p0 must be a number"),
    ("weight", 0.0, "weight must be positive"),
    ("weight", math.inf, "weight must be positive"),
    ("size_0", (0, 8), "size_0 must be"),
  ],
)
def test_an_invalid_value_is_named(name, value, message):
  with pytest.raises(InputError, match=message):
    pairs.validate(GOOD._replace(**{name: value}))


def test_prompts_that_differ_in_case_and_spacing_share_their_key():
  assert pairs.prompt_key("A  Fox\n") == pairs.prompt_key("a fox")
  assert pairs.prompt_key("a fox") != pairs.prompt_key("a fax")


def test_splits_get_their_fraction_of_prompts():
  fractions = {"train": 0.7, "validation": 0.2, "test": 0.1}
  splits = [pairs.split_of(pairs.prompt_key(f"p{i}"), fractions) for i in range(4000)]
  for name, fraction in fractions.items():
    deviation = math.sqrt(fraction * (1 - fraction) / 4000)
    assert abs(splits.count(name) / 4000 - fraction) < 4 * deviation


def test_a_prompt_stays_in_training_when_the_training_fraction_grows():
  keys = [pairs.prompt_key(f"p{i}") for i in range(500)]
  small, large = ({"train": s, "test": 1 - s} for s in (0.5, 0.8))
  assert all(
    pairs.split_of(k, large) == "train" for k in keys if pairs.split_of(k, small) == "train"
  )


@pytest.mark.parametrize(
  ("fractions", "message"),
  [
    ({"train": 0.5}, "sum to 0.5"),
    ({"Train": 1.0}, "split name 'Train'"),
    ({"all": 1.0}, "split name 'all'"),
    ({"train": 1.5, "test": -0.5}, "must lie in"),
    ({"train": math.nan}, "must lie in"),
  ],
)
def test_invalid_splits_are_refused(fractions, message):
  with pytest.raises(InputError, match=message):
    pairs.check_splits(fractions)


def test_a_ranking_gives_each_pair_once_with_the_lower_rank_preferred():
  ranked = list(pairs.ranking_pairs([2, 1, 2]))
  assert [pair[:3] for pair in ranked] == [(0, 1, 0.0), (0, 2, 0.5), (1, 2, 1.0)]


@given(st.lists(st.lists(st.integers(1, 4), min_size=4, max_size=4), min_size=1, max_size=5))
def test_votes_are_the_mean_of_the_annotators_rankings(rankings):
  r = np.array(rankings)
  for i, j, p0, _ in pairs.votes_pairs(rankings):
    assert p0 == pytest.approx(np.mean(0.5 + 0.5 * np.sign(r[:, j] - r[:, i])))


@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_weights_of_a_ranking_sum_to_one(count):
  ranked = list(pairs.ranking_pairs(range(count)))
  assert len(ranked) == len(list(itertools.combinations(range(count), 2)))
  assert sum(w for *_, w in ranked) == pytest.approx(1)


@pytest.mark.parametrize("ranks", [[], [1], [1, math.nan], [1, math.inf], list(range(101))])
def test_an_invalid_ranking_is_refused(ranks):
  with pytest.raises(InputError, match="rank"):
    pairs.ranking_pairs(ranks)


def test_scores_become_bradley_terry_probabilities():
  p0 = pairs.p0_of_scores(4.0, 3.0, temperature=0.5)
  assert p0 == pytest.approx(np.exp(4 / 0.5) / (np.exp(4 / 0.5) + np.exp(3 / 0.5)))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_swapped_scores_give_the_complement(a, b, t):
  one, other = (pairs.p0_of_scores(*s, temperature=t) for s in ((a, b), (b, a)))
  assert 0 <= one <= 1
  assert one + other == pytest.approx(1)


@pytest.mark.parametrize(
  ("scores", "temperature"),
  [((math.nan, 0), 1), ((0, math.inf), 1), ((0, 0), 0), ((1e308, 1e308), 1e-3)],
)
def test_invalid_scores_and_temperatures_are_refused(scores, temperature):
  with pytest.raises(InputError, match=r"score|temperature"):
    pairs.p0_of_scores(*scores, temperature=temperature)


def test_half_of_all_keys_put_the_preferred_image_first():
  fraction = np.mean([pairs.preferred_first(f"k{i}") for i in range(4000)])
  assert abs(fraction - 0.5) < 4 * math.sqrt(0.25 / 4000)
