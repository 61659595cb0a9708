"""A trained tiny pipeline and a run from it that the tests of this folder share."""

import pytest

from dmpo_jax.training.run import train
from tests.training.tiny import pairs_config, reference_config


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
  """Folder of a tiny reference after six steps."""
  workdir = tmp_path_factory.mktemp("reference")
  return train(reference_config(), workdir, show_progress=False).pipeline


@pytest.fixture(scope="session")
def finished(pipeline, tmp_path_factory):
  """Work directory of a complete DMPO run of six steps."""
  workdir = tmp_path_factory.mktemp("dmpo")
  train(pairs_config(pipeline), workdir, show_progress=False)
  return workdir
