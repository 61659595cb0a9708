"""The cost of sampling an image, against counts by hand."""

import pytest

from dmpo_jax import pipelines
from dmpo_jax.interop import published
from dmpo_jax.models.unet import flops as unet_flops
from dmpo_jax.planning import sampling_cost
from dmpo_jax.planning.inputs import Inputs, abstract_batch


def cost(pipeline, size=512):
  functions = pipelines.build(pipeline)
  params = dict.fromkeys(functions.components)
  batch = abstract_batch(functions, params, Inputs("images", size), 1, None)
  return sampling_cost.of_image(functions, batch, (size, size))


def test_an_image_of_sd15_takes_two_forwards_for_each_evaluation_of_pndm():
  result = cost(published.pipeline("sd15"))
  assert result["forwards"] == 2 * 51  # PNDM evaluates its first step twice
  unet = published.pipeline("sd15").configs["unet"]
  assert result["model_flops"] == 102 * unet_flops.forward(unet, 64, 64, 77)
  assert result["model_flops"] == pytest.approx(102 * 804e9, rel=0.01)


def test_an_edit_takes_a_third_forward_and_a_wider_first_convolution():
  plain = published.pipeline("sd15")
  image, edit = cost(plain), cost(pipelines.widen(plain))
  assert edit["forwards"] == 3 * 51
  wider = 2 * 9 * 4 * 320 * 64 * 64  # 2 k² (8 - 4) channels · 320 channels · pixels
  assert edit["model_flops"] / 153 - image["model_flops"] / 102 == wider


def test_a_flow_of_sd35_takes_two_forwards_for_each_step():
  assert cost(published.pipeline("sd35_medium"))["forwards"] == 2 * 50
