"""Pure functions of CLIP's text encoders."""

import jax
import jax.numpy as jnp

from dmpo_jax.models.clip.text import TextOutput, check_inputs
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
