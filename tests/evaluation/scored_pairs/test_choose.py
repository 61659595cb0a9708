"""Which images of a prompt make pairs, and their labels."""

import itertools

import numpy as np
import pytest

from dmpo_jax.data.pairs import prompt_key
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scored_pairs import choose
from dmpo_jax.evaluation.scored_pairs.choose import Rule

SEEDS, SCORES = [3, 5, 7, 8, 9], [0.2, 0.9, -0.5, 0.9, 0.1]


def of(rule, scores=SCORES, contents="abcde", prompt="a fox"):
  return choose.choose(prompt, SEEDS, scores, contents, choose.check(rule))


def test_the_best_and_the_worst_image_make_the_pair_of_a_prompt():
  (pair,), _ = of(Rule())
  assert (pair.first, pair.second, pair.p0) == (1, 2, 1.0)  # of two best ones the lower seed
  assert pair.id == f"{prompt_key('a fox')}:5:7"


def test_each_of_the_k_best_meets_each_of_the_k_worst():
  pairs, _ = of(Rule("top-bottom", k=2))
  assert [(p.first, p.second, p.p0) for p in pairs] == [
    (1, 2, 1.0),
    (1, 4, 1.0),
    (2, 3, 0.0),
    (3, 4, 1.0),
  ]


def test_all_pairs_are_every_two_images_in_the_order_of_their_seeds():
  pairs, counts = of(Rule("all", labels="soft", temperature=1.0))
  assert [(p.first, p.second) for p in pairs] == list(itertools.combinations(range(5), 2))
  assert counts["dropped"] == {"identical": 0, "equal_scores": 0, "below_min_gap": 0}


def test_soft_labels_are_the_sigmoid_of_the_gap():
  pairs, _ = of(Rule("all", labels="soft", temperature=0.3))
  expected = [1 / (1 + np.exp(-(SCORES[p.first] - SCORES[p.second]) / 0.3)) for p in pairs]
  np.testing.assert_allclose([p.p0 for p in pairs], expected, rtol=1e-12)


def test_a_minimal_gap_leaves_smaller_ones_out_and_counts_them():
  pairs, counts = of(Rule("all", min_gap=0.7))
  gaps = [abs(a - b) for a, b in itertools.combinations(SCORES, 2)]
  assert len(pairs) == sum(gap >= 0.7 for gap in gaps) == counts["pairs"]
  assert counts["dropped"]["below_min_gap"] == sum(gap < 0.7 for gap in gaps)
  assert counts["largest_gap"] == max(gaps)


def test_hard_labels_have_no_pair_of_equal_scores():
  pairs, counts = of(Rule("all"))
  assert (len(pairs), counts["dropped"]["equal_scores"]) == (9, 1)


def test_identical_images_make_no_pair_and_are_counted():
  pairs, counts = of(Rule("all"), contents="aabcd")
  assert (len(pairs), counts["dropped"]["identical"]) == (8, 1)


def test_the_position_of_the_better_image_does_not_reveal_the_label():
  scores = np.random.default_rng(0).normal(size=(400, 5))
  p0 = [of(Rule(), list(row), prompt=str(i))[0][0].p0 for i, row in enumerate(scores)]
  assert abs(np.mean(p0) - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_statistics_are_those_by_hand():
  counts = [of(Rule("all"), s, prompt=p)[1] for s, p in ((SCORES, "a"), ([0, 1, 2, 3, 4], "b"))]
  report = choose.summary(choose.merge(counts))
  gaps = [abs(a - b) for s in (SCORES, range(5)) for a, b in itertools.combinations(s, 2)]
  gaps = [gap for gap in gaps if gap]
  assert (report["prompts"], report["images"], report["pairs"]) == (2, 10, 19)
  np.testing.assert_allclose(report["mean_gap"], np.mean(gaps))
  variances = [np.var(s, ddof=1) for s in (SCORES, range(5))]
  np.testing.assert_allclose(report["score_spread"], np.sqrt(np.mean(variances)))
  assert (report["largest_gap"], report["flip_rate"]) == (4, 0)


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (Rule("some"), "unknown choice for pairs 'some'"),
    (Rule(labels="firm"), "unknown choice for labels 'firm'"),
    (Rule(k=2), "k is 2; expected at least 1, and 1 unless"),
    (Rule("top-bottom", k=0), "k is 0"),
    (Rule(min_gap=float("nan")), "min_gap must be a number of at least 0"),
    (Rule(temperature=0.1), "no effect on hard labels"),
    (Rule(labels="soft"), "soft labels need a temperature"),
    (Rule(labels="soft", temperature=-1.0), "must be a positive number"),
    (Rule("top-bottom", k=3), "5 images of the prompt 'a fox'; the pairs top-bottom need 6"),
  ],
)
def test_a_rule_that_cannot_be_followed_is_refused(rule, message):
  with pytest.raises(InputError, match=message):
    of(rule)
