"""Attention for TPUs: Pallas splash attention, whose memory grows with the length, not its square.

The kernel keeps scores of one tile at a time; forward and gradient are custom calls that the
compiler can neither fuse nor partition.
"""

import functools
import math

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from dmpo_jax.models import remat

# Positions per tile: the largest of these that divides the length. Larger ones do not fit a core's
# memory on every TPU, nor does the largest of these with the widest heads in float32.
TILES = (512, 256, 128)
WIDE_TILES = (256, 128)
WIDE_HEAD, LARGEST_HEAD = 256, 512


def fits(q: jax.Array, k: jax.Array) -> bool:
  """Whether shapes allow the kernel: lengths divisible by 128, channels of a head by 8, to 512.

  The 77 tokens of a text encoder do not, nor do the coarsest resolutions of a UNet; XLA's own
  attention is no loss there. Every head of Stable Diffusion's UNets (40, 64, 80, 160 channels) and
  autoencoders (512) does.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.

  Returns:
    True where `attention` can be called.
  """
  length, keys, channels = q.shape[1], k.shape[1], q.shape[3]
  whole = length % TILES[-1] == 0 and keys % TILES[-1] == 0 and channels % 8 == 0
  return whole and channels <= LARGEST_HEAD


def attention(
  q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = False, *, interpret: bool = False
) -> jax.Array:
  """As `kernels.attention`, for shapes that fit; scores and softmax in float32.

  Under a mesh (jax.set_mesh) each device computes its images: the batch is split over the mesh's
  axes as far as they divide it, whatever its sharding was.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.
    v: `[B, M, N, D]`.
    causal: Whether position i sees positions up to i only.
    interpret: Whether to run the kernel step by step in XLA, on any machine.

  Returns:
    `[B, L, N, D]` in the dtype of q.
  """
  batch, length, heads, channels = q.shape
  tiles = WIDE_TILES if channels > WIDE_HEAD else TILES
  kernel = _kernel(heads, length, k.shape[1], tiles, causal, interpret)

  def attend(q, k, v):
    return jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.auto_axes:
    split = PartitionSpec(_dividing_axes(mesh, batch))
    attend = jax.shard_map(
      attend,
      in_specs=split,
      out_specs=split,
      axis_names=set(mesh.auto_axes),
      check_vma=False,  # a custom call does not say over which axes its result varies
    )
  return attend(q * channels**-0.5, k, v)


def _dividing_axes(mesh: jax.sharding.AbstractMesh, batch: int) -> tuple[str, ...]:
  """The mesh's axes, from the first on, as long as their sizes together divide the batch."""
  axes = mesh.auto_axes
  counts = range(len(axes), -1, -1)
  most = next(n for n in counts if batch % math.prod(mesh.shape[a] for a in axes[:n]) == 0)
  return axes[:most]


# Layers share a few shapes, and the table of tiles takes long to make. It is kept in numpy, which
# no trace and no device owns.
@functools.lru_cache(maxsize=256)
def _kernel(
  heads: int, length: int, keys: int, tiles: tuple[int, ...], causal: bool, interpret: bool
) -> splash_attention.splash_attention_kernel.SplashAttentionKernel:
  rows, columns = (next(t for t in tiles if n % t == 0) for n in (length, keys))
  shape = (length, keys)
  mask = splash_attention.CausalMask(shape) if causal else splash_attention.FullMask(shape)
  sizes = splash_attention.BlockSizes(
    block_q=rows,
    block_kv=columns,
    block_q_dkv=rows,
    block_kv_dkv=columns,
    block_q_dq=rows,
    block_kv_dq=columns,
  )
  with jax.ensure_compile_time_eval():
    kernel = splash_attention.make_splash_mha_single_device(
      splash_attention.MultiHeadMask([mask] * heads),
      block_sizes=sizes,
      residual_checkpoint_name=remat.ATTENTION,
      interpret=interpret,
    )
    return jax.tree.map(np.asarray, kernel)
