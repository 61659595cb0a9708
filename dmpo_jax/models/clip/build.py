"""Pure functions of CLIP's text encoders, and of models with both encoders."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax.models.clip.text import TextOutput, check_inputs
from dmpo_jax.models.clip.vision import check_images
from dmpo_jax.models.functional import Functional, Model
from dmpo_jax.models.trees import Tree


def functions(network: Functional) -> Model:
  """`apply` and `init` of a text encoder."""

  def apply(
    params: Tree, input_ids: jax.Array, *, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> TextOutput:
    """Encodes token ids.

    Args:
      params: Parameters of the text encoder.
      input_ids: Integers `[B, L]`.
      dtype: Dtype of the computation and of the result.

    Returns:
      A `TextOutput`.
    """
    check_inputs(network.config, input_ids)
    return network.run(lambda encoder, ids: encoder(ids, dtype), params, input_ids)

  return Model(apply, network.init)


class CLIP(NamedTuple):
  """A CLIPModel as pure functions; embeddings are not normalised.

  Attributes:
    encode_image: `encode_image(params, images, *, dtype=float32)` returns `[B, P]`. Images are
      `[B, S, S, 3]`, preprocessed to the image_size S of the config.
    encode_text: `encode_text(params, input_ids, *, dtype=float32)` returns `[B, P]` of integers
      `[B, L]`.
    init: `init(key)` returns new parameters, a tree of float32 numpy arrays. `logit_scale` is the
      logarithm of the factor of similarities.
  """

  encode_image: Callable[..., jax.Array]
  encode_text: Callable[..., jax.Array]
  init: Callable[[jax.Array], Tree]


def clip_functions(network: Functional) -> CLIP:
  """The functions of a CLIPModel."""

  def encode_image(
    params: Tree, images: jax.Array, *, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> jax.Array:
    check_images(network.config.vision.image_size, images)
    return network.run(lambda clip, images: clip.image(images, dtype), params, images)

  def encode_text(
    params: Tree, input_ids: jax.Array, *, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> jax.Array:
    check_inputs(network.config.text, input_ids)
    return network.run(lambda clip, ids: clip.text(ids, dtype), params, input_ids)

  return CLIP(encode_image, encode_text, network.init)
