"""Attention for TPUs: Pallas splash attention, with memory linear in the length.

The kernel computes the scores of one tile at a time; forward and gradient are custom calls that the
compiler can neither fuse nor partition.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from dmpo_jax.models import fsdp, remat

# The layout in which the projections write queries, keys and values on a TPU: positions are minor,
# so that 40 or 64 channels of a head need no padding to 128.
LAYOUT = dict.fromkeys(("q_layout", "k_layout", "v_layout"), splash_attention.QKVLayout.SEQ_MINOR)

# Positions per tile: the largest of these that divides the length. Larger tiles do not fit a core's
# memory on every TPU; with the widest heads in float32 neither does 512.
TILES = (512, 256, 128)
WIDE_TILES = (256, 128)
# Keys whose gradients fit a core's memory at once, by bytes of a head padded to 128 channels.
KEYS_AT_ONCE = (2048, 1536, 1024, *TILES)
MOST_BYTES = 2048 * 128 * 2
WIDE_HEAD, LARGEST_HEAD = 256, 512


# Queries are padded where the padding is at most this part of them.
MOST_PADDING = 0.15


def fits(q: jax.Array, k: jax.Array, causal: bool = False) -> bool:
  """Whether shapes allow the kernel: lengths that `padding` accepts, heads of 8, 16, ... channels.

  Keys of other lengths, such as the 77 tokens of a text encoder, are padded: XLA would write their
  scores to memory in float32. So are the queries of an image and its text together, by at most
  `MOST_PADDING`. The coarsest resolutions of a UNet do not fit, nor does causal attention over
  other lengths; XLA's attention is as fast there. All heads of Stable Diffusion's networks (40, 64,
  80, 160 channels) and autoencoders (512) fit.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.
    causal: Whether position i attends to positions up to i only.

  Returns:
    True where `attention` can be called.
  """
  length, keys, channels = q.shape[1], k.shape[1], q.shape[3]
  if causal and (length % TILES[-1] or keys % TILES[-1]):
    return False
  return padding(length) is not None and channels % 8 == 0 and channels <= LARGEST_HEAD


def padding(length: int) -> int | None:
  """Positions by which queries are padded; None where the kernel is not used.

  To the largest tile that needs at most `MOST_PADDING`, because small tiles are slow: the 1357
  positions of an image of 512 pixels and its text to 1536, the 4429 of 1024 pixels to 4608.

  Args:
    length: Number of queries.
  """
  if length % TILES[-1] == 0:
    return 0
  candidates = (-length % tile for tile in TILES)
  return next((n for n in candidates if n <= MOST_PADDING * length), None)


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  causal: bool,
  scale: float,
  *,
  interpret: bool = False,
) -> jax.Array:
  """`kernels.attention` for shapes that fit; scores and softmax in float32.

  Under a mesh (jax.set_mesh) each device computes its images: the batch is sharded over the longest
  prefix of the mesh's axes that divides it, whatever its sharding was.

  Args:
    q: `[B, L, N, D]`.
    k: `[B, M, N, D]`.
    v: `[B, M, N, D]`.
    causal: Whether position i attends to positions up to i only.
    scale: Factor of the scores; any other than 1 costs a pass over the queries.
    interpret: Whether to run the kernel in Pallas' interpret mode, on any machine.

  Returns:
    `[B, L, N, D]` in the dtype of q.
  """
  batch, length, heads, channels = q.shape
  padded_bytes = -(-channels // 128) * 128 * q.dtype.itemsize
  tiles = WIDE_TILES if channels > WIDE_HEAD else TILES
  at_once = tuple(n for n in KEYS_AT_ONCE if n * padded_bytes <= MOST_BYTES)
  keys, more = k.shape[1], padding(length)
  # Keys as long as the queries get the same padding, and so the same tiles.
  more_keys = more if keys == length else -keys % TILES[-1]
  q, k, v = _pad(q, more), _pad(k, more_keys), _pad(v, more_keys)
  kernel = _kernel(heads, length + more, keys + more_keys, tiles, at_once, causal, interpret)
  # Positions attend to their own segment; padded keys are another one. The results of padded
  # queries, which belong to the first, are cut off.
  segments = None
  if more_keys:
    real = np.arange(keys + more_keys) < keys
    first = np.ones(length + more, np.int32)
    segments = splash_attention.SegmentIds(first, real.astype(np.int32))

  def attend(q, k, v):
    run = jax.vmap(lambda *each: kernel(*each, segment_ids=segments))
    return run(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.auto_axes:
    spec = PartitionSpec(fsdp.dividing_axes(mesh.shape, mesh.auto_axes, batch))
    attend = jax.shard_map(
      attend,
      in_specs=spec,
      out_specs=spec,
      axis_names=set(mesh.auto_axes),
      check_vma=False,  # a custom call does not say over which axes its result varies
    )
  return attend(q * scale, k, v)[:, :length]


def _pad(x: jax.Array, more: int) -> jax.Array:
  """Zeros at the end of the second axis."""
  return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x


def _tile(tiles: tuple[int, ...], length: int) -> int:
  """The first of the tiles that divides a length."""
  return next(t for t in tiles if length % t == 0)


# Layers share a few shapes, and the table of tiles takes long to compute. It is cached as numpy
# arrays, which belong to no trace and no device.
@functools.lru_cache(maxsize=256)
def _kernel(
  heads: int,
  length: int,
  keys: int,
  tiles: tuple[int, ...],
  at_once: tuple[int, ...],
  causal: bool,
  interpret: bool,
) -> splash_attention.splash_attention_kernel.SplashAttentionKernel:
  rows, columns = (_tile(tiles, n) for n in (length, keys))
  shape = (length, keys)
  mask = splash_attention.CausalMask(shape) if causal else splash_attention.FullMask(shape)
  if tiles == TILES:
    # The fused kernel for all gradients computes the scores once instead of twice, and writes a
    # partial gradient of the queries for each group of keys.
    backward = {"block_kv_dkv": _tile(at_once, keys), "block_kv_dkv_compute": columns}
    backward |= {"use_fused_bwd_kernel": True}
  else:
    backward = {"block_kv_dkv": columns, "block_q_dq": rows, "block_kv_dq": columns}
  sizes = splash_attention.BlockSizes(
    block_q=rows, block_kv=columns, block_q_dkv=rows, **backward, **LAYOUT
  )
  with jax.ensure_compile_time_eval():
    kernel = splash_attention.make_splash_mha_single_device(
      splash_attention.MultiHeadMask([mask] * heads),
      block_sizes=sizes,
      residual_checkpoint_name=remat.ATTENTION,
      interpret=interpret,
    )
    return jax.tree.map(np.asarray, kernel)
