"""Names and devices of TPU slices."""

import sys

import pytest
from jax.experimental import mesh_utils, topologies

from dmpo_jax.commands.plan import ENVIRONMENT
from dmpo_jax.errors import InputError
from dmpo_jax.parallel import sharding
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
    ("2xv5e-16", "v5e:4x4", 32),
    ("4xv5p-64", "v5p:2x4x4", 128),
    ("3xv5e:2x4", "v5e:2x4", 24),
  ],
)
def test_a_name_gives_a_topology_and_a_number_of_chips(name, topology, chips):
  slices = tpu_slices.parse(name)
  assert (slices.topology, slices.chips) == (topology, chips)


@pytest.mark.parametrize(
  ("name", "expected"), [("v5p:2x2x4", "v5p-32"), ("4xv5p:2x2x4", "4xv5p-32")]
)
def test_the_name_of_v5p_slices_counts_tensor_cores(name, expected):
  assert tpu_slices.parse(name).name == expected


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e", r"'v5e' cannot be read; expected .* v5e:4x4"),
    ("v7:4x4", "TPU generation 'v7'"),
    ("v5e:4x4x4", "has 3 sides; a v5e slice has 2, for example 4x4"),
    ("v5p:0x2x2", "has 3 sides"),
    ("v5e-12", r"counts chips, which must be a power of two; .* v5e:4x4"),
    ("v5p-3", "counts tensor cores, two a chip"),
    ("2v5e-16", r"'2v5e-16' cannot be read; .* several slices: 2xv5e-16"),
    ("0xv5e-16", "has 0 slices, and must have 1 to 256"),
    ("9999xv5e-16", "has 9999 slices"),
    ("2x3xv5e-16", "cannot be read"),
  ],
)
def test_an_invalid_name_is_refused_with_the_expected_form(name, message):
  with pytest.raises(InputError, match=message):
    tpu_slices.parse(name)


@pytest.mark.parametrize("name", ["v5e-1", "v5e-8", "v5e-256", "4xv5p-64", "v4-8", "v6e-16"])
def test_libtpu_has_a_device_for_each_chip(name, monkeypatch):
  pytest.importorskip("libtpu", reason="pip install 'dmpo-jax[tpu]' to compile for TPUs")
  for key, value in ENVIRONMENT.items():
    monkeypatch.setenv(key, value)
  slices = tpu_slices.parse(name)
  devices = tpu_slices.devices(slices)
  assert len(devices) == slices.chips
  assert len({getattr(device, "slice_index", 0) for device in devices}) == slices.count


@pytest.mark.parametrize("name", ["2xv5e-16", "4xv5p-64"])
def test_the_mesh_of_slices_is_jaxs_hybrid_mesh(name, monkeypatch):
  pytest.importorskip("libtpu", reason="pip install 'dmpo-jax[tpu]' to compile for TPUs")
  for key, value in ENVIRONMENT.items():
    monkeypatch.setenv(key, value)
  slices = tpu_slices.parse(name)
  devices = tpu_slices.devices(slices)
  mesh = sharding.make_mesh(fsdp=8, devices=devices[1::2] + devices[::2])
  expected = mesh_utils.create_hybrid_device_mesh(
    (slices.chips_per_slice // 8, 8), (slices.count, 1), devices, allow_split_physical_axes=True
  )
  slice_of = [[device.slice_index for device in row] for row in mesh.devices]
  assert slice_of == [[device.slice_index for device in row] for row in expected]
  assert all(len(set(row)) == 1 for row in slice_of)
  if slices.chip.axes == 2:
    assert mesh.devices.tolist() == expected.tolist()


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
