"""Configs of runs: one file each, with a function `get_config()`."""
