"""Preference pairs among samples of a model, chosen and labelled by a scorer."""
