"""Pure functions of an SD3Transformer2DModel, and the table of positions in its file."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax.models import trees
from dmpo_jax.models.functional import Buffer, Functional, Model
from dmpo_jax.models.mmdit import positions
from dmpo_jax.models.mmdit.config import NAME, POSITIONS, MMDiTConfig
from dmpo_jax.models.mmdit.model import check_inputs
from dmpo_jax.models.trees import Tree

LOGGER = logging.getLogger(__name__)

# Initial standard deviation of the kernels of shifts, scales and gates: blocks start near the
# identity.
MODULATION_STD = 0.02


def functions(network: Functional) -> Model:
  """`apply` and `init` of an MMDiT."""

  def apply(
    params: Tree,
    sample: jax.Array,
    timesteps: jax.Array,
    encoder_hidden_states: jax.Array,
    pooled_projections: jax.Array,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
  ) -> jax.Array:
    """Predicts the velocity of each noisy image.

    Args:
      params: Parameters of the network.
      sample: `[B, H, W, C_in]`.
      timesteps: `[B]`, integers or float32 from 0 to 1000: 1000 sigma.
      encoder_hidden_states: `[B, L, D]`, the text embedding.
      pooled_projections: `[B, P]`, the pooled text embedding.
      dtype: Dtype of the computation and of the result.

    Returns:
      `[B, H, W, C_out]`.
    """
    inputs = (sample, timesteps, encoder_hidden_states, pooled_projections)
    check_inputs(network.config, *inputs)
    return network.run(lambda mmdit, inputs: mmdit(*inputs, dtype), params, inputs)

  def init(key: jax.Array) -> Tree:
    """Initial parameters; modulations start near zero."""
    params = trees.flatten(network.init(key))
    for name, kernel in params.items():
      if "norm" in name and name.endswith(".linear.kernel"):
        params[name] = kernel * np.float32(MODULATION_STD * kernel.shape[0] ** 0.5)
    return trees.unflatten(params)

  return Model(apply, init)


def buffers(config: MMDiTConfig) -> dict[str, Buffer]:
  """The table of positions."""
  count, width = config.pos_embed_max_size, config.width

  def recover(stored: np.ndarray) -> Mapping[str, Any]:
    found, expected = positions.recover(stored, config.positions), config.positions
    if found[:2] != expected[:2]:
      LOGGER.warning(
        "%s: the stored table of positions, from %g by steps of %g, is used in place of the one "
        "that the config describes, from %g by steps of %g",
        *(NAME, *found[:2], *expected[:2]),
      )
    return {} if found == expected else {POSITIONS: found._asdict()}

  return {
    "pos_embed.pos_embed": Buffer(
      (1, count * count, width),
      lambda dtype: positions.table(config.positions, count, width, dtype),
      recover,
    )
  }
