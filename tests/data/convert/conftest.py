"""A finished conversion for tests."""

import pytest

from dmpo_jax.data.convert import convert
from dmpo_jax.data.convert.options import Options
from tests.data import sets
from tests.data.convert.conversions import SPLITS, pickapic


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A source of 16 rows and its uninterrupted conversion in four chunks."""
  root = tmp_path_factory.mktemp("whole")
  source = pickapic(root, [sets.pickapic_row(i) for i in range(16)])
  options = Options(rows_per_shard=4, splits=SPLITS)
  report = convert.convert(source, root / "out", options)
  return source, options, root / "out", report
