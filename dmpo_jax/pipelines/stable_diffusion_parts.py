"""The parts of a Stable Diffusion pipeline: how they fit, and what diffusers corrects in them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dmpo_jax import interop
from dmpo_jax.errors import InputError, short
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.clip.config import CLIPTextConfig
from dmpo_jax.models.unet.config import UNetConfig
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.pipelines import tokenizers

# Classes of diffusers that correct three fields when they are loaded, whatever their files say.
CORRECTED = frozenset(
  {
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPAGImg2ImgPipeline",
    "StableDiffusionPipelineSafe",
  }
)
# Classes of pipelines for editing.
EDITING = tuple(interop.pipeline.EDITING.values())
# The sample_size that they put in the place of smaller ones, in UNets saved before this version:
# a script of that time wrote the inner size.
CORRECTED_SIZE, CORRECTED_BEFORE = 64, (0, 9)

# Largest sample_size, in latents or pixels.
MAX_SIZE = 1 << 12


def scheduler(pipeline: interop.Pipeline) -> Mapping[str, Any]:
  """The scheduler's config as diffusers' pipeline of the same class uses it.

  Source: the constructor of diffusers' StableDiffusionPipeline (0.42).
  """
  config = pipeline.configs[interop.SCHEDULER]
  if pipeline.model_index.get("_class_name") in CORRECTED:
    return {**config, "steps_offset": 1, "clip_sample": False}
  return config


def sample_size(pipeline: interop.Pipeline) -> tuple[int, int]:
  """Height and width of samples, in latents or pixels, as diffusers' pipeline reads them.

  Raises:
    InputError: unet/config.json states none, or no size.

  Source: the constructor of diffusers' StableDiffusionPipeline (0.42).
  """
  config = pipeline.configs["unet"]
  size = config.get("sample_size")
  if size is None:
    raise InputError("unet/config.json has no sample_size: give height and width")
  sides = size if isinstance(size, list | tuple) else (size, size)
  if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIZE for side in sides):
    raise InputError(
      f"unet/config.json: sample_size is {short(size)}; expected a whole number from 1 to "
      f"{MAX_SIZE}, or two of them"
    )
  old = re.match(r"(\d{1,9})\.(\d{1,9})", str(config.get("_diffusers_version")))
  if (
    pipeline.model_index.get("_class_name") in CORRECTED
    and old
    and tuple(map(int, old.groups())) < CORRECTED_BEFORE
    and isinstance(size, int)
  ):
    return max(size, CORRECTED_SIZE), max(size, CORRECTED_SIZE)
  return sides[0], sides[1]


def check(pipeline: interop.Pipeline, unet: UNetConfig, encoders: Sequence[str]) -> list[int]:
  """Refuses parts that do not belong together: they would compute nonsense, or fail while they do.

  Args:
    pipeline: Its configs, index and tokenizers are used.
    unet: The fields of its UNet.
    encoders: Names of its text encoders.

  Returns:
    The context length of each text encoder, in tokens.

  Raises:
    InputError: It names the fields that contradict each other.
  """
  texts = [clip_config.read(pipeline.configs[name]) for name in encoders]
  if (unet.text_time is not None) != (len(encoders) == 2):
    raise InputError(
      "unet/config.json: addition_embed_type is "
      f"{pipeline.configs['unet'].get('addition_embed_type')!r} beside {len(encoders)} text "
      f"encoder{'s' * (len(encoders) != 1)}; pipelines of SDXL have 'text_time' and two, all "
      "others neither"
    )
  _check_widths(unet, encoders, texts)
  if "vae" in pipeline.configs:
    _check_channels(unet, vae_config.read(pipeline.configs["vae"]))
  elif unet.in_channels not in (unet.out_channels, 2 * unet.out_channels):
    raise InputError(
      f"unet/config.json: in_channels is {unet.in_channels} and out_channels "
      f"{unet.out_channels}; without an autoencoder they are the same pixels, or with those of the "
      "image to edit twice as many"
    )
  _check_class(pipeline.model_index, unet)
  forced = pipeline.model_index.get("force_zeros_for_empty_prompt")
  if forced is not None and not isinstance(forced, bool):
    raise InputError(
      f"{interop.INDEX}: force_zeros_for_empty_prompt is {short(forced)}; expected true or false"
    )
  known = pipeline.tokenizers or {}
  lengths = [
    tokenizers.check(
      known.get(name.replace("text_encoder", "tokenizer")),
      name,
      vocabulary=text.vocab_size,
      positions=text.max_position_embeddings,
    )
    for name, text in zip(encoders, texts, strict=True)
  ]
  if len(set(lengths)) > 1:
    raise InputError(
      f"the tokenizers have contexts of {' and '.join(map(str, lengths))} tokens (model_max_length "
      "in tokenizer_config.json); their embeddings are joined and need one length"
    )
  if len(texts) == 2:
    _check_end(known.get("tokenizer_2"), texts[1])
  return lengths


def _check_class(model_index: Mapping[str, Any], unet: UNetConfig) -> None:
  """Raises InputError where the class says that a pipeline edits images and its UNet not."""
  name = model_index.get("_class_name")
  edits = unet.in_channels == 2 * unet.out_channels
  if name in (interop.pipeline.EDITING if edits else EDITING):
    expected = "as many" if edits else "twice as many"
    raise InputError(
      f"unet/config.json: in_channels is {unet.in_channels} and out_channels {unet.out_channels}; "
      f"a {name} has {expected} in as out. A UNet that reads a source image belongs to a class "
      f"for editing (_class_name in {interop.INDEX}): {' or '.join(EDITING)}"
    )


def _check_widths(
  unet: UNetConfig, encoders: Sequence[str], texts: Sequence[CLIPTextConfig]
) -> None:
  width = sum(text.hidden_size for text in texts)
  if unet.cross_attention_dim != width:
    stated = " + ".join(
      f"{text.hidden_size} of {name}" for name, text in zip(encoders, texts, strict=True)
    )
    raise InputError(
      f"unet/config.json: cross_attention_dim is {unet.cross_attention_dim}, and the text "
      f"embedding has {stated} channels (hidden_size); the UNet belongs to another text encoder"
    )
  if unet.text_time is None:
    return
  pooled = texts[1].projection_dim
  if pooled is None:
    raise InputError(
      f"text_encoder_2 is a {clip_config.NAME}, which has no projection; SDXL is conditioned on "
      f"the result of a {clip_config.WITH_PROJECTION}"
    )
  if unet.text_time.text != pooled:
    raise InputError(
      "unet/config.json: projection_class_embeddings_input_dim leaves "
      f"{unet.text_time.text} channels for the pooled text embedding, and projection_dim of "
      f"text_encoder_2 is {pooled}; the refiner of SDXL and UNets of other text encoders are not "
      "supported here"
    )


def _check_channels(unet: UNetConfig, vae: vae_config.VAEConfig) -> None:
  latents = vae.latent_channels
  # Of editing, the latents of the source image are concatenated.
  if unet.in_channels not in (latents, 2 * latents):
    raise InputError(
      f"unet/config.json: in_channels is {unet.in_channels}, and the autoencoder's latents have "
      f"{latents} channels; UNets that read masks, depth or smaller images are not supported"
    )
  if unet.out_channels != latents:
    raise InputError(
      f"unet/config.json: out_channels is {unet.out_channels}, and the autoencoder's latents have "
      f"{latents} channels"
    )
  if vae.in_channels != vae.out_channels:
    raise InputError(
      f"vae/config.json: in_channels is {vae.in_channels} and out_channels {vae.out_channels}; "
      "expected the same channels of an image"
    )


def _check_end(tokenizer: Any, text: CLIPTextConfig) -> None:
  """Raises InputError if the pooled text embedding would be that of another token than the end.

  An eos_token_id of 2 stands for the highest id, as in the files of the first CLIP encoders.
  """
  if tokenizer is not None and text.eos_token_id not in (2, tokenizer.eos_token_id):
    raise InputError(
      f"text_encoder_2/config.json: eos_token_id is {text.eos_token_id}, and captions end with "
      f"{tokenizer.eos_token_id}, the eos_token of tokenizer_2; the pooled text embedding would be "
      "that of another token"
    )
