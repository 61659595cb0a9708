"""ImageReward: BLIP's image encoder, BERT that attends to it, and a head; with BLIP's names.

Source: salesforce/BLIP (ViT and MED with mode "multimodal"), THUDM/ImageReward.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import kernels
from dmpo_jax.models.blip.config import ImageRewardConfig
from dmpo_jax.models.clip.vision import PatchEmbedding, check_images
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Embedding, Empty, LayerNorm, Linear, parameter, weight

VISION_EPS, TEXT_EPS = 1e-6, 1e-12
# Widths of the head, whose layers have no activation.
HEAD = (1024, 128, 64, 16, 1)
MASKED = -1e4


class Attention(nnx.Module):
  """Self-attention of the image encoder: `[B, L, D]` to `[B, L, D]`."""

  def __init__(self, width: int, heads: int, compute: Compute):
    self.compute, self.heads = compute, heads
    self.qkv = Linear(width, 3 * width, compute=compute)
    self.proj = Linear(width, width, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # [B, L, 3, N, D/N]
    q, k, v = (qkv[:, :, i] for i in range(3))
    return self.proj(kernels.attention(q, k, v, compute=self.compute).reshape(x.shape))


class MLP(nnx.Module):
  """Two layers with GELU: `[B, L, D]` to `[B, L, D]`."""

  def __init__(self, width: int, inner: int, compute: Compute):
    self.fc1 = Linear(width, inner, compute=compute)
    self.fc2 = Linear(inner, width, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc2(kernels.gelu(self.fc1(x)))


class Block(nnx.Module):
  """Attention and MLP, each after a LayerNorm and with a residual connection."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    width = config.vision_width
    self.norm1 = LayerNorm(width, VISION_EPS, compute=compute)
    self.attn = Attention(width, config.vision_heads, compute)
    self.norm2 = LayerNorm(width, VISION_EPS, compute=compute)
    self.mlp = MLP(width, config.vision_mlp, compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class Patches(nnx.Module):
  """The linear map of patches, under the name that BLIP gives it."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    self.proj = PatchEmbedding(config.patch_size, config.vision_width, True, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.proj(x)


class VisionTransformer(nnx.Module):
  """The image encoder: `[B, S, S, 3]` to `[B, 1 + N, D]`."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    self.compute = compute
    width = config.vision_width
    self.cls_token = parameter(1, 1, width)
    self.pos_embed = parameter(1, (config.image_size // config.patch_size) ** 2 + 1, width)
    self.patch_embed = Patches(config, compute)
    self.blocks = nnx.List([Block(config, compute) for _ in range(config.vision_layers)])
    self.norm = LayerNorm(width, VISION_EPS, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    patches = self.patch_embed(x)
    first, positions = (weight(p, self.compute, x.dtype) for p in (self.cls_token, self.pos_embed))
    first = jnp.broadcast_to(first, (x.shape[0], 1, patches.shape[-1]))
    x = jnp.concatenate([first, patches], axis=1) + positions
    for block in self.blocks:
      x = block(x)
    return self.norm(x)


class TextEmbeddings(nnx.Module):
  """Word plus position embedding and a LayerNorm: int `[B, L]` to `[B, L, D]`."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    embedding = partial(Embedding, channels=config.text_width, compute=compute)
    self.word_embeddings = embedding(config.vocab_size)
    self.position_embeddings = embedding(config.max_positions)
    self.LayerNorm = LayerNorm(config.text_width, TEXT_EPS, compute=compute)

  def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    positions = self.position_embeddings.table()[: ids.shape[1]]
    return self.LayerNorm((self.word_embeddings(ids) + positions[None]).astype(dtype))


class Projections(nnx.Module):
  """Attention of `[B, L, D]` to a source `[B, M, E]` under a bias `[B, 1, 1, M]` or None."""

  def __init__(self, width: int, source: int, heads: int, compute: Compute):
    self.compute, self.heads = compute, heads
    self.query = Linear(width, width, compute=compute)
    self.key = Linear(source, width, compute=compute)
    self.value = Linear(source, width, compute=compute)

  def __call__(self, x: jax.Array, source: jax.Array, bias: jax.Array | None) -> jax.Array:
    q = self.query(x).reshape(*x.shape[:2], self.heads, -1)
    k, v = (f(source).reshape(*source.shape[:2], self.heads, -1) for f in (self.key, self.value))
    return kernels.attention(q, k, v, bias=bias, compute=self.compute).reshape(x.shape)


class Output(nnx.Module):
  """A linear layer, a residual connection and then a LayerNorm."""

  def __init__(self, inputs: int, width: int, compute: Compute):
    self.dense = Linear(inputs, width, compute=compute)
    self.LayerNorm = LayerNorm(width, TEXT_EPS, compute=compute)

  def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
    return self.LayerNorm(self.dense(x) + residual)


class TextAttention(nnx.Module):
  """Attention with its output layer; the source of self-attention is the text itself."""

  def __init__(self, config: ImageRewardConfig, source: int, compute: Compute):
    width = config.text_width
    self.self = Projections(width, source, config.text_heads, compute)
    self.output = Output(width, width, compute)

  def __call__(self, x: jax.Array, source: jax.Array, bias: jax.Array | None) -> jax.Array:
    return self.output(self.self(x, source, bias), x)


class Intermediate(nnx.Module):
  """A linear layer and GELU."""

  def __init__(self, width: int, inner: int, compute: Compute):
    self.dense = Linear(width, inner, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    return kernels.gelu(self.dense(x))


class TextLayer(nnx.Module):
  """Self-attention, cross-attention to the image and MLP, each with a LayerNorm at its end."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    width = config.text_width
    self.attention = TextAttention(config, width, compute)
    self.crossattention = TextAttention(config, config.vision_width, compute)
    self.intermediate = Intermediate(width, config.text_mlp, compute)
    self.output = Output(config.text_mlp, width, compute)

  def __call__(self, x: jax.Array, image: jax.Array, bias: jax.Array) -> jax.Array:
    x = self.attention(x, x, bias)
    x = self.crossattention(x, image, None)
    return self.output(self.intermediate(x), x)


class TextLayers(nnx.Module):
  """The stack of layers, under the name that BERT gives it."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    self.layer = nnx.List([TextLayer(config, compute) for _ in range(config.text_layers)])

  def __call__(self, x: jax.Array, image: jax.Array, bias: jax.Array) -> jax.Array:
    for layer in self.layer:
      x = layer(x, image, bias)
    return x


class TextEncoder(nnx.Module):
  """BERT with cross-attention: states `[B, L, D]` of ids and mask `[B, L]` and an image."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    self.embeddings = TextEmbeddings(config, compute)
    self.encoder = TextLayers(config, compute)

  def __call__(self, ids: jax.Array, mask: jax.Array, image: jax.Array) -> jax.Array:
    bias = jnp.where(mask[:, None, None, :] != 0, 0.0, MASKED).astype(jnp.float32)
    return self.encoder(self.embeddings(ids, image.dtype), image, bias)


class Head(nnx.Module):
  """The head `[B, D]` to `[B]`, in float32."""

  def __init__(self, width: int, compute: Compute):
    sizes, layers = (width, *HEAD), []
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], HEAD, strict=True)):
      layers.append(Linear(inputs, outputs, compute=compute))
      if i < 3:  # dropout, in training
        layers.append(Empty())
    self.layers = nnx.List(layers)

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in self.layers:
      x = x if isinstance(layer, Empty) else layer(x)
    return x[:, 0]


class ImageReward(nnx.Module):
  """Reward of images and prompts, before its mean and deviation are taken out."""

  def __init__(self, config: ImageRewardConfig, compute: Compute):
    self.config, self.compute = config, compute
    self.visual_encoder = VisionTransformer(config, compute)
    self.text_encoder = TextEncoder(config, compute)
    self.mlp = Head(config.text_width, compute)

  def __call__(
    self, images: jax.Array, ids: jax.Array, mask: jax.Array, dtype: jnp.dtype
  ) -> jax.Array:
    states = self.text_encoder(ids, mask, self.visual_encoder(images.astype(dtype)))
    return self.mlp(states[:, 0].astype(jnp.float32))


def check_inputs(
  config: ImageRewardConfig, images: jax.Array, ids: jax.Array, mask: jax.Array
) -> None:
  """Raises InputError unless images, ids and mask have the network's shapes and dtypes."""
  check_images(config.image_size, images)
  integers = ids.ndim == 2 and jnp.issubdtype(ids.dtype, jnp.integer)
  if not integers or mask.shape != ids.shape or ids.shape[1] > config.max_positions:
    raise InputError(
      f"input_ids and mask must be integers [B, L] with L <= {config.max_positions}, got "
      f"{ids.dtype} {list(ids.shape)} and {list(mask.shape)}"
    )
