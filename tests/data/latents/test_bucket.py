"""Cached latents in a bucket, written by two machines."""

import numpy as np
import pytest

from dmpo_jax.data.latents import cache
from tests import buckets
from tests.data.latents.caches import VIEWS, contents, encoders, load


@pytest.mark.slow
def test_two_machines_cache_in_a_bucket_what_one_caches_on_a_disk(
  pairs, folder, monkeypatch, tmp_path
):
  monkeypatch.setenv("DMPO_JAX_CACHE", str(tmp_path / "cache"))
  out = buckets.folder()
  assert cache.cache_latents(pairs, out, encoders(), VIEWS, host=1, hosts=2) is None
  assert cache.missing(out) == 2
  assert cache.cache_latents(pairs, out, encoders(), VIEWS, host=0, hosts=2) is not None
  written = {name: (out / name).read_bytes() for name in out.find()}
  assert written == {str(name): content for name, content in contents(folder).items()}
  for step in range(3):
    ours, expected = (load(one)[step]["latents"] for one in (out, folder))
    np.testing.assert_array_equal(ours, expected)
