"""cuDNN attention: shapes for which it is used, and its lowering for CUDA."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from dmpo_jax import models
from dmpo_jax.models import kernels
from dmpo_jax.models.kernels import gpu as kernels_gpu

CUDNN = models.Compute(attention="cudnn")


def shapes(queries, keys, channels, dtype):
  """Queries, keys and values with two heads."""
  return [jax.ShapeDtypeStruct((3, n, 2, channels), dtype) for n in (queries, keys, keys)]


@pytest.fixture
def _a_version_of_cudnn(monkeypatch):
  """A cuDNN version for jax's check, without an installed cuDNN."""
  version = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
  monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)


def gradients_for_cuda(causal, *arrays):
  """The program of attention's gradients for CUDA, as text."""

  def loss(q, k, v):
    return kernels.attention(q, k, v, causal, compute=CUDNN).astype(jnp.float32).sum()

  traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays)
  return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.usefixtures("_a_version_of_cudnn")
@pytest.mark.parametrize(
  ("queries", "keys", "channels", "causal"),
  [
    (4096, 4096, 40, False),
    (1024, 1024, 80, False),
    (64, 78, 128, False),
    (78, 78, 64, True),
    (1357, 1357, 64, False),
    (1024, 1357, 64, False),
    (4429, 4096, 64, False),
  ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_that_fits_lowers_to_cudnn_forward_and_backward(
  queries, keys, channels, causal, dtype
):
  arrays = shapes(queries, keys, channels, dtype)
  assert kernels_gpu.fits(*arrays[:2])
  text = gradients_for_cuda(causal, *arrays)
  assert "__cudnn$fmhaSoftmax(" in text
  assert "__cudnn$fmhaSoftmaxBackward(" in text


@pytest.mark.usefixtures("_a_version_of_cudnn")
@pytest.mark.parametrize(
  ("queries", "keys", "channels", "dtype"),
  [
    (64, 64, 40, "float32"),
    (64, 77, 40, "bfloat16"),
    (63, 64, 40, "bfloat16"),
    (64, 64, 160, "bfloat16"),
    (64, 64, 12, "bfloat16"),
  ],
)
def test_attention_that_does_not_fit_falls_back_to_xla(queries, keys, channels, dtype):
  arrays = shapes(queries, keys, channels, dtype)
  assert not kernels_gpu.fits(*arrays[:2])
  assert "cudnn" not in gradients_for_cuda(False, *arrays)


@pytest.mark.usefixtures("_a_version_of_cudnn")
@pytest.mark.parametrize(
  ("queries", "keys", "channels", "dtype"),
  [(64, 64, 40, "float32"), (64, 64, 160, "bfloat16")],
)
def test_shapes_that_do_not_fit_are_refused_by_jax(queries, keys, channels, dtype):
  def loss(q, k, v):
    return kernels_gpu.attention(q, k, v, False, 1.0).astype(jnp.float32).sum()

  # The error is jax's own.
  with pytest.raises(NotImplementedError):
    jax.jit(jax.grad(loss)).trace(*shapes(queries, keys, channels, dtype))


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (6, 7), (7, 6)])
def test_odd_lengths_are_padded_without_a_change_of_the_result(queries, keys, monkeypatch):
  r = np.random.default_rng(0)
  q, k, v = (r.standard_normal((2, n, 2, 8), np.float32) for n in (queries, keys, keys))
  expected = kernels.attention(q, k, v, compute=models.Compute("plain"))
  attend = jax.nn.dot_product_attention

  def by_xla(*arrays, implementation, **options):
    assert implementation == "cudnn"
    assert all(a.shape[1] % 2 == 0 for a in arrays)
    return attend(*arrays, implementation="xla", **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
  actual = kernels_gpu.attention(q, k, v, False, 8**-0.5)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_the_fallback_to_xla_computes_attention():
  q, k, v = np.random.default_rng(0).standard_normal((3, 2, 6, 2, 4), np.float32)
  actual = kernels.attention(q, k, v, compute=CUDNN)
  weights = np.exp(np.einsum("blnd,bmnd->bnlm", q, k) / 2)
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(actual, np.einsum("bnlm,bmnd->blnd", weights, v), atol=1e-5)
