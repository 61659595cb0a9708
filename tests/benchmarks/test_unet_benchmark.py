"""The UNet benchmark: both sides compute the same, and differences are detected."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import unet
import unet_setting
from unet_ours import OurSide
from unet_torch import TorchSide


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Files of a network that compiles in seconds."""
  folder = tmp_path_factory.mktemp("unet")
  unet_setting.write(unet_setting.two_levels((2, 4, 4, 1), (8, 16)), folder)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True])
def test_both_sides_compute_the_same(folder, gradient):
  sides = OurSide(folder, gradient, "cpu"), TorchSide(folder, gradient)
  for side in sides:
    side.prepare()
  ours, theirs = (side.check() for side in sides)
  assert unet.difference(ours, theirs) < unet.TOLERANCE


def test_the_largest_relative_difference_is_reported():
  theirs = {"a": 1.0, "b": 2.0, "c": 4.0}
  assert unet.difference({**theirs, "b": 2.2}, theirs) == pytest.approx(0.1)


def test_norms_that_are_zero_but_for_rounding_do_not_count():
  assert unet.difference({"a": 1e-8, "b": 1.0}, {"a": 0.0, "b": 1.0}) == pytest.approx(1e-4)


def test_arrays_of_only_one_side_are_named():
  with pytest.raises(RuntimeError, match="'slope'"):
    unet.difference({"loss": 1.0, "slope": 1.0}, {"loss": 1.0})


def test_the_default_width_is_that_of_stable_diffusion():
  config = unet_setting.stable_diffusion(320, 1, 64).config
  assert config["block_out_channels"] == (320, 640, 1280, 1280)
