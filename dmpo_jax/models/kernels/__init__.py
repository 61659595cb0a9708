"""Pure functions of the layers: linear, convolution, normalisation, attention, up-sampling."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from dmpo_jax.models import remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.kernels import cpu as kernels_cpu
from dmpo_jax.models.kernels import gpu as kernels_gpu
from dmpo_jax.models.kernels import tpu as kernels_tpu


def broadcast_last(vector: jax.Array, ndim: int) -> jax.Array:
  """The vector as an array of `ndim` axes with its elements along the last one."""
  return vector.reshape((1,) * (ndim - 1) + (-1,))


def linear(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, compute: Compute
) -> jax.Array:
  """x kernel + bias over the last axis: x `[..., I]`, kernel `[I, O]`, bias `[O]` or None."""
  kernel = kernel.astype(x.dtype)
  if compute.implementation != "cpu":  # on TPUs a reshape fixes a layout and costs copies
    y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return y if bias is None else y + broadcast_last(bias.astype(x.dtype), y.ndim)
  # Do not remove the reshape to two axes: the gradient of the kernel would contract two axes at
  # once, which takes XLA's CPU compiler three times as long, and rounding would change.
  y = x.reshape(-1, x.shape[-1]) @ kernel
  if bias is not None:
    y = y + bias.astype(x.dtype)[None, :]
  return y.reshape(*x.shape[:-1], -1)


def convolution(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  stride: int = 1,
  padding: tuple[int, int] | None = None,
  *,
  compute: Compute,
) -> jax.Array:
  """Cross-correlation, as in PyTorch.

  Args:
    x: `[B, H, W, I]`.
    kernel: `[k, k, I, O]`, k odd.
    bias: `[O]`.
    stride: Step along height and width.
    padding: Zeros (before, after) along height and width; None for (k - 1) // 2 on every side.
    compute: Selects the implementation.

  Returns:
    `[B, ceil(H / stride), ceil(W / stride), O]` with the default padding, in the dtype of x.
  """
  size = kernel.shape[0]
  if size == 1 and stride == 1:
    return linear(x, kernel[0, 0], bias, compute=compute)
  pad = ((size - 1) // 2,) * 2 if padding is None else padding
  y = lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    window_strides=(stride, stride),
    padding=(pad, pad),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y + broadcast_last(bias.astype(x.dtype), y.ndim)


def group_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  groups: int,
  eps: float,
  *,
  compute: Compute,
) -> jax.Array:
  """Normalises each image over space and the channels of a group; statistics in float32.

  Args:
    x: `[B, ..., C]`, C a multiple of groups.
    scale: `[C]`.
    bias: `[C]`.
    groups: Number of groups; neighbouring channels share one.
    eps: Added to the variance.
    compute: Selects the implementation.

  Returns:
    (x - mean) / sqrt(variance + eps) * scale + bias, in the shape and dtype of x.
  """
  if compute.implementation == "cpu":
    return kernels_cpu.group_norm(x, scale, bias, groups, eps)
  batch, channels = x.shape[0], x.shape[-1]
  y = x.astype(jnp.float32).reshape(batch, -1, groups, channels // groups)  # [B, H*W, G, C/G]
  y = y - y.mean((1, 3), keepdims=True)
  factor = lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + eps)
  y = (y * factor).reshape(x.shape)
  return (y * broadcast_last(scale, x.ndim) + broadcast_last(bias, x.ndim)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
  """Normalises over the last axis: x `[..., C]`, scale and bias `[C]`; statistics in float32."""
  y = x.astype(jnp.float32)
  y = y - y.mean(-1, keepdims=True)
  y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  return (y * broadcast_last(scale, x.ndim) + broadcast_last(bias, x.ndim)).astype(x.dtype)


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """(1 + scale) n(x) + shift, n(x) = (x - mean) / sqrt(variance + eps) over the last axis.

  Args:
    x: `[B, L, C]`.
    shift: `[B, C]`.
    scale: `[B, C]`.
    eps: Added to the variance.

  Returns:
    `[B, L, C]` in the dtype of x; computed in float32.
  """
  y = x.astype(jnp.float32)
  y = y - y.mean(-1, keepdims=True)
  y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  shift, scale = (a.astype(jnp.float32)[:, None, :] for a in (shift, scale))
  return (y * (1 + scale) + shift).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) * scale over the last axis: x `[..., C]`, scale `[C]`; in float32."""
  y = x.astype(jnp.float32)
  y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  return (y * broadcast_last(scale.astype(jnp.float32), x.ndim)).astype(x.dtype)


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  causal: bool = False,
  scale: float | None = None,
  *,
  bias: jax.Array | None = None,
  compute: Compute,
) -> jax.Array:
  """softmax(scale q kᵀ + bias) v per head, the softmax in float32.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.
    v: `[B, M, N, D]`.
    causal: Whether position i attends to positions up to i only.
    scale: Factor of the scores; None: 1 / sqrt(D).
    bias: `[1 or B, N, L, M]`, added to the scores, always by XLA's attention; None: nothing.
    compute: Selects the implementation and the rematerialisation policy.

  Returns:
    `[B, L, N, D]` in the dtype of q.
  """
  implementation = compute.implementation if bias is None else "plain"
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  if implementation == "cpu":
    return kernels_cpu.attention(q, k, v, causal, scale, compute.remat)
  if implementation == "cudnn" and kernels_gpu.fits(q, k):
    return kernels_gpu.attention(q, k, v, causal, scale)
  if implementation == "splash" and kernels_tpu.fits(q, k, causal):
    return kernels_tpu.attention(q, k, v, causal, scale)
  options = {"is_causal": causal, "scale": scale, "implementation": "xla"}
  out = jax.nn.dot_product_attention(q, k, v, bias, **options)
  return remat.checkpoint_name(out, remat.ATTENTION, compute.remat)


def gelu(x: jax.Array) -> jax.Array:
  """x Φ(x) with the normal distribution function Φ; erf takes half the time of erfc."""
  return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


def gelu_tanh(x: jax.Array) -> jax.Array:
  """The approximation of `gelu` by tanh, with which some networks are trained."""
  return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def upsample_nearest(x: jax.Array, height: int, width: int) -> jax.Array:
  """Doubles height and width by repetition, then crops to (height, width).

  Cropping equals nearest interpolation to `2 n - 1`: the source of pixel i is i // 2.

  Args:
    x: `[B, H, W, C]`.
    height: 2 H or 2 H - 1.
    width: 2 W or 2 W - 1.

  Returns:
    `[B, height, width, C]`.
  """
  b, h, w, c = x.shape
  y = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
  return y[:, :height, :width]
