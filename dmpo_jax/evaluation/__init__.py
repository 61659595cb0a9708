"""Scores, win rates, diversity and the report: takes arrays and plain dicts, knows no training."""

from dmpo_jax.evaluation import digit_classifier, plots, scores
from dmpo_jax.evaluation.measurement import measure
from dmpo_jax.evaluation.report import render
from dmpo_jax.evaluation.scores import Interval

__all__ = ["Interval", "digit_classifier", "measure", "plots", "render", "scores"]
