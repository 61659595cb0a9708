"""A small convolutional network from an image, its caption and its noise level to one number."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dmpo_jax.common.ranges import Integers, Interval, check_integer, check_number
from dmpo_jax.errors import InputError, short
from dmpo_jax.models import trees
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.embeddings import TimestepEmbedding, sinusoids
from dmpo_jax.models.functional import Model, functional
from dmpo_jax.models.layers import Conv, Linear
from dmpo_jax.models.unet.blocks import BlockOptions, Downsample2D, ResnetBlock2D

LEVEL_CHANNELS, EPS = 32, 1e-5
SIZES = Integers(1, 2**16)


@dataclasses.dataclass(frozen=True)
class PotentialConfig:
  """The network's config.

  Attributes:
    channels: Channels of the images, in the units of the denoiser.
    text: Width of the pooled caption.
    widths: Channels of each level; height and width halve between two levels.
    groups: Groups of the GroupNorms; they divide every width.
    bound: Bound of the result.
  """

  channels: int
  text: int
  widths: tuple[int, ...] = (32, 64)
  groups: int = 8
  bound: float = 8.0


def read(fields: Mapping[str, Any]) -> PotentialConfig:
  """The config of a dict, such as JSON holds it.

  Raises:
    InputError: A field is unknown, missing or out of range.
  """
  known = {field.name for field in dataclasses.fields(PotentialConfig)}
  if set(fields) != known:
    differing = sorted(set(fields) ^ known)
    raise InputError(f"a potential's config has the fields {sorted(known)}; differing: {differing}")
  widths = fields["widths"]
  if not isinstance(widths, list | tuple) or not widths:
    raise InputError(f"widths of a potential are a list of channels, got {short(widths)}")
  config = PotentialConfig(
    channels=check_integer("channels", fields["channels"], SIZES),
    text=check_integer("text", fields["text"], SIZES),
    widths=tuple(check_integer("widths", width, SIZES) for width in widths),
    groups=check_integer("groups", fields["groups"], SIZES),
    bound=check_number("bound", fields["bound"], Interval(0, 1e3)),
  )
  if any(width % config.groups for width in config.widths):
    raise InputError(f"widths {config.widths} must be multiples of groups {config.groups}")
  return config


class Potential(nnx.Module):
  """bound · tanh(y/bound), with y a number of an image, its caption and its noise level.

  Features are averaged over space without a norm before it, which would take the mean level of an
  image away.
  """

  def __init__(self, config: PotentialConfig, compute: Compute):
    self.config, self.compute = config, compute
    first, last = config.widths[0], config.widths[-1]
    time = 4 * first
    self.conv_in = Conv(config.channels, first, compute=compute)
    self.level_embedding = TimestepEmbedding(LEVEL_CHANNELS, time, compute=compute)
    self.text_embedding = TimestepEmbedding(config.text, time, compute=compute)
    blocks, downsamplers, inputs = [], [], first
    for width in config.widths:
      options = BlockOptions(
        outputs=width, time=time, groups=config.groups, eps=EPS, resample=False, compute=compute
      )
      blocks.append(ResnetBlock2D(inputs, options))
      downsamplers.append(Downsample2D(width, compute=compute))
      inputs = width
    self.blocks = nnx.List(blocks)
    self.downsamplers = nnx.List(downsamplers[:-1])
    self.hidden = Linear(last, last, compute=compute)
    self.out = Linear(last, 1, compute=compute)

  def __call__(self, x: jax.Array, text: jax.Array, level: jax.Array) -> jax.Array:
    waves = sinusoids(1000 * level, LEVEL_CHANNELS, flip=False, shift=0)
    embedding = jax.nn.silu(self.level_embedding(waves) + self.text_embedding(text))
    x = self.conv_in(x)
    for i, block in enumerate(self.blocks):
      x = block(x, embedding)
      if i < len(self.downsamplers):
        x = self.downsamplers[i](x)
    x = jnp.mean(jax.nn.silu(x), axis=(1, 2))  # [B, C]
    y = self.out(jax.nn.silu(self.hidden(x)))[:, 0]
    return self.config.bound * jnp.tanh(y / self.config.bound)


def build(config: PotentialConfig, *, compute: Compute = Compute()) -> Model:
  """`apply` and `init` of the network.

  `apply(params, x [B, H, W, channels], text [B, text], level [B])` returns float32 `[B]`; the level
  is 0 for clean images and 1 for noise. New parameters make it 0 everywhere.
  """
  network = functional(Potential(config, compute))

  def apply(params: trees.Tree, x: jax.Array, text: jax.Array, level: jax.Array) -> jax.Array:
    x, text, level = (jnp.asarray(v, jnp.float32) for v in (x, text, level))
    return network.run(lambda module, inputs: module(*inputs), params, (x, text, level))

  def init(key: jax.Array) -> trees.Tree:
    params = network.init(key)
    return {**params, "out": jax.tree.map(np.zeros_like, params["out"])}

  return Model(apply, init)


def abstract(config: PotentialConfig) -> trees.Tree:
  """Shapes and dtypes of the parameters."""
  return functional(Potential(config, Compute())).shapes
