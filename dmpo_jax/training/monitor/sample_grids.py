"""Sample grids of a run: images of the same prompts from the same noise at several steps."""

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from dmpo_jax import interop
from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.training.monitor.run_sampler import RunSampler
from dmpo_jax.training.objective import Params


class SampleGrid:
  """Samples a grid of images with the parameters of a run.

  All processes call `sample` together.

  Args:
    config: A checked config, for config.samples.
    pipeline: See `RunSampler`, as the others.
    combine: See there.
    mesh: See there.
    unused: See there.

  Attributes:
    truncated: Number of images whose prompt is longer than the context.

  Raises:
    InputError: See `RunSampler`.
  """

  def __init__(
    self,
    config: ConfigDict,
    pipeline: interop.Pipeline,
    combine: Callable[[Params, Params], Params],
    mesh: Mesh,
    unused: Params,
  ):
    section = config.samples
    self._columns = section.seeds
    prompts = [prompt for prompt in section.prompts for _ in range(section.seeds)]
    seeds = np.tile(np.arange(section.seeds, dtype=np.uint32), len(section.prompts))
    self._sampler = RunSampler(
      config,
      pipeline,
      combine,
      mesh,
      unused,
      prompts,
      seeds,
      steps=section.steps,
      guidance=section.guidance,
    )
    self.truncated = self._sampler.truncated

  def sample(self, trained: Params, frozen: Params) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Samples the grid: a row of images for each prompt, a column for each seed.

    Args:
      trained: Trained parameters, see `Objective`.
      frozen: Parameters that are not trained.

    Returns:
      The grid, uint8 `[rows * H, columns * W, C]`; and prompt and seed of the images that are not
      finite, whose pixels are 0 there.
    """
    images, bad = self._sampler.sample(trained, frozen)
    _, height, width, channels = images.shape
    grid = images.reshape(-1, self._columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(-1, self._columns * width, channels), bad


def write_grid(folder: paths.Path, step: int, grid: np.ndarray, prompts: Sequence[str]) -> None:
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
