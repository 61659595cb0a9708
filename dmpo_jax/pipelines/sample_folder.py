"""Folders of sampled images: from a pipeline and settings to the files that are missing."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import dmpo_jax
from dmpo_jax import diffusion, interop
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import families, negative_branch
from dmpo_jax.pipelines.fingerprints import params_digest, sampling_fingerprint
from dmpo_jax.pipelines.finite import check_image, check_params
from dmpo_jax.pipelines.generate import (
  STEERING,
  Sampler,
  SamplingInputs,
  cast_params,
  check_image_guidance,
  default_dtype,
  make_sampler,
  sample_batches,
  sampling_inputs,
)
from dmpo_jax.pipelines.interface import TextToImage
from dmpo_jax.pipelines.potential_folder import load_potential
from dmpo_jax.pipelines.steering import Steering, check_drift
from dmpo_jax.sampling import image_folder, to_uint8
from dmpo_jax.sampling.sources import FOLDER, Sources, copy_name, digest

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
  """Settings of images beside their prompts, seeds and weights; None: the pipeline's default.

  Attributes:
    steps: Steps of the solver.
    solver: Name of the solver.
    karras: Whether it uses Karras sigmas.
    guidance: Guidance scale; 1 and less is none.
    guidance_rescale: Strength of `diffusion.rescale`; 0 is none.
    image_guidance: Of edits, guidance scale of the source image; 1 is none.
    height: Height in pixels.
    width: Width in pixels.
    original_size: SDXL's original height and width.
    crop: SDXL's top and left of the crop.
    target_size: SDXL's target height and width.
    negative: Negative prompt of all images.
    dtype: Compute dtype of the networks; None: `default_dtype`.
  """

  steps: int = 50
  solver: str | None = None
  karras: bool | None = None
  guidance: float | None = None
  guidance_rescale: float = 0.0
  image_guidance: float | None = None
  height: int | None = None
  width: int | None = None
  original_size: Sequence[int] | None = None
  crop: Sequence[int] | None = None
  target_size: Sequence[int] | None = None
  negative: str | None = None
  dtype: str | None = None


class Steer(NamedTuple):
  """A potential to follow, see `steering.Steering`.

  Attributes:
    folder: Folder of the potential.
    drift: Name of the drift.
    particles: Particles of nested simulations.
    inner_steps: Steps of each.
  """

  folder: pathlib.Path
  drift: str
  particles: int
  inner_steps: int


class SamplingJob(NamedTuple):
  """Everything that samples the images of a folder.

  Attributes:
    functions: The pipeline's functions.
    sampler: The compiled sampler.
    params: Parameters by component, in the compute dtype.
    negative_params: Components of the negative branch of guidance, see `make_sampler`; or None.
    inputs: `SamplingInputs` of all images.
    prompts: Prompt of each image.
    settings: All settings, with the pipeline's defaults, that the images depend on, in JSON.
    content: Digests of weights, configs, solver and tokens, see `sampling_fingerprint`.
    scheduler: Class of the pipeline's scheduler, or None.
    shape: Height, width and channels of an image.
    truncated: Number of images whose prompt is longer than the context.
  """

  functions: TextToImage
  sampler: Sampler
  params: dict[str, Any]
  negative_params: dict[str, Any] | None
  inputs: SamplingInputs
  prompts: Sequence[str]
  settings: dict[str, Any]
  content: dict[str, str]
  scheduler: str | None
  shape: tuple[int, int, int]
  truncated: int


def prepare(
  pipeline: interop.Pipeline,
  prompts: Sequence[str],
  seeds: np.ndarray,
  settings: SamplingSettings,
  *,
  lora: pathlib.Path | None = None,
  negative_lora: pathlib.Path | None = None,
  negative_weight: float | None = None,
  steer: Steer | None = None,
  sources: Sequence[str] | Callable[[Sequence[int], int], Sources] | None = None,
  samplers: dict[str, Sampler] | None = None,
) -> SamplingJob:
  """Prepares the images of prompts and seeds.

  Args:
    pipeline: The pipeline, its parameters as they are stored.
    prompts: Prompt of each image, N.
    seeds: Seed of each image, uint32 `[N]`.
    settings: See `SamplingSettings`.
    lora: LoRA file to merge into the pipeline.
    negative_lora: LoRA file of the negative branch of guidance, see `negative_branch.params_of`.
    negative_weight: Fraction of `lora` that the negative branch leaves out; None: 1.
    steer: A potential to follow; None: the pipeline's own samples.
    sources: Of edits, file of the source image of each, N; each is scaled to cover the size of the
      edits, and its middle is cropped. Or a function of their size and channels that returns them.
      None for others.
    samplers: Compiled samplers, to which this one is added: pipelines that differ in weights alone
      share one.

  Returns:
    `SamplingJob`.

  Raises:
    InputError: A setting does not fit the pipeline or has no effect, sources are missing or there
      are some for a pipeline that edits none, the LoRA does not fit, or the weights are not finite.
  """
  dtype = settings.dtype or default_dtype()
  functions = families.build(pipeline, dtype=dtype)
  record = _record(settings, functions, dtype)
  scheduler = record.pop("scheduler", None)  # its numbers are in the solver's digest
  _check_effects(settings, functions, record["guidance"])
  negative_branch.check(record["guidance"], lora, negative_lora, negative_weight)
  size = (record["height"], record["width"])
  source = None
  if sources is not None:
    make = sources
    if not callable(make):
      make = functools.partial(Sources, [paths.parse(x) for x in sources])
    source = make(size, functions.image_channels)
  solver = functions.make_solver(
    record["steps"], name=record["solver"], karras=settings.karras, size=size
  )
  inputs, truncated = sampling_inputs(
    functions,
    prompts,
    seeds,
    negative=settings.negative,
    size=size,
    original=settings.original_size,
    crop=tuple(settings.crop or (0, 0)),
    target=settings.target_size,
    source=source,
  )
  base = pipeline.params
  if lora is not None:
    pipeline = dataclasses.replace(pipeline, params=negative_branch.merged(base, lora, 1.0))
  params = cast_params(functions, pipeline.params, dtype)
  check_params(params, pipeline.params, dtype=dtype)
  negative, negative_params = None, None
  if negative_lora is not None:
    weight = 1.0 if negative_weight is None else negative_weight
    negative = negative_branch.params_of(functions, base, lora, negative_lora, weight)
    negative_params = cast_params(functions, negative, dtype)
    check_params(negative_params, negative, dtype=dtype)
  content = sampling_fingerprint(pipeline, solver, inputs, negative)
  if source is not None and not callable(sources):
    source.check()
    content["sources"] = digest(source.paths)
  steering = None
  if steer is not None:
    steering = Steering(load_potential(steer.folder, pipeline), *steer[1:])
    check_drift(steering)
    params[STEERING] = steering.params
    content["potential"] = params_digest(steering.params)[:16]
    record |= steering.settings()
  samplers = {} if samplers is None else samplers
  network = repr(steering and steering.potential.config)
  key = json.dumps(
    [content["configs"], content["solver"], record, functions.zero_null_text, network],
    sort_keys=True,
  )
  if key not in samplers:
    samplers[key] = make_sampler(
      functions,
      solver,
      size=size,
      guidance=record["guidance"],
      guidance_rescale=record["guidance_rescale"],
      image_guidance=record.get("image_guidance"),
      negative=settings.negative is not None,
      steering=steering,
    )
  shape = (*size, functions.image_channels)
  return SamplingJob(
    functions,
    samplers[key],
    params,
    negative_params,
    inputs,
    prompts,
    record,
    content,
    scheduler,
    shape,
    truncated,
  )


def sample_missing(
  job: SamplingJob,
  folder: pathlib.Path,
  names: Sequence[str],
  done: Sequence[bool],
  *,
  batch_size: int | None = None,
  share: tuple[int, int] = (0, 1),
  devices: Sequence[jax.Device] | None = None,
  progress: Callable = iter,
) -> int:
  """Samples the images that are missing in a folder, and writes each batch at once.

  Batches are consecutive images, whichever of them are missing, so that an interrupted folder ends
  with the very images of an uninterrupted one.

  Args:
    job: From `prepare`.
    folder: The folder.
    names: File name of each image.
    done: Whether each image is there.
    batch_size: Images at a time; None: 64 without an autoencoder, otherwise 4.
    share: Index of this process, and number of processes that share the batches.
    devices: Devices of this process; None: all.
    progress: Wraps the sequence of batches, for a progress bar.

  Returns:
    The batch size.

  Raises:
    InputError: An image is not finite; the message names its prompt and seed.
  """
  count = len(names)
  batch_size = batch_size or (64 if job.functions.autoencoder is None else 4)
  devices = jax.devices() if devices is None else list(devices)
  size = -(-min(batch_size, count) // len(devices)) * len(devices)
  batches = [
    np.arange(start, start + size)
    for number, start in enumerate(range(0, count, size))
    if number % share[1] == share[0] and not all(done[start : start + size])
  ]
  if not batches:
    return batch_size
  rows = np.concatenate(batches)
  taken = np.minimum(rows, count - 1)  # the last batch repeats the last image
  inputs = jax.tree.map(lambda x: x[taken], job.inputs)
  sampled = sample_batches(
    job.sampler,
    job.params,
    inputs,
    batch_size=size,
    negative_params=job.negative_params,
    devices=devices,
    progress=progress,
  )
  positions = iter(rows)
  for batch in sampled:
    for image in batch:
      row = next(positions)
      if row >= count or done[row]:
        continue
      check_image(
        image,
        prompt=job.prompts[row],
        seed=int(job.inputs.seeds[row]),
        dtype=job.settings["dtype"],
      )
      image_folder.write_picture(folder / names[row], np.asarray(to_uint8(image)))
  return batch_size


def write_sources(job: SamplingJob, folder: pathlib.Path, rows: Sequence[int]) -> list[str] | None:
  """Writes the source images of edits as the pipeline sees them, and returns their names.

  Args:
    job: From `prepare`.
    folder: The folder of the samples; the images go into sources/ in it.
    rows: Number of the prompt of each image, N, from 0.

  Returns:
    N names of files in `folder`; None where the job makes no edits.
  """
  if job.inputs.source is None:
    return None
  names = [copy_name(row) for row in rows]
  (folder / FOLDER).mkdir(exist_ok=True)
  for name, path in dict(zip(names, job.inputs.source.paths, strict=True)).items():
    image_folder.write_picture(folder / name, job.inputs.source.read(path))
  return names


def _record(settings: SamplingSettings, functions: TextToImage, dtype: str) -> dict[str, Any]:
  """All settings that the images depend on, with the defaults of the pipeline."""
  height, width = settings.height, settings.width
  if height is None or width is None:
    size = functions.default_size()
    height, width = height or size[0], width or size[1]
  guidance = functions.default_guidance if settings.guidance is None else settings.guidance
  image_guidance = check_image_guidance(functions, guidance, settings.image_guidance)
  return {
    "dmpo_jax": dmpo_jax.__version__,
    "jax": jax.__version__,
    **functions.solver_settings(settings.solver, settings.karras),
    "steps": settings.steps,
    "guidance": guidance,
    "guidance_rescale": settings.guidance_rescale,
    **({"image_guidance": image_guidance} if functions.edits else {}),
    "height": height,
    "width": width,
    "original_size": settings.original_size,
    "crop": settings.crop,
    "target_size": settings.target_size,
    "dtype": dtype,
    "negative": settings.negative,
  }


def _check_effects(settings: SamplingSettings, functions: TextToImage, guidance: float) -> None:
  """Raises InputError for an option that has no effect beside another or on this pipeline."""
  if not diffusion.has_guidance(guidance):
    for name, is_set in (
      ("negative", settings.negative is not None),
      ("guidance-rescale", settings.guidance_rescale > 0),
    ):
      if is_set:
        raise InputError(
          f"--{name} has no effect without guidance, and {guidance:g} is none; give --guidance "
          f"above 1, or leave --{name} out"
        )
  for name in ("original_size", "crop", "target_size"):
    if getattr(settings, name) is not None and not functions.uses_geometry:
      raise InputError(
        f"--{name.replace('_', '-')} has no effect: this pipeline is not conditioned on sizes, as "
        "SDXL is"
      )
