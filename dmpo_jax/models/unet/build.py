"""Pure functions of a UNet2DConditionModel."""

import jax
import jax.numpy as jnp

from dmpo_jax.models.functional import Functional, Model
from dmpo_jax.models.trees import Tree
from dmpo_jax.models.unet.model import check_inputs


def functions(network: Functional) -> Model:
  """`apply` and `init` of a UNet."""

  def apply(
    params: Tree,
    sample: jax.Array,
    timesteps: jax.Array,
    encoder_hidden_states: jax.Array,
    *,
    text_embeds: jax.Array | None = None,
    time_ids: jax.Array | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
  ) -> jax.Array:
    """Predicts noise, velocity or image for each noisy image.

    Args:
      params: Parameters of the UNet.
      sample: `[B, H, W, C_in]`.
      timesteps: `[B]`, integers, or float32 between them.
      encoder_hidden_states: `[B, L, D]`, the text embedding.
      text_embeds: `[B, P]`, the pooled text embedding. It and time_ids are required by
        addition_embed_type "text_time" (SDXL), and refused without it.
      time_ids: `[B, 6]`, integers or float32, in pixels: height and width of the original image,
        top and left of the crop, height and width of the target.
      dtype: Dtype of the computation and of the result.

    Returns:
      `[B, H, W, C_out]`.
    """
    inputs = (sample, timesteps, encoder_hidden_states, text_embeds, time_ids)
    check_inputs(network.config, *inputs)
    return network.run(lambda unet, inputs: unet(*inputs, dtype), params, inputs)

  return Model(apply, network.init)
