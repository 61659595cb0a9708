"""Attention for NVIDIA GPUs: cuDNN's flash attention, through jax.nn."""

import jax
import jax.numpy as jnp

LARGEST_HEAD = 128


def fits(q: jax.Array, k: jax.Array) -> bool:
  """Whether cuDNN has a kernel: 16-bit dtype, even lengths, heads of 8, 16, ... 128 channels.

  This excludes float32, the 77 tokens of a text (jax cannot differentiate at odd lengths), and
  heads of 160 channels (SD1.5 below 32x32) or 512 (autoencoders). Chips newer than Ampere support
  wider heads, but a rule that depends on the chip would prevent compilation on another machine.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.

  Returns:
    True where `attention` can be called and differentiated.
  """
  channels = q.shape[3]
  even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
  narrow = q.dtype in (jnp.bfloat16, jnp.float16)
  return narrow and even and channels % 8 == 0 and channels <= LARGEST_HEAD


def attention(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, scale: float) -> jax.Array:
  """`kernels.attention` for arrays that fit; jax partitions it over a mesh by itself."""
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, scale=scale, implementation="cudnn"
  )
