"""The multimodal diffusion transformer, SD3Transformer2DModel, with diffusers' names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.embeddings import TimestepEmbedding, sinusoids
from dmpo_jax.models.layers import Conv, Linear
from dmpo_jax.models.mmdit import positions
from dmpo_jax.models.mmdit.blocks import ContinuousNorm, JointTransformerBlock
from dmpo_jax.models.mmdit.config import MMDiTConfig

TIME_CHANNELS = 256  # of the sinusoids of the timestep


class PatchEmbed(nnx.Module):
  """Patches with their positions: `[B, H, W, I]` to `[B, H W / patch_size^2, C]`."""

  def __init__(self, config: MMDiTConfig, compute: Compute):
    size = config.patch_size
    self.config, self.compute = config, compute
    self.proj = Conv(config.in_channels, config.width, size, size, (0, 0), compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.proj(x)
    b, h, w, c = x.shape
    waves = positions.side(self.config.positions, self.config.pos_embed_max_size, c)
    columns, rows = positions.middle(waves, w), positions.middle(waves, h)
    table = np.concatenate(
      [np.broadcast_to(columns[None], (h, *columns.shape)), rows[:, None].repeat(w, 1)], axis=-1
    )  # [h, w, C]
    return (x + table[None]).astype(x.dtype).reshape(b, h * w, c)


class TimeTextEmbed(nnx.Module):
  """The conditioning `[B, C]` of timesteps `[B]` and pooled text `[B, P]`, in the text's dtype."""

  def __init__(self, config: MMDiTConfig, compute: Compute):
    self.timestep_embedder = TimestepEmbedding(TIME_CHANNELS, config.width, compute=compute)
    self.text_embedder = TimestepEmbedding(
      config.pooled_projection_dim, config.width, compute=compute
    )

  def __call__(self, timesteps: jax.Array, pooled: jax.Array) -> jax.Array:
    waves = sinusoids(timesteps, TIME_CHANNELS, flip=True, shift=0).astype(pooled.dtype)
    return self.timestep_embedder(waves) + self.text_embedder(pooled)


class SD3Transformer2DModel(nnx.Module):
  """Predicts the velocity of a noisy image from its timestep and two embeddings of the text."""

  def __init__(self, config: MMDiTConfig, compute: Compute):
    self.config, self.compute = config, compute
    width, last = config.width, config.num_layers - 1
    self.pos_embed = PatchEmbed(config, compute)
    self.time_text_embed = TimeTextEmbed(config, compute)
    self.context_embedder = Linear(config.joint_attention_dim, width, compute=compute)
    self.transformer_blocks = nnx.List(
      [
        JointTransformerBlock(
          width,
          config.heads,
          config.qk_norm,
          dual=layer in config.dual_attention_layers,
          text_output=layer < last,
          compute=compute,
        )
        for layer in range(config.num_layers)
      ]
    )
    self.norm_out = ContinuousNorm(width, compute=compute)
    self.proj_out = Linear(width, config.patch_size**2 * config.out_channels, compute=compute)

  def __call__(
    self,
    sample: jax.Array,
    timesteps: jax.Array,
    context: jax.Array,
    pooled: jax.Array,
    dtype: jnp.dtype = jnp.float32,
  ) -> jax.Array:
    """The prediction for each noisy image.

    Args:
      sample: `[B, H, W, C_in]`.
      timesteps: `[B]`, integers or float32, from 0 to 1000.
      context: `[B, M, D]`, the text embedding.
      pooled: `[B, P]`, the pooled text embedding.
      dtype: Dtype of the computation and of the result.

    Returns:
      `[B, H, W, C_out]`.
    """
    sample, context, pooled = (x.astype(dtype) for x in (sample, context, pooled))
    # Every norm reads the activated conditioning, so it is activated once.
    conditioning = jax.nn.silu(self.time_text_embed(timesteps, pooled))
    block = partial(remat.checkpoint_block, policy=self.compute.remat)
    x, text = block(self.pos_embed, sample), block(self.context_embedder, context)
    for layer in self.transformer_blocks:
      x, text = block(layer, x, text, conditioning)
    x = block(lambda x, c: self.proj_out(self.norm_out(x, c)), x, conditioning)
    b, height, width, _ = sample.shape
    size = self.config.patch_size
    x = x.reshape(b, height // size, width // size, size, size, -1)  # [B, h, w, p, q, C_out]
    return x.swapaxes(2, 3).reshape(b, height, width, -1)


def check_inputs(
  config: MMDiTConfig,
  sample: jax.Array,
  timesteps: jax.Array,
  context: jax.Array,
  pooled: jax.Array,
) -> None:
  """Raises InputError unless the shapes fit the network and each other."""
  size, most = config.patch_size, config.pos_embed_max_size
  if sample.ndim != 4 or sample.shape[-1] != config.in_channels:
    raise InputError(
      f"sample must be [B, H, W, {config.in_channels}] (channels last), got {list(sample.shape)}"
    )
  batch, *sides = sample.shape[:3]
  if any(side % size or not 0 < side <= size * most for side in sides):
    raise InputError(
      f"sample is {sides[0]}x{sides[1]}; height and width must be multiples of {size} (patch_size) "
      f"and at most {size * most} (patch_size * pos_embed_max_size)"
    )
  if timesteps.shape != (batch,):
    raise InputError(f"timesteps must be [{batch}], one per image, got {list(timesteps.shape)}")
  if timesteps.dtype in (jnp.bfloat16, jnp.float16):
    raise InputError(
      f"timesteps must be integers or float32, got {timesteps.dtype}, which rounds numbers of this "
      "size; set the compute dtype by dtype="
    )
  width = config.joint_attention_dim
  if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != width:
    raise InputError(
      f"encoder_hidden_states must be [{batch}, L, {width}], got {list(context.shape)}"
    )
  if pooled.shape != (batch, config.pooled_projection_dim):
    raise InputError(
      f"pooled_projections must be [{batch}, {config.pooled_projection_dim}], "
      f"got {list(pooled.shape)}"
    )
