"""An nnx module as pure functions of a plain parameter tree."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from dmpo_jax.models import fsdp, trees
from dmpo_jax.models.init import init_params


class Model(NamedTuple):
  """A network as two functions.

  Attributes:
    apply: `apply(params, *inputs, dtype=float32)`. The inputs are those of `functions` in the
      network's folder: `unet.build`, `mmdit.build`, `clip.build`, `t5.build`. dtype is the compute
      dtype and that of the result; statistics of norms, the softmax and sinusoids are float32.
    init: `init(key)` returns new parameters, a tree of float32 numpy arrays.
  """

  apply: Callable[..., Any]
  init: Callable[[jax.Array], trees.Tree]


class Buffer(NamedTuple):
  """An array in a network's file that is no parameter: it follows from the config.

  Attributes:
    shape: Shape in the file.
    compute: `compute(dtype)` returns the array; dtype None: that in which it was stored.
    recover: `recover(stored)` returns fields for the config, by which `compute` returns the stored
      array; none where it does already. Raises InputError where no fields do.
  """

  shape: tuple[int, ...]
  compute: Callable[[str | None], np.ndarray]
  recover: Callable[[np.ndarray], Mapping[str, Any]]


class Functional(NamedTuple):
  """A module without its parameters.

  Attributes:
    config: The module's config, a frozen dataclass.
    shapes: The parameters' tree with a `jax.ShapeDtypeStruct` for each array.
    run: `run(function, params, inputs)` returns `function(module, inputs)`, where the module has
      these parameters. It runs on the devices of the module's placement; the first axis of all
      inputs and outputs are the examples.
    init: `init(key)` returns new parameters, a tree of float32 numpy arrays.
  """

  config: Any
  shapes: trees.Tree
  run: Callable[[Callable[[Any, Any], Any], trees.Tree, Any], Any]
  init: Callable[[jax.Array], trees.Tree]


def functional(module: nnx.Module) -> Functional:
  """Splits a module that has a `config` and a `compute` from its parameters."""
  graph, state = nnx.split(module)
  shapes = trees.string_keys(nnx.to_pure_dict(state))

  def run(function, params, inputs):
    def on_device(params, inputs):
      return function(nnx.merge(graph, trees.int_keys(params)), inputs)

    return fsdp.shard_map(module.compute.placement, on_device)(params, inputs)

  return Functional(module.config, shapes, run, lambda key: init_params(shapes, key))
