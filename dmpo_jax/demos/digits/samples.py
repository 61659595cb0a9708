"""Samples of a model in a file that belongs to its weights."""

import functools
import io
import json
import logging
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dmpo_jax import pipelines
from dmpo_jax.common import files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError

MAX_BYTES = 1 << 30

LOGGER = logging.getLogger(__name__)


class ModelSampler:
  """Samples models that differ in their parameters alone with one compiled program.

  Args:
    num_steps: Steps of the pipelines' own solver.
    guidance: Guidance scale.
    batch_size: Images per batch.
  """

  def __init__(self, *, num_steps: int, guidance: float, batch_size: int):
    self._num_steps, self._guidance, self._batch_size = num_steps, guidance, batch_size
    self._sampler = None

  def samples(
    self,
    folder: pathlib.Path,
    file: pathlib.Path,
    prompts: Sequence[str],
    seeds: np.ndarray,
    *,
    progress: Callable = iter,
  ) -> np.ndarray:
    """Samples of a pipeline, from a file if it holds those of the very weights and settings.

    Args:
      folder: The pipeline's folder.
      file: *.npz; written, or replaced if it is damaged or belongs to something else.
      prompts: One for each image, N.
      seeds: As many.
      progress: Wraps the sequence of batches.

    Returns:
      float32 `[N, H, W, C]`.

    Raises:
      InputError: The pipeline cannot be read, or an image is not finite.
    """
    pipeline = pipelines.load(folder)
    dtype = pipelines.default_dtype()
    functions = pipelines.build(pipeline, dtype=dtype)
    solver = functions.make_solver(self._num_steps)
    inputs, _ = pipelines.sampling_inputs(functions, prompts, seeds)
    shape = (len(prompts), *functions.default_size(), functions.image_channels)
    content = {
      "jax": jax.__version__,
      "guidance": self._guidance,
      "dtype": dtype,
      "seeds": [int(seeds[0]), int(seeds[-1]), len(seeds)],
      **pipelines.sampling_fingerprint(pipeline, solver, inputs),
    }
    text = json.dumps(content, sort_keys=True)
    if (images := _read(file, text, shape)) is not None:
      return images
    self._sampler = self._sampler or pipelines.make_sampler(
      functions, solver, guidance=self._guidance
    )
    images = pipelines.sample_all(
      self._sampler, pipeline.params, inputs, batch_size=self._batch_size, progress=progress
    )
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
      pipelines.check_image(image, prompt=prompt, seed=int(seed), dtype=dtype)
    write_atomically(file, functools.partial(np.savez_compressed, images=images, content=text))
    return images


def _read(file: pathlib.Path, content: str, shape: tuple[int, ...]) -> np.ndarray | None:
  """The images in a file; None, with a message, if it is damaged or has other content."""
  if not file.exists():
    return None
  try:
    # From memory: zipfile turns wrong offsets in a file into errors of the system.
    stream = io.BytesIO(files.read_bytes(file, max_bytes=MAX_BYTES))
    with (
      files.reading(file, "file of samples"),
      np.load(stream, allow_pickle=False) as arrays,
    ):
      stored = str(arrays["content"]) if "content" in arrays else ""
      if stored != content:
        LOGGER.info("%s holds samples of other weights or settings; sampling again", file)
        return None
      images = arrays["images"]
  except InputError as error:
    LOGGER.warning("%s; sampling again", error)
    return None
  if images.shape != shape or images.dtype != np.float32 or not np.isfinite(images).all():
    LOGGER.warning("%s does not hold finite images of shape %s; sampling again", file, shape)
    return None
  return images
