"""Names and devices of TPU slices."""

import sys

import pytest
from jax.experimental import topologies

from dmpo_jax.commands.plan import ENVIRONMENT
from dmpo_jax.errors import InputError
from dmpo_jax.planning import tpu_slices


@pytest.mark.parametrize(
  ("name", "topology", "chips"),
  [
    ("v5e:4x4", "v5e:4x4", 16),
    ("v5e-16", "v5e:4x4", 16),
    ("v5e-8", "v5e:2x4", 8),
    ("v5e-256", "v5e:16x16", 256),
    ("v5e-1", "v5e:1x1", 1),
    ("v6e-64", "v6e:8x8", 64),
    ("v5p-32", "v5p:2x2x4", 16),
    ("v4-8", "v4:2x2x1", 4),
    ("v4:2x2x1", "v4:2x2x1", 4),
    ("v5p-512", "v5p:4x8x8", 256),
  ],
)
def test_a_name_gives_a_topology_and_a_number_of_chips(name, topology, chips):
  tpu_slice = tpu_slices.parse(name)
  assert (tpu_slice.topology, tpu_slice.chips) == (topology, chips)


def test_the_name_of_a_v5p_slice_counts_tensor_cores():
  assert tpu_slices.parse("v5p:2x2x4").name == "v5p-32"


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e", r"'v5e' cannot be read; expected .* v5e:4x4"),
    ("v7:4x4", "TPU generation 'v7'"),
    ("v5e:4x4x4", "has 3 sides; a v5e slice has 2, for example 4x4"),
    ("v5p:0x2x2", "has 3 sides"),
    ("v5e-12", r"counts chips, which must be a power of two; .* v5e:4x4"),
    ("v5p-3", "counts tensor cores, two a chip"),
  ],
)
def test_an_invalid_name_is_refused_with_the_expected_form(name, message):
  with pytest.raises(InputError, match=message):
    tpu_slices.parse(name)


@pytest.mark.parametrize("name", ["v5e-1", "v5e-8", "v5e-256", "v5p-32", "v4-8", "v6e-16"])
def test_libtpu_has_a_device_for_each_chip(name, monkeypatch):
  pytest.importorskip("libtpu", reason="pip install 'dmpo-jax[tpu]' to compile for TPUs")
  for key, value in ENVIRONMENT.items():
    monkeypatch.setenv(key, value)
  tpu_slice = tpu_slices.parse(name)
  assert len(tpu_slices.devices(tpu_slice)) == tpu_slice.chips


def test_a_slice_that_libtpu_does_not_know_is_refused(monkeypatch):
  pytest.importorskip("libtpu", reason="pip install 'dmpo-jax[tpu]' to compile for TPUs")
  for key, value in ENVIRONMENT.items():
    monkeypatch.setenv(key, value)
  with pytest.raises(InputError, match=r"libtpu knows no slice v5e:3x5: .*not divisible"):
    tpu_slices.devices(tpu_slices.parse("v5e:3x5"))


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
  def refuse(**_):
    raise RuntimeError("no TPU platform")

  monkeypatch.setattr(topologies, "get_topology_desc", refuse)
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(InputError, match=r"pip install 'dmpo-jax\[tpu\]'"):
    tpu_slices.devices(tpu_slices.parse("v5e-16"))
