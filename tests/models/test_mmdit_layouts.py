"""Rematerialisation, sharding and kernels change no result of the MMDiT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from dmpo_jax import models
from tests.models import torch_map
from tests.models.test_remat import count, placement, recording, spec

CONFIG = {
  "_class_name": "SD3Transformer2DModel",
  "sample_size": 8,
  "num_layers": 2,
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "in_channels": 4,
  "out_channels": 4,
  "joint_attention_dim": 12,
  "caption_projection_dim": 16,
  "pooled_projection_dim": 10,
  "pos_embed_max_size": 32,
  "dual_attention_layers": [0],
  "qk_norm": "rms_norm",
}
PARAMS = models.build(CONFIG).init(jax.random.key(0))


def inputs(height=6, width=4, tokens=5):
  r = np.random.default_rng(0)
  shapes = (4, height, width, 4), (4, tokens, 12), (4, 10)
  return [r.standard_normal(shape, np.float32) for shape in shapes]


def gradient_of(**options):
  """(params, sample, context, pooled) -> (weighted sum, gradients for params and sample)."""
  model = models.build(CONFIG, compute=models.Compute(**options))

  def loss(params, sample, context, pooled):
    w = np.random.default_rng(1).standard_normal(sample.shape, np.float32)
    return (w * model.apply(params, sample, jnp.arange(4) * 300, context, pooled)).sum()

  return jax.value_and_grad(loss, (0, 1))


def compare(actual, expected):
  assert torch_map.relative(actual[0], expected[0]) < 1e-5
  name, off = torch_map.worst(actual[1][0], expected[1][0])
  assert off < 1e-4, name
  assert torch_map.relative(actual[1][1], expected[1][1]) < 1e-4


@pytest.fixture(scope="module")
def expected():
  return torch_map.jit(gradient_of())(PARAMS, *inputs())


def test_rematerialisation_changes_no_gradient(expected):
  compare(torch_map.jit(gradient_of(remat="full"))(PARAMS, *inputs()), expected)


def test_a_placement_on_four_devices_changes_no_gradient(expected):
  mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  params = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x.shape))), PARAMS)
  options = {"remat": "attention", "placement": placement(mesh)}
  compare(torch_map.jit(gradient_of(**options))(params, *inputs()), expected)


def test_policies_from_dots_to_full_recompute_ever_more_products():
  products = []
  for policy in ("none", "dots", "attention", "full"):
    jaxpr = jax.make_jaxpr(gradient_of(remat=policy))(PARAMS, *inputs()).jaxpr
    products.append(count("dot_general", jaxpr))
  assert products[0] == products[1] < products[2] < products[3]


def test_each_weight_is_gathered_but_the_queries_of_the_last_text_stream():
  gathers = []
  apply = models.build(CONFIG, compute=recording(gathers)).apply
  params = models.abstract(CONFIG)
  sample, context, pooled = inputs()
  jax.eval_shape(apply, params, sample, jnp.arange(4), context, pooled)
  last = params["transformer_blocks"]["1"]["attn"]
  unused = [last[name] for name in ("add_q_proj", "norm_added_q")]
  assert sum(w.size for w, _ in gathers) == models.trees.count(params) - models.trees.count(unused)
  assert all(w.shape == full_shape for w, full_shape in gathers)


@pytest.mark.parametrize(("height", "width", "tokens"), [(32, 16, 128), (32, 32, 100)])
def test_joint_attention_lowers_to_splash_attention_on_a_tpu(height, width, tokens):
  model = models.build(CONFIG, compute=models.Compute("splash"))
  sample, context, pooled = inputs(height, width, tokens)
  traced = jax.jit(model.apply).trace(
    models.abstract(CONFIG), sample, np.arange(4), context, pooled
  )
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  # The dual attention, and the joint attention of both layers.
  assert text.count("tpu_custom_call") >= 3


def test_joint_attention_of_an_odd_length_lowers_to_cudnn(monkeypatch):
  import types

  from jax._src.cudnn import fused_attention_stablehlo

  version = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
  monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)
  model = models.build(CONFIG, compute=models.Compute("cudnn"))
  sample, context, pooled = inputs(32, 32, 77)

  def loss(params):
    y = model.apply(params, sample, np.arange(4), context, pooled, dtype=jnp.bfloat16)
    return y.astype(jnp.float32).sum()

  traced = jax.jit(jax.grad(loss)).trace(models.abstract(CONFIG))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmax(" in text
  assert "__cudnn$fmhaSoftmaxBackward(" in text
  assert "dot_product_attention_fallback" not in text
