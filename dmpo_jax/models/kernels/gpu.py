"""Attention for NVIDIA GPUs: cuDNN's flash attention, through jax.nn."""

import jax
import jax.numpy as jnp

LARGEST_HEAD = 128

# The least length at which an odd number of queries or keys is padded to an even one. The 77 tokens
# of a text encoder, whose attention is causal and cheap, are not.
PADDED_FROM = 256


def fits(q: jax.Array, k: jax.Array) -> bool:
  """Whether cuDNN has a kernel: 16-bit dtype, heads of 8, 16, ... 128 channels, even lengths.

  This excludes float32, the 77 tokens of a text (jax cannot differentiate at odd lengths), and
  heads of 160 channels (SD1.5 below 32x32) or 512 (autoencoders). Odd lengths from `PADDED_FROM`
  on, such as those of an image and its text together, are padded. Chips newer than Ampere support
  wider heads, but a rule that depends on the chip would prevent compilation on another machine.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.

  Returns:
    True where `attention` can be called and differentiated.
  """
  channels = q.shape[3]
  even = all(n % 2 == 0 or n >= PADDED_FROM for n in (q.shape[1], k.shape[1]))
  narrow = q.dtype in (jnp.bfloat16, jnp.float16)
  return narrow and even and channels % 8 == 0 and channels <= LARGEST_HEAD


def attention(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, scale: float) -> jax.Array:
  """`kernels.attention` for arrays that fit; jax partitions it over a mesh by itself."""
  (batch, length), keys = q.shape[:2], k.shape[1]
  q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
  lengths = {}
  if keys % 2:  # the padded key is masked; the results of a padded query are cut off
    lengths = {
      "query_seq_lengths": jnp.full(batch, q.shape[1], jnp.int32),
      "key_value_seq_lengths": jnp.full(batch, keys, jnp.int32),
    }
  out = jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, scale=scale, implementation="cudnn", **lengths
  )
  return out[:, :length]
