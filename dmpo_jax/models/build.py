"""From a config.json to functions: `build(config)` gives `apply` and `init`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dmpo_jax.errors import InputError
from dmpo_jax.models import fsdp, kernels, trees
from dmpo_jax.models import remat as remat_policies
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.clip import text as clip_text
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


def build(
  config: Mapping[str, Any],
  *,
  implementation: str | None = None,
  place: fsdp.Placement | None = None,
  remat: str = "none",
) -> Model:
  """Builds the network that a config.json of diffusers or transformers describes.

  Args:
    config: Its fields. `_class_name` "UNet2DConditionModel", or `architectures` with
      "CLIPTextModel" or "CLIPTextModelWithProjection"; absent fields have that library's defaults.
    implementation: How attention and GroupNorm are computed: "cpu", "plain", "cudnn" or "splash"
      as `kernels.using` says; None takes what was made for jax's default backend. To compile for
      another machine, name it. The results differ by rounding.
    place: How parameters and examples are spread over devices, such as `training.sharding` says;
      None: parameters are whole, and the compiler spreads the rest.
    remat: What is kept for a gradient and what is computed again, by its name in
      `remat.POLICIES`. Neither changes a result but for rounding.

  Returns:
    A `Model` of pure functions; parameters are nested dicts with string keys, named as there.

  Raises:
    InputError: The network, a field or a field's value is not supported.
  """
  with tracing(implementation, place, remat):  # refuses a wrong name before anything else
    module = _module(config)
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
      with tracing(implementation, place, remat):
        return restore(params)(*inputs, dtype)

    return fsdp.spread(place, run)(params, inputs)

  def apply_text(params, input_ids, *, dtype=jnp.float32):
    clip_text.check_inputs(module.config, input_ids)

    def run(params, input_ids):
      with tracing(implementation, place, remat):
        return restore(params)(input_ids, dtype)

    return fsdp.spread(place, run)(params, input_ids)

  def init(key: jax.Array) -> trees.Tree:
    return init_params(shapes, key)

  is_unet = isinstance(module, unet.UNet2DConditionModel)
  return Model(apply_unet if is_unet else apply_text, init)


@contextlib.contextmanager
def tracing(implementation: str | None, place: fsdp.Placement | None, remat: str) -> Iterator[None]:
  """Traces networks inside as the arguments of `build` say."""
  with kernels.using(implementation), fsdp.using(place), remat_policies.using(remat):
    yield


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
    module = vae.AutoencoderKL(vae_config.read(config))
  else:
    module = _module(config)
  return trees.string_keys(nnx.to_pure_dict(nnx.split(module)[1]))


def _module(config: Mapping[str, Any]) -> nnx.Module:
  """The module with shapes for parameters."""
  if config.get("_class_name") == unet_config.NAME:
    return unet.UNet2DConditionModel(unet_config.read(config))
  if {clip_config.NAME, clip_config.WITH_PROJECTION} & set(config.get("architectures") or ()):
    return clip_text.CLIPTextModel(clip_config.read(config))
  raise InputError(
    f"config with _class_name = {config.get('_class_name')!r} and architectures = "
    f"{config.get('architectures')!r} describes no known network; expected _class_name = "
    f"{unet_config.NAME!r} or architectures = [{clip_config.NAME!r}] or "
    f"[{clip_config.WITH_PROJECTION!r}]"
  )
