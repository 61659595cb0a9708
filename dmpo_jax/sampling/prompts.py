"""From token ids to what the network is told of a prompt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Conditioning = dict[str, jax.Array]


class Requests(NamedTuple):
  """N images to be drawn, one row each.

  Attributes:
    seeds: uint32 `[N]`.
    ids: int32 `[N, L]` for each text encoder: the tokens of the prompts.
    null_ids: The same of the negative or empty prompts.
    time_ids: float32 `[N, 6]` for networks that are told sizes (SDXL), otherwise None: height and
      width of the original image, top and left of the crop, height and width of the target, pixels.
    null_time_ids: The same beside the negative prompts.
  """

  seeds: np.ndarray
  ids: tuple[np.ndarray, ...]
  null_ids: tuple[np.ndarray, ...]
  time_ids: np.ndarray | None = None
  null_time_ids: np.ndarray | None = None


def encode(
  text_encoders: Sequence[Callable[..., Any]],
  params: Mapping[str, Any],
  ids: Sequence[jax.Array],
  *,
  dtype: Any,
) -> Conditioning:
  """Encodes prompts as the UNet of the pipeline expects it.

  One encoder (SD1.5, SD2.1): its last hidden state. Two (SDXL): their penultimate hidden states
  side by side, and the second one's projected end token.

  Args:
    text_encoders: `models.Model.apply` of the one or two encoders.
    params: Parameters with "text_encoder" and "text_encoder_2".
    ids: int32 `[B, L]` for each encoder.
    dtype: Of the computation and the result.

  Returns:
    "encoder_hidden_states" `[B, L, D]` and, of two encoders, "text_embeds" `[B, P]`.

  Source: diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline, `encode_prompt`.
  """
  names = ("text_encoder", "text_encoder_2")
  outputs = [
    encoder(params[name], tokens, dtype=dtype)
    for encoder, name, tokens in zip(text_encoders, names, ids, strict=False)
  ]
  if len(outputs) == 1:
    return {"encoder_hidden_states": outputs[0].last_hidden_state}
  hidden = jnp.concatenate([output.penultimate for output in outputs], axis=-1)  # [B, L, D]
  return {"encoder_hidden_states": hidden, "text_embeds": outputs[1].text_embeds}


def size_ids(
  size: tuple[int, int],
  *,
  original: tuple[int, int] | None = None,
  crop: tuple[int, int] = (0, 0),
  target: tuple[int, int] | None = None,
) -> np.ndarray:
  """What SDXL is told of sizes.

  Args:
    size: Height and width of the image to be drawn, in pixels.
    original: Height and width that the training image had before it was scaled; by default `size`.
    crop: Top and left of the crop that was trained on.
    target: Height and width that it was scaled for; by default `size`.

  Returns:
    float32 `[6]`, a row of `Requests.time_ids`.

  Source: arXiv 2307.01952, section 2.2.
  """
  return np.asarray([*(original or size), *crop, *(target or size)], np.float32)
