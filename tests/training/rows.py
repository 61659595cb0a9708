"""The rows of metrics that are the same in equal runs."""

import pathlib

from dmpo_jax.training.goodput import Goodput
from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.monitor.throughput import TIMINGS


def computed(workdir: pathlib.Path) -> list[dict]:
  """The rows of a run without what tells its speed."""
  timings = {*TIMINGS, *Goodput(period=None).metrics()}
  return [{k: v for k, v in row.items() if k not in timings} for row in read(workdir)]
