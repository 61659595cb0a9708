"""The parts of a run that its monitor reads."""

from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import interop
from dmpo_jax.common import paths
from dmpo_jax.training import setup
from dmpo_jax.training.objective import Objective


class MonitoredRun(NamedTuple):
  """The parts of a run that its monitor reads.

  Attributes:
    config: Checked config.
    pipeline: The initial pipeline.
    examples: Training examples.
    objective: Training objective.
    mesh: Devices.
    workdir: Work directory.
  """

  config: ConfigDict
  pipeline: interop.Pipeline
  examples: setup.Data
  objective: Objective
  mesh: Mesh
  workdir: paths.Path
