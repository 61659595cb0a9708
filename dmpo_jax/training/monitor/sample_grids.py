"""Sample grids of a run: the same prompts from the same noise, every so many steps."""

import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from dmpo_jax import interop, pipelines, sampling
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.parallel import sharding
from dmpo_jax.pipelines import generate
from dmpo_jax.training.objective import Params


class Grid:
  """What is drawn, and the compiled function that draws it.

  All processes of a run ask for a picture at the same time.

  Args:
    config: A checked config, for its `samples`.
    pipeline: The one that the run started from.
    combine: `(frozen, trained) -> parameters of all components`, as `Objective.combine`.
    mesh: The run's.
    idle: Networks of the pipeline that the run itself does without: of encoded examples the
      autoencoder and, perhaps, text encoders.

  Attributes:
    truncated: Images whose prompt is longer than the context.

  Raises:
    InputError: The pipeline is of a kind that is not drawn here, or a value does not fit it.
  """

  def __init__(
    self,
    config: ConfigDict,
    pipeline: interop.Pipeline,
    combine: Callable[[Params, Params], Params],
    mesh: Mesh,
    idle: Params,
  ):
    section = config.samples
    sampler = generate.sampler_of(
      pipeline,
      num_steps=section.steps,
      guidance=section.guidance or generate.default_guidance(pipeline),
      dtype=config.dtype,
      place=sharding.placement(mesh) if mesh.size > 1 else None,
    )
    self._columns, self._idle, self._split = section.seeds, idle, sharding.batch(mesh)
    prompts = [prompt for prompt in section.prompts for _ in range(section.seeds)]
    seeds = np.tile(np.arange(section.seeds, dtype=np.uint32), len(section.prompts))
    self._requests, self.truncated = generate.requests_for(pipeline, prompts, seeds)
    at_once = mesh.size * (1 if "vae" in pipeline.configs else 64)
    self._size = min(at_once, -(-len(prompts) // mesh.size) * mesh.size)

    def draw(trained: Params, frozen: Params, requests: pipelines.Requests) -> jax.Array:
      return sampling.to_uint8(sampler(combine(frozen, trained), requests))

    self._draw = jax.jit(draw, out_shardings=sharding.replicated(mesh))

  def picture(self, trained: Params, frozen: Params) -> np.ndarray:
    """A row of images for each prompt, a column for each seed.

    Args:
      trained: Parameters, as for `Objective`.
      frozen: Those that are not trained.

    Returns:
      uint8 `[rows * H, columns * W, C]`.
    """
    frozen = {**self._idle, **frozen}
    count, found = len(self._requests.seeds), []
    for first in range(0, count, self._size):
      rows = np.minimum(np.arange(first, first + self._size), count - 1)
      part = jax.tree.map(lambda x, rows=rows: self._placed(np.asarray(x)[rows]), self._requests)
      images = np.asarray(self._draw(trained, frozen, part))
      found.append(images[: count - first])
    images = np.concatenate(found)  # [N, H, W, C]
    _, height, width, channels = images.shape
    lines = images.reshape(-1, self._columns, height, width, channels).swapaxes(1, 2)
    return lines.reshape(-1, self._columns * width, channels)

  def _placed(self, rows: np.ndarray) -> jax.Array:
    """Rows that every process has, split over the devices."""
    return jax.make_array_from_callback(rows.shape, self._split, lambda index: rows[index])


def write_grid(
  folder: pathlib.Path, step: int, picture: np.ndarray, prompts: Sequence[str]
) -> None:
  """Writes a picture of `Grid` as step_000120.png, and what its rows show as prompts.txt.

  Args:
    folder: Is made where it is not there.
    step: Steps done.
    picture: uint8 `[H, W, C]`.
    prompts: One for each row.
  """
  folder.mkdir(exist_ok=True)
  (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
  image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
  write_atomically(folder / f"step_{step:06d}.png", lambda stream: image.save(stream, format="PNG"))
