"""Splash attention: in interpret mode against XLA's attention, and its lowering for TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmpo_jax import models
from dmpo_jax.models import kernels
from dmpo_jax.models.kernels import tpu as kernels_tpu
from tests.models import torch_map

R = np.random.default_rng(0)

# (queries, keys, channels of a head, causal)
CASES = [(128, 128, 40, True), (256, 77, 64, False), (250, 250, 16, False), (240, 373, 16, False)]


def random_arrays(batch, queries, keys, channels, dtype=np.float32):
  """Queries, keys, values, and the gradient of the result, with two heads."""
  lengths = (queries, keys, keys, queries)
  return [jnp.asarray(R.standard_normal((batch, n, 2, channels)), dtype) for n in lengths]


def interpreted(q, k, v, causal=False, scale=0.25):
  return kernels_tpu.attention(q, k, v, causal, scale, interpret=True)


def plain(q, k, v, causal=False, scale=0.25):
  return kernels.attention(q, k, v, causal, scale, compute=models.Compute("plain"))


def with_gradients(function, causal, q, k, v, g):
  out, back = jax.vjp(lambda *a: function(*a, causal), q, k, v)
  return out, *back(g)


@pytest.fixture(scope="module", params=CASES, ids=str)
def both(request):
  """Result and gradients for q, k, v of the kernel and of XLA."""
  *sizes, causal = request.param
  arrays = random_arrays(2, *sizes)

  def run(*arrays):
    return [with_gradients(f, causal, *arrays) for f in (interpreted, plain)]

  return jax.device_get(torch_map.jit(run)(*arrays))


def test_the_result_agrees_with_plain_attention(both):
  ours, expected = both
  assert torch_map.relative(ours[0], expected[0]) < 1e-5


@pytest.mark.parametrize("argument", [1, 2, 3])
def test_the_gradient_agrees_with_that_of_plain_attention(both, argument):
  ours, expected = both
  assert torch_map.relative(ours[argument], expected[argument]) < 1e-5


def test_the_softmax_of_bfloat16_attention_is_computed_in_float32():
  q, k, v, _ = random_arrays(1, 128, 128, 16, jnp.bfloat16)
  q = 8 * q  # scores of up to 40, which bfloat16 would round by a tenth
  actual = torch_map.jit(interpreted)(q, k, v)
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  scores = np.einsum("blnd,bmnd->bnlm", q, k) / 4
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum("bnlm,bmnd->blnd", weights, v)
  assert actual.dtype == jnp.bfloat16
  assert torch_map.relative(np.asarray(actual, np.float64), expected) < 2**-7


def test_under_a_mesh_each_device_computes_its_images():
  q, k, v, _ = random_arrays(4, 128, 128, 8)
  mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  with jax.set_mesh(mesh):
    actual = torch_map.jit(interpreted)(*jax.device_put((q, k, v), sharding))
  assert actual.sharding.is_equivalent_to(sharding, actual.ndim)
  assert torch_map.relative(actual, plain(q, k, v)) < 1e-5


@pytest.mark.parametrize(("batch", "expected"), [(1, ()), (6, ("data",)), (12, ("data", "fsdp"))])
def test_the_batch_is_sharded_over_the_axes_that_divide_it(batch, expected):
  mesh = jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  assert models.dividing_axes(mesh.shape, mesh.auto_axes, batch) == expected


@pytest.mark.parametrize(
  ("queries", "keys", "channels", "causal", "expected"),
  [
    (4096, 4096, 40, False, True),
    (1024, 1024, 80, False, True),
    (256, 256, 160, False, True),
    (4096, 4096, 512, False, True),
    (4096, 77, 40, False, True),
    (128, 77, 40, True, False),
    (64, 64, 160, False, False),
    (4160, 4160, 40, False, True),
    (4429, 4429, 64, False, True),
    (1024, 1357, 64, False, True),
    (147, 147, 64, False, False),
    (130, 130, 64, False, False),
    (250, 256, 64, True, False),
    (128, 128, 12, False, False),
    (128, 128, 520, False, False),
  ],
)
def test_long_query_lengths_and_those_divisible_by_128_fit(
  queries, keys, channels, causal, expected
):
  q, k = (jax.ShapeDtypeStruct((1, n, 1, channels), jnp.float32) for n in (queries, keys))
  assert kernels_tpu.fits(q, k, causal) == expected


@pytest.mark.parametrize(
  ("length", "more"),
  [(4096, 0), (4429, 179), (1357, 179), (589, 51), (384, 0), (147, None), (64, None), (1, None)],
)
def test_queries_are_padded_to_the_largest_tile_of_little_padding(length, more):
  assert kernels_tpu.padding(length) == more


def lowered(function, *arguments):
  """The program for a TPU, as text."""
  return jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(("queries", "kernel"), [(128, True), (64, False)])
def test_attention_that_fits_lowers_to_the_kernel_on_a_tpu(queries, kernel):
  def attend(q, k, v):
    return kernels.attention(q, k, v, compute=models.Compute("splash"))

  q, k, v, _ = random_arrays(1, queries, 77, 40)
  assert ("tpu_custom_call" in lowered(attend, q, k, v)) == kernel


UNET = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": [16],
  "down_block_types": ["CrossAttnDownBlock2D"],
  "up_block_types": ["CrossAttnUpBlock2D"],
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "cross_attention_dim": 12,
  "attention_head_dim": 2,
}


@pytest.mark.parametrize(("implementation", "kernel"), [("splash", True), ("plain", False)])
def test_a_network_is_built_with_the_requested_implementation(implementation, kernel):
  model = models.build(UNET, compute=models.Compute(implementation))
  shapes = (1, 16, 16, 4), (1,), (1, 7, 12)
  text = lowered(model.apply, models.abstract(UNET), *(np.zeros(s, np.float32) for s in shapes))
  assert ("tpu_custom_call" in text) == kernel


def test_a_causal_text_encoder_lowers_to_the_kernel_where_its_length_fits():
  config = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
  }
  model = models.build(config, compute=models.Compute("splash"))
  text = lowered(model.apply, models.abstract(config), np.zeros((1, 128), np.int32))
  assert "tpu_custom_call" in text
