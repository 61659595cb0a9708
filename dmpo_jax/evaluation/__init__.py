"""Scorers, statistics and plots of samples: arrays and plain dicts in, no training."""
