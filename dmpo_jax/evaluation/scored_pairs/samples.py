"""Images of prompts to choose pairs from: sampled by a pipeline, or in a folder of samples."""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from dmpo_jax.common import files, paths
from dmpo_jax.data import images, pairs, resumable
from dmpo_jax.errors import InputError, short
from dmpo_jax.pipelines import sample_batches
from dmpo_jax.pipelines.finite import check_image
from dmpo_jax.pipelines.sample_folder import SamplingJob
from dmpo_jax.sampling import to_uint8
from dmpo_jax.sampling.image_folder import MANIFEST

ADVICE = "sample into a new folder"


class PromptImages(NamedTuple):
  """The images of one prompt.

  Attributes:
    prompt: The prompt.
    seeds: Their seeds, ascending and different.
    encoded: Encoded bytes of each image: 8-bit RGB.
    pixels: uint8 `[H, W, 3]` of each image.
    names: Name of each image for messages.
  """

  prompt: str
  seeds: list[int]
  encoded: list[bytes]
  pixels: list[np.ndarray]
  names: list[str]


class Samples(NamedTuple):
  """Images by prompt.

  Attributes:
    model: Name of the model that made them.
    prompts: The prompts, no two of which have the same `prompt_key`.
    plan: Everything that the images depend on, in JSON.
    read: (first, last) -> the images of prompts[first:last].
  """

  model: str
  prompts: list[str]
  plan: dict[str, Any]
  read: Callable[[int, int], Iterator[PromptImages]]


def unique(prompts: Sequence[str]) -> list[str]:
  """The prompts without those that differ from an earlier one in case and spacing only."""
  first: dict[str, str] = {}
  for prompt in prompts:
    first.setdefault(pairs.prompt_key(prompt), prompt)
  return list(first.values())


def of_pipeline(
  job: SamplingJob,
  prompts: Sequence[str],
  *,
  model: str,
  batch_size: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  progress: Callable[[int], None] = lambda images: None,
) -> Samples:
  """Samples of a pipeline, as `dmpo-jax sample` makes them.

  Args:
    job: Of all prompts with all their seeds, those of a prompt in a row and ascending.
    prompts: The prompts; see `unique`.
    model: Name of the pipeline.
    batch_size: Images at a time; None: 64 without an autoencoder, otherwise 4.
    devices: Devices that share a batch; None: those of this process.
    progress: Called with the number of images of each batch.

  Returns:
    `Samples`. Their `read` raises InputError for an image that is not finite.
  """
  count = len(job.inputs.seeds) // len(prompts)
  batch_size = batch_size or (64 if job.functions.autoencoder is None else 4)
  devices = jax.local_devices() if devices is None else list(devices)
  mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)

  @functools.cache
  def params() -> Any:
    """The parameters, copied to each device once."""
    return jax.device_put(job.params, NamedSharding(mesh, PartitionSpec()))

  def read(first: int, last: int) -> Iterator[PromptImages]:
    rows = slice(first * count, last * count)
    inputs = jax.tree.map(lambda x: x[rows], job.inputs)
    batches = sample_batches(job.sampler, params(), inputs, batch_size=batch_size, devices=devices)
    pixels = []
    for batch in batches:
      for image in batch:
        row = rows.start + len(pixels)
        seed, dtype = int(job.inputs.seeds[row]), job.settings["dtype"]
        check_image(image, prompt=job.prompts[row], seed=seed, dtype=dtype)
        levels = np.asarray(to_uint8(image))  # [H, W, 1 or 3]
        pixels.append(np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3))))
      progress(len(batch))
    for number, prompt in enumerate(prompts[first:last]):
      own = slice(number * count, (number + 1) * count)
      seeds = [int(seed) for seed in inputs.seeds[own]]
      names = [f"the image of seed {seed}" for seed in seeds]
      encoded = [_png(image) for image in pixels[own]]
      yield PromptImages(prompt, seeds, encoded, pixels[own], names)

  plan = {"settings": job.settings, "content": job.content, "batch_size": batch_size}
  plan["seeds"] = [int(seed) for seed in job.inputs.seeds[:count]]
  return Samples(model, list(prompts), plan, read)


def of_folder(folder: paths.Path) -> Samples:
  """Samples in a folder that `dmpo-jax sample` wrote.

  Args:
    folder: Its finished output with at least two images per prompt.

  Returns:
    `Samples`. Their `read` raises InputError for an image that cannot be read.

  Raises:
    InputError: The folder has no samples or one per prompt, or its manifest is damaged.
  """
  folder = paths.parse(folder)
  model, by_prompt = _read_manifest(folder)
  prompts = unique(list(by_prompt))

  def read(first: int, last: int) -> Iterator[PromptImages]:
    for prompt in prompts[first:last]:
      shots = sorted(by_prompt[prompt].items())
      encoded = [images.load(name, folder).encoded for _, name in shots]
      pixels = [np.asarray(images.decode(data)) for data in encoded]  # [H, W, 3] each
      names = [str(folder / name) for _, name in shots]
      yield PromptImages(prompt, [seed for seed, _ in shots], encoded, pixels, names)

  plan = {"manifest": resumable.fingerprint(folder / MANIFEST).sha256}
  return Samples(model, prompts, plan, read)


def file_names(folder: paths.Path) -> dict[str, dict[int, str]]:
  """File name by prompt and seed in a folder of samples; see `of_folder` for errors."""
  return _read_manifest(paths.parse(folder))[1]


def _png(levels: np.ndarray) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(levels).save(stream, format="PNG")
  return stream.getvalue()


def _read_manifest(folder: paths.Path) -> tuple[str, dict[str, dict[int, str]]]:
  """Model that made a folder of samples, and file names by prompt and seed."""
  path = folder / MANIFEST
  if not path.is_file():
    raise InputError(
      f"{folder} has no finished samples (no {MANIFEST}); generate them with dmpo-jax sample"
    )
  manifest = files.read_json(path, advice=ADVICE)
  model = _value(manifest, "pipeline", str, path)
  by_prompt: dict[str, dict[int, str]] = {}
  for position, image in enumerate(_value(manifest, "images", list, path)):
    where = f"{path}, image {position}"
    if not isinstance(image, dict):
      raise InputError(f"{where} is {short(image)}, expected an object; {ADVICE}")
    for key, kind in (("file", str), ("prompt", str), ("seed", int)):
      _value(image, key, kind, where)
    if not 0 <= image["seed"] < 2**32:
      raise InputError(f"{where}: seed is {short(image['seed'])}, expected 0 to 2^32 - 1; {ADVICE}")
    by_prompt.setdefault(image["prompt"], {}).setdefault(image["seed"], image["file"])
  single = [prompt for prompt, shots in by_prompt.items() if len(shots) < 2]
  if single or not by_prompt:
    raise InputError(
      f"{len(single)} of {len(by_prompt)} prompts in {folder} have one image; a pair needs two: "
      "sample with --seeds 2 or more"
    )
  return model, by_prompt


def _value(values: dict, key: str, kind: type, where: object) -> Any:
  value = values.get(key)
  if not isinstance(value, kind) or isinstance(value, bool):
    what = f"{key} is {short(value)}" if key in values else f"there is no {key}"
    raise InputError(f"{where}: {what}, expected a {kind.__name__}; {ADVICE}")
  return value
