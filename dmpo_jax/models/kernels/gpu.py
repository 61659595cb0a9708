"""Attention for NVIDIA GPUs: cuDNN's flash attention, through jax.nn."""

import jax
import jax.numpy as jnp

LARGEST_HEAD = 128


def fits(q: jax.Array, k: jax.Array) -> bool:
  """Whether cuDNN has a kernel: 16 bits a number, even lengths, heads of 8, 16, ... 128 channels.

  So not for any float32 computation, the 77 tokens of a text (jax refuses to differentiate at odd
  lengths), nor heads of 160 channels (SD1.5 below 32x32) or 512 (autoencoders). Newer chips than
  the first that have the kernel (Ampere) take wider heads, but a program under a rule that asks the
  chip could not be compiled elsewhere.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.

  Returns:
    True where `attention` can be called, and differentiated.
  """
  channels = q.shape[3]
  even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
  narrow = q.dtype in (jnp.bfloat16, jnp.float16)
  return narrow and even and channels % 8 == 0 and channels <= LARGEST_HEAD


def attention(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, scale: float) -> jax.Array:
  """As `kernels.attention`, for arrays that fit; jax partitions it over a mesh by itself."""
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, scale=scale, implementation="cudnn"
  )
