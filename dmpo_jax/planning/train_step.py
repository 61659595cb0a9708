"""A config's train step with the shapes of all its arguments, for plans and for measurements."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import interop, models, pipelines
from dmpo_jax.parallel import sharding
from dmpo_jax.pipelines import Params, TextToImage
from dmpo_jax.planning import sampling_cost
from dmpo_jax.planning.inputs import Inputs, abstract_batch
from dmpo_jax.training import reference as references
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.step import State, abstract_state, compile_step


class TrainStep(NamedTuple):
  """A train step that can be lowered, and what it is called with.

  Attributes:
    function: `(state, frozen, reference, batch) -> (state, metrics, losses)`, jitted; the state is
      donated.
    state: Shapes, dtypes and shardings of the state.
    frozen: Those of the parameters that are not trained.
    reference: Those of a frozen reference's parameters, or None.
    batch: Those of a batch.
    example_flops: Model FLOPs of one example.
    sampling: See `sampling_cost.of_image`.
    moves_reference: Whether the reference is part of the state.
  """

  function: Callable[..., tuple[State, dict[str, jax.Array], jax.Array]]
  state: State
  frozen: Params
  reference: Params | None
  batch: Batch
  example_flops: int
  sampling: dict[str, Any]
  moves_reference: bool

  @property
  def arguments(self) -> tuple[Any, ...]:
    """(state, frozen, reference, batch)."""
    return self.state, self.frozen, self.reference, self.batch


def abstract(
  config: ConfigDict,
  pipeline: interop.Pipeline,
  mesh: Mesh,
  inputs: Inputs,
  *,
  attention: str | None = None,
) -> TrainStep:
  """The train step of a config, with shapes in place of parameters and data.

  Args:
    config: A checked config.
    pipeline: The pipeline; its parameters are not used.
    mesh: Devices, which may be those of a `topology` that is not there.
    inputs: Form and size of the examples.
    attention: Attention implementation, see `models.Compute`.

  Returns:
    `TrainStep`.

  Raises:
    InputError: The batch does not fit the mesh, or the config or the pipeline is not supported.
  """
  sharding.check_batch(mesh, config.batch_size, config.grad_accumulation_steps)
  functions = pipelines.build(pipeline)
  shapes = {name: models.abstract(pipeline.configs[name]) for name in _networks(functions)}
  batch = abstract_batch(functions, shapes, inputs, config.batch_size, sharding.batch(mesh))
  cached = _cached_components(functions, inputs.kind)
  params = {name: tree for name, tree in shapes.items() if name not in cached}
  pipeline = dataclasses.replace(pipeline, params=params)
  trained, frozen, reference = setup.split_params(config, pipeline)
  optimizer = make_optimizer(config.optimizer)
  update = references.from_config(config.reference)
  state = abstract_state(trained, optimizer, mesh, ema=config.ema_decay > 0, reference=update.moves)
  frozen, reference = (sharding.abstract(mesh, tree) for tree in (frozen, reference))
  objective = setup.make_objective(config, pipeline, mesh=mesh, attention=attention)
  objective = objective._replace(starts_at_reference=True)
  if inputs.kind == "latents_and_embeddings" and objective.null_text is not None:
    # The embedding of the empty caption comes from the cache, which a plan does not have.
    null = {name: jnp.zeros(x.shape[1:]) for name, x in batch.text.items()}
    objective = objective._replace(null_text=null)
  step = setup.make_train_step(config, objective, optimizer, mesh)
  flops = functions.flops(
    batch,
    trained=tuple(trained),
    reference=setup.uses_reference(config),
    lora=config.lora.rank > 0,
  )
  return TrainStep(
    compile_step(step, mesh, state, frozen, reference),
    state,
    frozen,
    reference,
    batch,
    sum(flops.values()),
    sampling_cost.of_image(functions, batch, (inputs.size, inputs.size)),
    update.moves,
  )


def _networks(pipeline: TextToImage) -> tuple[str, ...]:
  """Names of the networks of a pipeline."""
  autoencoder = () if pipeline.autoencoder is None else (pipeline.autoencoder,)
  return (pipeline.denoiser, *autoencoder, *pipeline.text_encoders)


def _cached_components(pipeline: TextToImage, kind: str) -> tuple[str | None, ...]:
  """Names of the networks that a step does not run, by the kind of its inputs."""
  if kind == "images":
    return ()
  return (pipeline.autoencoder, *(pipeline.text_encoders if kind != "latents" else ()))
