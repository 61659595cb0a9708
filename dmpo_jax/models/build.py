"""From a config.json to functions: `build(config)` gives `apply` and `init`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import fsdp, trees
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.clip import text as clip_text
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.init import init_params
from dmpo_jax.models.unet import config as unet_config
from dmpo_jax.models.unet import model as unet
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.models.vae import model as vae


class Model(NamedTuple):
  """A network as two functions.

  Attributes:
    apply: UNet: `apply(params, sample, timesteps, encoder_hidden_states, *, text_embeds=None,
      time_ids=None, dtype=float32)`, with sample `[B, H, W, C_in]`, timesteps `[B]` (integers, or
      float32 between them) and encoder_hidden_states `[B, L, D]`, returns `[B, H, W, C_out]`. SDXL,
      with addition_embed_type "text_time", needs text_embeds `[B, P]` and time_ids `[B, 6]`:
      height and width of the original image, top and left of the crop, height and width of the
      target, in pixels, integers or float32. Text encoder: `apply(params, input_ids, *,
      dtype=float32)` with input_ids int `[B, L]` returns a `TextOutput`. dtype is that of the
      computation and of the result; statistics of norms, the softmax and the sinusoids of numbers
      are float32.
    init: `init(key)` returns new parameters, a tree of float32 numpy arrays.
  """

  apply: Callable[..., Any]
  init: Callable[[jax.Array], trees.Tree]


def build(config: Mapping[str, Any], *, compute: Compute = Compute()) -> Model:
  """Builds the network that a config.json of diffusers or transformers describes.

  Args:
    config: Its fields. `_class_name` "UNet2DConditionModel", or `architectures` with
      "CLIPTextModel" or "CLIPTextModelWithProjection"; absent fields have that library's defaults.
    compute: Attention kernels, rematerialisation and sharding. To compile for another machine,
      name its attention implementation.

  Returns:
    A `Model` of pure functions; parameters are nested dicts with string keys, named as there.

  Raises:
    InputError: The network, a field or a field's value is not supported.
  """
  module = _module(config, compute)
  graph, state = nnx.split(module)
  shapes = trees.string_keys(nnx.to_pure_dict(state))

  def restore(params: trees.Tree) -> nnx.Module:
    return nnx.merge(graph, trees.int_keys(params))

  def apply_unet(
    params,
    sample,
    timesteps,
    encoder_hidden_states,
    *,
    text_embeds=None,
    time_ids=None,
    dtype=jnp.float32,
  ):
    inputs = (sample, timesteps, encoder_hidden_states, text_embeds, time_ids)
    unet.check_inputs(module.config, *inputs)

    def run(params, inputs):
      return restore(params)(*inputs, dtype)

    return fsdp.shard_map(compute.placement, run)(params, inputs)

  def apply_text(params, input_ids, *, dtype=jnp.float32):
    clip_text.check_inputs(module.config, input_ids)

    def run(params, input_ids):
      return restore(params)(input_ids, dtype)

    return fsdp.shard_map(compute.placement, run)(params, input_ids)

  def init(key: jax.Array) -> trees.Tree:
    return init_params(shapes, key)

  is_unet = isinstance(module, unet.UNet2DConditionModel)
  return Model(apply_unet if is_unet else apply_text, init)


def abstract(config: Mapping[str, Any]) -> trees.Tree:
  """The tree of parameters that `build(config).init` returns, without numbers.

  Args:
    config: As for `build`, or for `build_autoencoder`.

  Returns:
    The same nested dicts with a `jax.ShapeDtypeStruct` for each array.

  Raises:
    InputError: The network, a field or a field's value is not supported.
  """
  if config.get("_class_name") == vae_config.NAME:
    module = vae.AutoencoderKL(vae_config.read(config), Compute())
  else:
    module = _module(config, Compute())
  return trees.string_keys(nnx.to_pure_dict(nnx.split(module)[1]))


def _module(config: Mapping[str, Any], compute: Compute) -> nnx.Module:
  """The module with shapes for parameters."""
  if config.get("_class_name") == unet_config.NAME:
    return unet.UNet2DConditionModel(unet_config.read(config), compute)
  if {clip_config.NAME, clip_config.WITH_PROJECTION} & set(config.get("architectures") or ()):
    return clip_text.CLIPTextModel(clip_config.read(config), compute)
  raise InputError(
    f"config with _class_name = {config.get('_class_name')!r} and architectures = "
    f"{config.get('architectures')!r} describes no known network; expected _class_name = "
    f"{unet_config.NAME!r} or architectures = [{clip_config.NAME!r}] or "
    f"[{clip_config.WITH_PROJECTION!r}]"
  )
