"""CLIP's image encoder, with transformers' names and arithmetic."""

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import kernels
from dmpo_jax.models.clip.encoder import Encoder
from dmpo_jax.models.clip.model_config import CLIPVisionConfig
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.layers import Embedding, LayerNorm, parameter, weight


class PatchEmbedding(nnx.Module):
  """Linear map of patches without bias: `[B, H, W, 3]` to `[B, H W / patch^2, D]`.

  As in torch's convolution of that stride, rows and columns beyond the last whole patch are left
  out.
  """

  def __init__(self, patch: int, width: int, bias: bool = False, *, compute: Compute):
    self.compute, self.patch = compute, patch
    self.kernel = parameter(patch, patch, 3, width)
    self.bias = parameter(width) if bias else None

  def __call__(self, x: jax.Array) -> jax.Array:
    p = self.patch
    rows, columns = x.shape[1] // p, x.shape[2] // p
    x = x[:, : rows * p, : columns * p].reshape(-1, rows, p, columns, p, 3)
    x = x.swapaxes(2, 3).reshape(-1, rows * columns, p * p * 3)  # [B, N, patch^2 3]
    kernel = weight(self.kernel, self.compute, x.dtype).reshape(p * p * 3, -1)
    bias = None if self.bias is None else weight(self.bias, self.compute, x.dtype)
    return kernels.linear(x, kernel, bias, compute=self.compute)


class Embeddings(nnx.Module):
  """Patches behind the class embedding, plus positions: `[B, H, W, 3]` to `[B, 1 + N, D]`."""

  def __init__(self, config: CLIPVisionConfig, compute: Compute):
    self.compute = compute
    width = config.hidden_size
    self.class_embedding = parameter(width)
    self.patch_embedding = PatchEmbedding(config.patch_size, width, compute=compute)
    positions = (config.image_size // config.patch_size) ** 2 + 1
    self.position_embedding = Embedding(positions, width, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    patches = self.patch_embedding(x)
    first = weight(self.class_embedding, self.compute, x.dtype)
    first = jnp.broadcast_to(first[None, None], (x.shape[0], 1, patches.shape[-1]))
    positions = self.position_embedding.table().astype(x.dtype)
    return jnp.concatenate([first, patches], axis=1) + positions[None]


class VisionTransformer(nnx.Module):
  """Embeddings, LayerNorm, encoder, and LayerNorm of the first row: `[B, H, W, 3]` to `[B, D]`."""

  def __init__(self, config: CLIPVisionConfig, compute: Compute):
    norm = (config.hidden_size, config.layer_norm_eps)
    self.embeddings = Embeddings(config, compute)
    self.pre_layrnorm = LayerNorm(*norm, compute=compute)  # transformers spells it so
    self.encoder = Encoder(config, compute, causal=False)
    self.post_layernorm = LayerNorm(*norm, compute=compute)

  def __call__(self, x: jax.Array) -> jax.Array:
    x, _ = self.encoder(self.pre_layrnorm(self.embeddings(x)))
    return self.post_layernorm(x[:, 0])


def check_images(size: int, images: jax.Array) -> None:
  """Raises InputError unless images are floats `[B, S, S, 3]` of the network's size S."""
  expected = (size, size, 3)
  if (
    images.ndim != 4
    or images.shape[1:] != expected
    or not jnp.issubdtype(images.dtype, jnp.floating)
  ):
    raise InputError(
      f"images must be floats [B, {size}, {size}, 3], normalised, got {images.dtype} "
      f"{list(images.shape)}; preprocess them to the network's image_size"
    )
