"""Samples of a run: images of prompts and seeds with its parameters of the moment."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import interop, models, pipelines, sampling
from dmpo_jax.errors import InputError
from dmpo_jax.parallel import sharding
from dmpo_jax.training.objective import Params


class RunSampler:
  """Samples images with the parameters of a run, by the pipeline's own solver.

  All processes call `sample` together.

  Args:
    config: A checked config, for the compute dtype.
    pipeline: The initial pipeline.
    combine: `(frozen, trained) -> parameters of all components`, see `Objective.combine`.
    mesh: Devices.
    unused: Parameters of components that the train step does not use, because their results are
      cached: the autoencoder and possibly text encoders.
    prompts: Prompt of each image, N.
    seeds: Seed of each image, uint32 `[N]`.
    steps: Steps of the solver.
    guidance: Guidance scale; None: that of the pipeline's family.

  Attributes:
    truncated: Number of images whose prompt is longer than the context.

  Raises:
    InputError: Images of this kind of pipeline cannot be sampled, or a value does not fit it.
  """

  def __init__(
    self,
    config: ConfigDict,
    pipeline: interop.Pipeline,
    combine: Callable[[Params, Params], Params],
    mesh: Mesh,
    unused: Params,
    prompts: Sequence[str],
    seeds: np.ndarray,
    *,
    steps: int,
    guidance: float | None,
  ):
    compute = models.Compute(placement=sharding.placement(mesh))
    functions = pipelines.build(pipeline, dtype=config.dtype, compute=compute)
    if functions.edits:
      raise InputError(
        "config.samples and config.evaluation sample prompts alone, and the pipeline edits images; "
        "set samples.every and evaluation.every to 0, and sample the result with dmpo-jax sample "
        "--source"
      )
    sampler = pipelines.make_sampler(
      functions,
      functions.make_solver(steps),
      guidance=functions.default_guidance if guidance is None else guidance,
    )
    self._unused, self._sharding, self._prompts = unused, sharding.batch(mesh), prompts
    self._inputs, self.truncated = pipelines.sampling_inputs(functions, prompts, seeds)
    largest = mesh.size * (64 if functions.autoencoder is None else 1)
    self._batch_size = min(largest, -(-len(prompts) // mesh.size) * mesh.size)

    def sample(
      trained: Params, frozen: Params, inputs: pipelines.SamplingInputs
    ) -> tuple[jax.Array, jax.Array]:
      images = sampler(combine(frozen, trained), inputs)
      return sampling.to_uint8(images), jnp.isfinite(images).all(axis=(1, 2, 3))

    self._sample = jax.jit(sample, out_shardings=sharding.replicated(mesh))

  def sample(self, trained: Params, frozen: Params) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Samples all images.

    Args:
      trained: Trained parameters, see `Objective`.
      frozen: Parameters that are not trained.

    Returns:
      uint8 `[N, H, W, C]`; and prompt and seed of the images that are not finite, whose pixels are
      0 there.
    """
    frozen = {**self._unused, **frozen}
    count, batches, finite = len(self._inputs.seeds), [], []
    for first in range(0, count, self._batch_size):
      # The last batch repeats the last image, so that all have one shape.
      rows = np.minimum(np.arange(first, first + self._batch_size), count - 1)
      inputs = jax.tree.map(lambda x, rows=rows: self._shard(np.asarray(x)[rows]), self._inputs)
      images, are_finite = map(np.asarray, self._sample(trained, frozen, inputs))
      batches.append(images[: count - first])
      finite += are_finite[: count - first].tolist()
    bad = [
      (prompt, int(seed))
      for prompt, seed, is_finite in zip(self._prompts, self._inputs.seeds, finite, strict=True)
      if not is_finite
    ]
    return np.concatenate(batches), bad  # [N, H, W, C]

  def _shard(self, rows: np.ndarray) -> jax.Array:
    """Shards rows, which every process has, over the devices."""
    return jax.make_array_from_callback(rows.shape, self._sharding, lambda index: rows[index])
