"""The text-conditional UNet, UNet2DConditionModel, with diffusers' names and arithmetic."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import remat
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.embeddings import TimestepEmbedding, sinusoids
from dmpo_jax.models.layers import Conv, GroupNorm
from dmpo_jax.models.unet.attention import TransformerOptions
from dmpo_jax.models.unet.blocks import BlockOptions, DownBlock, MidBlock, UpBlock
from dmpo_jax.models.unet.config import TIME_IDS, Level, UNetConfig


class UNet2DConditionModel(nnx.Module):
  """Predicts noise, velocity or image from a noisy image, its timestep and a text embedding."""

  def __init__(self, config: UNetConfig, compute: Compute):
    self.config, self.compute = config, compute
    finest, coarsest = config.levels[0], config.levels[-1]
    time = config.time_embedding_dim

    def options(level: Level, depths: Sequence[int], resample: bool) -> BlockOptions:
      def transformer(depth: int) -> TransformerOptions:
        return TransformerOptions(
          heads=level.heads,
          layers=depth,
          context=config.cross_attention_dim,
          groups=config.norm_num_groups,
          linear_projection=config.use_linear_projection,
          compute=compute,
        )

      return BlockOptions(
        outputs=level.width,
        time=time,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        resample=resample,
        compute=compute,
        attention=tuple(map(transformer, depths)),
      )

    self.conv_in = Conv(config.in_channels, finest.width, config.conv_in_kernel, compute=compute)
    self.time_embedding = TimestepEmbedding(finest.width, time, compute=compute)
    added = config.text_time
    self.add_embedding = (
      None
      if added is None
      else TimestepEmbedding(added.text + TIME_IDS * added.sinusoids, time, compute=compute)
    )

    down, skips, width = [], [finest.width], finest.width
    for level in config.levels:
      resample = level is not coarsest
      down.append(DownBlock(width, level.layers, options(level, level.down, resample)))
      width = level.width
      skips += [width] * (level.layers + resample)
    self.down_blocks = nnx.List(down)

    depths = (config.middle,) if config.middle else ()
    self.mid_block = None if config.middle is None else MidBlock(options(coarsest, depths, False))

    up = []
    for level in reversed(config.levels):
      inputs = [skips.pop() for _ in range(level.layers + 1)]
      up.append(UpBlock(width, inputs, options(level, level.up, level is not finest)))
      width = level.width
    self.up_blocks = nnx.List(up)

    self.conv_norm_out = GroupNorm(
      finest.width, config.norm_num_groups, config.norm_eps, compute=compute
    )
    self.conv_out = Conv(finest.width, config.out_channels, config.conv_out_kernel, compute=compute)

  def embed(
    self,
    timesteps: jax.Array,
    text_embeds: jax.Array | None,
    time_ids: jax.Array | None,
    dtype: jnp.dtype,
  ) -> jax.Array:
    """Embedding `[B, T]` of the timestep and, for SDXL, of pooled text and micro-conditioning."""
    waves = partial(sinusoids, flip=self.config.flip_sin_to_cos, shift=self.config.freq_shift)
    embedding = self.time_embedding(waves(timesteps, self.config.levels[0].width).astype(dtype))
    if self.add_embedding is None:
      return embedding
    numbers = waves(time_ids.reshape(-1), self.config.text_time.sinusoids)  # [B * 6, S]
    added = [text_embeds.astype(dtype), numbers.reshape(len(time_ids), -1).astype(dtype)]
    return embedding + self.add_embedding(jnp.concatenate(added, axis=-1))

  def __call__(
    self,
    sample: jax.Array,
    timesteps: jax.Array,
    context: jax.Array,
    text_embeds: jax.Array | None = None,
    time_ids: jax.Array | None = None,
    dtype: jnp.dtype = jnp.float32,
  ) -> jax.Array:
    """The prediction for each noisy image.

    Args:
      sample: `[B, H, W, C_in]`.
      timesteps: `[B]`, integers or float32.
      context: `[B, L, D]`, the text embedding.
      text_embeds: `[B, P]`, the pooled text embedding, if the config has text_time.
      time_ids: `[B, 6]`, integers or float32, if the config has text_time.
      dtype: Dtype of the computation and of the result.

    Returns:
      `[B, H, W, C_out]`.
    """
    sample, context = (x.astype(dtype) for x in (sample, context))
    if self.config.center_input_sample:
      sample = 2 * sample - 1
    # Every residual layer reads the activated embedding, so it is activated once.
    time = jax.nn.silu(self.embed(timesteps, text_embeds, time_ids, dtype))

    checkpoint_block = partial(remat.checkpoint_block, policy=self.compute.remat)
    x = checkpoint_block(self.conv_in, sample)
    skips = [x]
    for block in self.down_blocks:
      x, outputs = block(x, time, context)
      skips += outputs
    if self.mid_block is not None:
      x = self.mid_block(x, time, context)
    for block in self.up_blocks:
      layers = len(block.resnets)
      skips, used = skips[:-layers], skips[-layers:]
      size = skips[-1].shape[1:3] if skips else x.shape[1:3]
      x = block(x, used[::-1], time, context, size)
    return checkpoint_block(lambda x: self.conv_out(jax.nn.silu(self.conv_norm_out(x))), x)


def check_inputs(
  config: UNetConfig,
  sample: jax.Array,
  timesteps: jax.Array,
  context: jax.Array,
  text_embeds: jax.Array | None,
  time_ids: jax.Array | None,
) -> None:
  """Raises InputError unless the shapes fit the network and each other."""
  if sample.ndim != 4 or sample.shape[-1] != config.in_channels:
    raise InputError(
      f"sample must be [B, H, W, {config.in_channels}] (channels last), got {list(sample.shape)}"
    )
  batch = sample.shape[0]
  if timesteps.shape != (batch,):
    raise InputError(f"timesteps must be [{batch}], one per image, got {list(timesteps.shape)}")
  width = config.cross_attention_dim
  if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != width:
    raise InputError(
      f"encoder_hidden_states must be [{batch}, L, {width}], got {list(context.shape)}"
    )
  added = config.text_time
  for name, array, columns in (
    ("text_embeds", text_embeds, added and added.text),
    ("time_ids", time_ids, added and TIME_IDS),
  ):
    shape = None if array is None else list(array.shape)
    if shape is not None and added is None:
      raise InputError(
        f"{name} {shape} cannot be used: the network has addition_embed_type = null; leave it out"
      )
    if added is not None and shape != [batch, columns]:
      raise InputError(
        f"{name} must be [{batch}, {columns}] for a network with addition_embed_type = "
        f"'text_time', got {shape}"
      )
  for name, array in (("timesteps", timesteps), ("time_ids", time_ids)):
    if array is not None and array.dtype in (jnp.bfloat16, jnp.float16):
      raise InputError(
        f"{name} must be integers or float32, got {array.dtype}, which rounds numbers of this "
        "size; set the compute dtype by dtype="
      )
