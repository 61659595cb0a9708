"""Implementations of layers against formulas and against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from jax.test_util import check_grads

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.models import compute as compute_module
from dmpo_jax.models import kernels
from dmpo_jax.models.kernels import cpu as kernels_cpu
from tests.models import torch_map

R = np.random.default_rng(0)


def normal(*shape):
  return R.standard_normal(shape, np.float32)


def group_norm_formula(x, scale, bias, groups, eps):
  """In float64, group by group."""
  y = np.empty(x.shape, np.float64)
  width = x.shape[-1] // groups
  for image in range(x.shape[0]):
    for first in range(0, x.shape[-1], width):
      part = x[image, ..., first : first + width].astype(np.float64)
      y[image, ..., first : first + width] = (part - part.mean()) / np.sqrt(part.var() + eps)
  return y * scale + bias


def attention_formula(q, k, v, causal):
  scores = np.einsum("blnd,bmnd->bnlm", *(a.astype(np.float64) for a in (q, k)))
  scores /= np.sqrt(q.shape[-1])
  if causal:
    scores[..., ~np.tril(np.ones(scores.shape[-2:], bool))] = -np.inf
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bnlm,bmnd->blnd", weights, v.astype(np.float64))


@pytest.fixture(params=["cpu", "plain"])
def compute(request):
  return models.Compute(attention=request.param)


@pytest.mark.parametrize("offset", [0, 100])
def test_group_norm_agrees_with_the_formula_even_far_from_zero(offset, compute):
  x, scale, bias = normal(3, 4, 5, 6) + offset, normal(6), normal(6)
  actual = kernels.group_norm(x, scale, bias, 3, 1e-5, compute=compute)
  np.testing.assert_allclose(actual, group_norm_formula(x, scale, bias, 3, 1e-5), atol=3e-4)


def test_the_gradient_of_group_norm_agrees_with_finite_differences(compute):
  norm = partial(kernels.group_norm, groups=3, eps=1e-2, compute=compute)
  check_grads(norm, (normal(2, 3, 2, 6), normal(6), normal(6)), order=1, modes=["rev"])


@pytest.mark.parametrize(("lengths", "causal"), [((7, 3), False), ((5, 5), True)])
def test_attention_agrees_with_the_formula(lengths, causal, compute):
  q, k, v = (
    5 * normal(2, lengths[0], 3, 4),
    normal(2, lengths[1], 3, 4),
    normal(2, lengths[1], 3, 4),
  )
  actual = kernels.attention(q, k, v, causal, compute=compute)
  np.testing.assert_allclose(actual, attention_formula(q, k, v, causal), atol=1e-5)
  # 3 of the formula's 1 / sqrt(4)
  actual = kernels.attention(q / 3, k, v, causal, scale=1.5, compute=compute)
  np.testing.assert_allclose(actual, attention_formula(q, k, v, causal), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_gradient_of_attention_agrees_with_finite_differences(causal, compute):
  arrays = [normal(2, 4, 3, 2) for _ in range(3)]
  check_grads(
    partial(kernels.attention, causal=causal, compute=compute), arrays, order=1, modes=["rev"]
  )


def test_attention_with_scores_of_a_thousand_stays_finite(compute):
  q, k, v = 100 * normal(1, 4, 1, 4), 20 * normal(1, 4, 1, 4), normal(1, 4, 1, 4)
  attention = partial(kernels.attention, compute=compute)
  grads = jax.grad(lambda *a: attention(*a).sum(), argnums=(0, 1, 2))(q, k, v)
  assert all(np.isfinite(s).all() for s in grads)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_have_the_dtype_of_their_argument(dtype, compute):
  x = jnp.asarray(normal(2, 4, 2, 2), dtype)
  attention = partial(kernels.attention, compute=compute)
  grad = jax.grad(lambda x: attention(x, x, x).astype(jnp.float32).sum())(x)
  assert grad.dtype == dtype
  scale = jnp.ones(2)
  norm = partial(kernels.group_norm, groups=1, eps=1e-5, compute=compute)
  grad = jax.grad(lambda x: norm(x, scale, scale)[0, 0, 0, 0])(x)
  assert grad.dtype == dtype


def test_group_norm_of_bfloat16_errs_only_by_rounding_its_result(compute):
  # Sums of 512 squares near 64 would lose most digits in bfloat16.
  x = jnp.asarray(8 + normal(2, 16, 16, 4), jnp.bfloat16)
  scale, bias = normal(4), normal(4)
  actual = np.asarray(kernels.group_norm(x, scale, bias, 2, 1e-5, compute=compute), np.float64)
  expected = group_norm_formula(np.asarray(x, np.float64), scale, bias, 2, 1e-5)
  assert (np.abs(actual - expected) <= 2**-8 * np.abs(expected) + 1e-4).all()


def test_layer_norm_of_bfloat16_errs_only_by_rounding_its_result():
  x = jnp.asarray(8 + normal(4, 512), jnp.bfloat16)
  scale, bias = normal(512), normal(512)
  actual = np.asarray(kernels.layer_norm(x, scale, bias, 1e-5), np.float64)
  y = np.asarray(x, np.float64)
  y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
  expected = y * scale[None] + bias[None]
  assert (np.abs(actual - expected) <= 2**-8 * np.abs(expected) + 1e-4).all()


def test_the_softmax_of_bfloat16_attention_is_computed_in_float32(compute):
  # Scores of up to 50: rounded to bfloat16 they would be off by a tenth, and the weights with them.
  q, k = (jnp.asarray(4 * normal(2, n, 2, 16), jnp.bfloat16) for n in (32, 64))
  v = jnp.asarray(normal(2, 64, 2, 16), jnp.bfloat16)
  actual = np.asarray(kernels.attention(q, k, v, compute=compute), np.float64)
  expected = attention_formula(*(np.asarray(a, np.float64) for a in (q, k, v)), False)
  assert np.abs(actual - expected).max() < 2**-7 * np.abs(expected).max()


@pytest.mark.parametrize("per_step", [1, 200])
def test_attention_in_a_loop_over_heads_equals_attention_at_once(per_step, monkeypatch):
  q, k, v, g = normal(3, 7, 2, 4), normal(3, 9, 2, 4), normal(3, 9, 2, 4), normal(3, 7, 2, 4)

  def run():
    out, back = jax.vjp(lambda *a: kernels_cpu.attention(*a, False, 0.5, "none"), q, k, v)
    return out, *back(g)

  at_once = run()
  monkeypatch.setattr(kernels_cpu, "LOOP_ABOVE", 0)
  monkeypatch.setattr(kernels_cpu, "PER_STEP", per_step)
  for actual, expected in zip(run(), at_once, strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_gelu_agrees_with_torch():
  x = np.linspace(-12, 12, 999, dtype=np.float32)
  np.testing.assert_allclose(
    kernels.gelu(x), torch.nn.functional.gelu(torch.from_numpy(x)), atol=1e-6
  )


def test_the_network_agrees_with_diffusers_under_each_implementation():
  config = {
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
  }
  network = torch_map.randomise(UNet2DConditionModel(**config))
  config["_class_name"] = "UNet2DConditionModel"
  params = torch_map.to_params(network, models.abstract(config))
  x, t, context = normal(3, 5, 4, 2), np.array([1, 50, 900]), normal(3, 7, 12)
  with torch.no_grad():
    expected = network(torch_map.nchw(x), torch.from_numpy(t), torch.from_numpy(context)).sample
  for implementation in ("cpu", "plain"):
    apply = jax.jit(models.build(config, compute=models.Compute(attention=implementation)).apply)
    assert torch_map.relative(apply(params, x, t, context), torch_map.nhwc(expected)) < 1e-5


@pytest.mark.parametrize(
  ("platform", "version", "capabilities", "expected"),
  [
    ("cpu", "cpu", [], "cpu"),
    ("gpu", "PJRT C API\ncuda 12090", ["8.0", "9.0"], "cudnn"),
    ("gpu", "PJRT C API\ncuda 12090", ["10.0"], "cudnn"),
    ("gpu", "PJRT C API\ncuda 12090", ["9.0", "7.5"], "plain"),
    ("gpu", "PJRT C API\nrocm 60300", ["gfx942"], "plain"),
    ("tpu", "PJRT C API\nTFRT TPU v5 lite", [], "splash"),
    ("METAL", "0.1", [], "plain"),
  ],
)
def test_each_platform_has_its_implementation(platform, version, capabilities, expected):
  assert compute_module.for_platform(platform, version, capabilities) == expected


def test_an_unknown_implementation_is_refused():
  with pytest.raises(InputError, match="'cpus'; did you mean 'cpu'"):
    models.Compute(attention="cpus")
