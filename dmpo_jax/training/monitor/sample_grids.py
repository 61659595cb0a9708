"""Sample grids of a run: images of the same prompts from the same noise at several steps."""

import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from dmpo_jax import interop, models, pipelines, sampling
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.parallel import sharding
from dmpo_jax.training.objective import Params


class SampleGrid:
  """Samples a grid of images with the parameters of a run.

  All processes call `sample` together.

  Args:
    config: A checked config, for config.samples.
    pipeline: The initial pipeline.
    combine: `(frozen, trained) -> parameters of all components`, see `Objective.combine`.
    mesh: Devices.
    unused: Parameters of components that the train step does not use, because their results are
      cached: the autoencoder and possibly text encoders.

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
  ):
    section, guidance = config.samples, config.samples.guidance
    compute = models.Compute(placement=sharding.placement(mesh))
    functions = pipelines.build(pipeline, dtype=config.dtype, compute=compute)
    sampler = pipelines.make_sampler(
      functions,
      functions.make_solver(section.steps),
      guidance=functions.default_guidance if guidance is None else guidance,
    )
    self._columns, self._unused, self._sharding = section.seeds, unused, sharding.batch(mesh)
    prompts = [prompt for prompt in section.prompts for _ in range(section.seeds)]
    seeds = np.tile(np.arange(section.seeds, dtype=np.uint32), len(section.prompts))
    self._prompts = prompts
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
    """Samples the grid: a row of images for each prompt, a column for each seed.

    Args:
      trained: Trained parameters, see `Objective`.
      frozen: Parameters that are not trained.

    Returns:
      The grid, uint8 `[rows * H, columns * W, C]`; and prompt and seed of the images that are not
      finite, whose pixels are 0 there.
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
    images = np.concatenate(batches)  # [N, H, W, C]
    bad = [
      (prompt, int(seed))
      for prompt, seed, is_finite in zip(self._prompts, self._inputs.seeds, finite, strict=True)
      if not is_finite
    ]
    _, height, width, channels = images.shape
    grid = images.reshape(-1, self._columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(-1, self._columns * width, channels), bad

  def _shard(self, rows: np.ndarray) -> jax.Array:
    """Shards rows, which every process has, over the devices."""
    return jax.make_array_from_callback(rows.shape, self._sharding, lambda index: rows[index])


def write_grid(folder: pathlib.Path, step: int, grid: np.ndarray, prompts: Sequence[str]) -> None:
  """Writes a grid as step_000120.png, and the prompts of its rows as prompts.txt.

  Args:
    folder: Folder of the files; created if missing.
    step: Steps done.
    grid: Result of `SampleGrid.sample`, uint8 `[H, W, C]`.
    prompts: One prompt per row.
  """
  folder.mkdir(exist_ok=True)
  write_atomically(folder / "prompts.txt", "\n".join(prompts) + "\n")
  image = Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)
  write_atomically(folder / f"step_{step:06d}.png", lambda stream: image.save(stream, format="PNG"))
