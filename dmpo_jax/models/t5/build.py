"""Pure functions of T5's encoder."""

import jax
import jax.numpy as jnp

from dmpo_jax.models.functional import Functional, Model
from dmpo_jax.models.t5.model import check_inputs
from dmpo_jax.models.trees import Tree


def functions(network: Functional) -> Model:
  """`apply` and `init` of T5's encoder."""

  def apply(
    params: Tree, input_ids: jax.Array, *, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> jax.Array:
    """Encodes token ids.

    Args:
      params: Parameters of the encoder.
      input_ids: Integers `[B, L]`. Padding is not masked: it is a token like others.
      dtype: Dtype of the result and of the computation; for float16 the computation is in float32,
        because activations of the large encoders exceed float16.

    Returns:
      `[B, L, C]`, after the last norm.
    """
    check_inputs(input_ids)
    compute = jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype
    run = network.run(lambda encoder, ids: encoder(ids, compute), params, input_ids)
    return run.astype(dtype)

  return Model(apply, network.init)
