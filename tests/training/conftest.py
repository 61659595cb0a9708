"""A trained tiny pipeline that the tests of this folder share."""

import pytest

from dmpo_jax.training.loop import train
from tests.training.tiny import reference_config


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
  """Folder of a tiny reference after six steps."""
  workdir = tmp_path_factory.mktemp("reference")
  return train(reference_config(), workdir, show_progress=False).pipeline
