"""Pure functions of ImageReward's network."""

import jax
import jax.numpy as jnp

from dmpo_jax.models.blip.model import check_inputs
from dmpo_jax.models.functional import Functional, Model
from dmpo_jax.models.trees import Tree


def functions(network: Functional) -> Model:
  """`apply` and `init` of ImageReward."""

  def apply(
    params: Tree,
    images: jax.Array,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
  ) -> jax.Array:
    """Rewards of images for prompts.

    Args:
      params: Parameters of the network.
      images: `[B, S, S, 3]`, normalised.
      input_ids: Integers `[B, L]`; the first token is read out.
      attention_mask: Integers `[B, L]`, 0 where a token is padding.
      dtype: Dtype of the computation up to the head.

    Returns:
      float32 `[B]`.
    """
    inputs = (images, input_ids, attention_mask)
    check_inputs(network.config, *inputs)
    return network.run(lambda reward, inputs: reward(*inputs, dtype), params, inputs)

  return Model(apply, network.init)
