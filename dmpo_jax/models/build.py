"""From a config.json to pure functions: `build(config)` gives `apply` and `init`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from dmpo_jax.errors import InputError, short
from dmpo_jax.models import config_fields, trees
from dmpo_jax.models.blip import build as blip_build
from dmpo_jax.models.blip import config as blip_config
from dmpo_jax.models.blip.model import ImageReward
from dmpo_jax.models.clip import build as clip_build
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.clip import model_config as clip_model_config
from dmpo_jax.models.clip.model import CLIPModel
from dmpo_jax.models.clip.text import CLIPTextModel
from dmpo_jax.models.compute import Compute
from dmpo_jax.models.functional import Buffer, Functional, Model, functional
from dmpo_jax.models.mmdit import build as mmdit_build
from dmpo_jax.models.mmdit import config as mmdit_config
from dmpo_jax.models.mmdit.model import SD3Transformer2DModel
from dmpo_jax.models.t5 import build as t5_build
from dmpo_jax.models.t5 import config as t5_config
from dmpo_jax.models.t5.model import T5EncoderModel
from dmpo_jax.models.unet import build as unet_build
from dmpo_jax.models.unet import config as unet_config
from dmpo_jax.models.unet.model import UNet2DConditionModel
from dmpo_jax.models.vae import build as vae_build
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.models.vae.model import AutoencoderKL


class Network(NamedTuple):
  """How networks of one class are built.

  Attributes:
    read: `read(config)` returns the fields of a config.json as a frozen dataclass, checked.
    module: `module(fields, compute)` returns the module, with shapes for parameters.
    functions: `functions(functional)` returns the network's pure functions.
    buffers: `buffers(fields)` returns the arrays in the network's file that are no parameters, by
      their torch names.
  """

  read: Callable[[Mapping[str, Any]], Any]
  module: Callable[[Any, Compute], nnx.Module]
  functions: Callable[[Functional], Any]
  buffers: Callable[[Any], Mapping[str, Buffer]] = lambda fields: {}


_CLIP = Network(clip_config.read, CLIPTextModel, clip_build.functions)

# By the class name in `_class_name` (diffusers) or `architectures` (transformers).
NETWORKS = {
  unet_config.NAME: Network(unet_config.read, UNet2DConditionModel, unet_build.functions),
  mmdit_config.NAME: Network(
    mmdit_config.read, SD3Transformer2DModel, mmdit_build.functions, mmdit_build.buffers
  ),
  vae_config.NAME: Network(vae_config.read, AutoencoderKL, vae_build.functions),
  clip_config.NAME: _CLIP,
  clip_config.WITH_PROJECTION: _CLIP,
  clip_model_config.NAME: Network(clip_model_config.read, CLIPModel, clip_build.clip_functions),
  blip_config.NAME: Network(blip_config.read, ImageReward, blip_build.functions),
  t5_config.NAME: Network(t5_config.read, T5EncoderModel, t5_build.functions),
}


def build(
  config: Mapping[str, Any], *, compute: Compute = Compute()
) -> Model | vae_build.Autoencoder | clip_build.CLIP:
  """Builds the network that a config.json of diffusers or transformers describes.

  Args:
    config: Its fields. The class is named by `_class_name` or by an entry of `architectures`, and
      must be one of `NETWORKS`. Absent fields have the default of diffusers or transformers.
    compute: Attention kernels, rematerialisation and sharding. To compile for another machine,
      name its attention implementation.

  Returns:
    Pure functions: an `Autoencoder` for an AutoencoderKL, a `CLIP` for a CLIPModel, otherwise a
    `Model`. Parameters are
    nested dicts with string keys, named as in diffusers and transformers.

  Raises:
    InputError: The network, a field or a field's value is not supported.
  """
  network = _find(config)
  return network.functions(functional(network.module(network.read(config), compute)))


def build_autoencoder(
  config: Mapping[str, Any], *, compute: Compute = Compute()
) -> vae_build.Autoencoder:
  """`build` for a config that must be an autoencoder's.

  Args:
    config: The fields of diffusers' config.json, `_class_name` "AutoencoderKL".
    compute: Attention kernels, rematerialisation and sharding.

  Returns:
    An `Autoencoder` of pure functions.

  Raises:
    InputError: The config is another network's, or a field or its value is not supported.
  """
  if (name := config.get("_class_name")) != vae_config.NAME:
    raise InputError(f"_class_name = {short(name)} is no autoencoder; expected {vae_config.NAME!r}")
  return build(config, compute=compute)


def abstract(config: Mapping[str, Any]) -> trees.Tree:
  """Shapes and dtypes of the parameters that `build(config).init` returns.

  Args:
    config: The fields of a config.json of a class in `NETWORKS`.

  Returns:
    The nested dicts with a `jax.ShapeDtypeStruct` for each array.

  Raises:
    InputError: The network, a field or a field's value is not supported.
  """
  network = _find(config)
  return functional(network.module(network.read(config), Compute())).shapes


def buffers(config: Mapping[str, Any]) -> Mapping[str, Buffer]:
  """Arrays in the file of a network that are no parameters.

  Args:
    config: The fields of a config.json of a class in `NETWORKS`.

  Returns:
    Torch name -> `Buffer`.

  Raises:
    InputError: The network, a field or a field's value is not supported.
  """
  network = _find(config)
  return network.buffers(network.read(config))


def read_config(config: Mapping[str, Any]) -> Any:
  """The fields of a config.json of a class in `NETWORKS`, as that class's frozen dataclass.

  Args:
    config: The fields of a config.json.

  Raises:
    InputError: The network, a field or a field's value is not supported.
  """
  return _find(config).read(config)


def _find(config: Mapping[str, Any]) -> Network:
  """The entry of `NETWORKS` for a config."""
  for name in config_fields.class_names(config):
    if name in NETWORKS:
      return NETWORKS[name]
  raise InputError(
    f"config with _class_name = {short(config.get('_class_name'))} and architectures = "
    f"{short(config.get('architectures'))} describes no known network; expected one of "
    f"{', '.join(map(repr, NETWORKS))}"
  )
