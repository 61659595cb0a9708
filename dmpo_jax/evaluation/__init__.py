"""Scores, win rates, diversity and plots: takes arrays and plain dicts, knows no training."""

from dmpo_jax.evaluation import plots, statistics
from dmpo_jax.evaluation.statistics import Interval

__all__ = ["Interval", "plots", "statistics"]
