"""From prompts and seeds to images: text encoders, denoiser, solver and decoder in one program."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmpo_jax import diffusion
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines.interface import Conditioning, Params, Text, TextToImage
from dmpo_jax.pipelines.steering import Steering, pooled_text, steered
from dmpo_jax.sampling.images import to_floats
from dmpo_jax.sampling.noise import checked_seeds, initial_noise, seed_keys
from dmpo_jax.sampling.solve import guided, guided_edit, interleave, separate, solve
from dmpo_jax.sampling.sources import Sources

Size = tuple[int, int]
LARGEST_SCALE = 3.4028234e38  # of float32
# Name of a potential's parameters beside the pipeline's components.
STEERING = "steering"


class SamplingInputs(NamedTuple):
  """Inputs of N images to sample, one row each.

  Attributes:
    seeds: uint32 `[N]`.
    text: The pipeline's text inputs of the prompts, arrays `[N, ...]`.
    negative_text: The same of the negative or empty prompts.
    geometry: float32 `[N, 6]`, see `TextToImage.condition`; None where the pipeline uses none.
    source: Source images of pipelines for editing, uint8 or float32 in [-1, 1] `[N, H, W, C]`, or
      `sources.Sources`, which reads them batch by batch; None for others.
  """

  seeds: np.ndarray
  text: Text
  negative_text: Text
  geometry: np.ndarray | None = None
  source: np.ndarray | Sources | None = None


# (params, inputs) or (params, inputs, negative_params) -> images
Sampler = Callable[..., jax.Array]


def sampling_inputs(
  pipeline: TextToImage,
  prompts: Sequence[str],
  seeds: np.ndarray,
  *,
  negative: str | None = None,
  size: Size | None = None,
  original: Size | None = None,
  crop: Size = (0, 0),
  target: Size | None = None,
  source: np.ndarray | Sources | None = None,
) -> tuple[SamplingInputs, int]:
  """Tokenised prompts, seeds, geometry and source images of the images to sample.

  Args:
    pipeline: The pipeline.
    prompts: One for each image, N.
    seeds: As many, integers from 0 to 2^32 - 1.
    negative: The negative prompt of all; by default the empty one.
    size: Height and width in pixels; by default the pipeline's.
    original: Height and width of the training image before it was resized; by default `size`.
    crop: Top and left of the crop that the pipeline was trained on.
    target: Height and width that the training image was resized for; by default `size`.
    source: Source images of an editing pipeline, N, see `SamplingInputs`; None for others.

  Returns:
    `SamplingInputs`, and the number of prompts that were longer than the context and were cut.

  Raises:
    InputError: The pipeline has no tokenizer for one of its text encoders, edits images and there
      is no source, or the reverse, or the sources have another shape than the images.
  """
  count = len(prompts)
  _check_source(pipeline, source, count, size)
  text, truncated = pipeline.tokenize(prompts)
  null, _ = pipeline.tokenize([negative or ""])
  negative_text = {name: np.repeat(row, count, axis=0) for name, row in null.items()}
  rows = None
  if pipeline.uses_geometry:
    row = geometry(size or pipeline.default_size(), original=original, crop=crop, target=target)
    rows = np.repeat(row[None], count, axis=0)  # [N, 6]
  return SamplingInputs(np.asarray(seeds), text, negative_text, rows, source), truncated


def _check_source(
  pipeline: TextToImage, source: np.ndarray | Sources | None, count: int, size: Size | None
) -> None:
  """Raises InputError for source images that do not fit the pipeline."""
  if pipeline.edits != (source is not None):
    raise InputError(
      "this pipeline edits images, and there are no source images; give --source"
      if pipeline.edits
      else "this pipeline makes images from text alone: source images have no effect; leave "
      "--source out, or take a pipeline for editing, such as "
      "StableDiffusionInstructPix2PixPipeline"
    )
  if source is None:
    return
  expected = (count, *(size or pipeline.default_size()), pipeline.image_channels)
  if tuple(source.shape) != expected:
    raise InputError(
      f"the source images are {tuple(source.shape)}; expected {expected}, [N, H, W, C]"
    )
  if source.dtype not in (np.uint8, np.float32):
    raise InputError(f"the source images are {source.dtype}; expected uint8, or float32 in [-1, 1]")


def geometry(
  size: Size, *, original: Size | None = None, crop: Size = (0, 0), target: Size | None = None
) -> np.ndarray:
  """The geometry that SDXL is conditioned on (micro-conditioning).

  Args:
    size: Height and width of the image in pixels.
    original: Height and width of the training image before it was resized; by default `size`.
    crop: Top and left of the crop.
    target: Height and width that the training image was resized for; by default `size`.

  Returns:
    float32 `[6]`.

  Source: arXiv 2307.01952, section 2.2.
  """
  return np.asarray([*(original or size), *crop, *(target or size)], np.float32)


def make_sampler(
  pipeline: TextToImage,
  solver: diffusion.Solver,
  *,
  size: Size | None = None,
  guidance: float,
  guidance_rescale: float = 0.0,
  image_guidance: float | None = None,
  negative: bool = False,
  steering: Steering | None = None,
  decode: bool = True,
) -> Sampler:
  """A compiled function from parameters, prompts and seeds to images.

  The parameters are an argument: models of one shape share one compilation.

  Args:
    pipeline: The pipeline.
    solver: The solver with its steps, such as `pipeline.make_solver(30)`.
    size: Height and width in pixels; by default the pipeline's.
    guidance: Scale of classifier-free guidance; 1 and less: none, the prompts alone.
    guidance_rescale: Strength of `diffusion.rescale`; 0: none.
    image_guidance: Scale of guidance by the source image, at least 1, without effect where
      `guidance` is none; None: the pipeline's default.
    negative: Whether there is a negative prompt. Without one, pipelines with `zero_null_text`
      condition on zeros in place of the encoded empty prompt.
    steering: A potential and its drift, see `steering`; its parameters are those of the component
      `STEERING`. None: the pipeline's own samples.
    decode: Whether to return images; otherwise x_0 `[B, h, w, Z]` in the denoiser's units.

  Returns:
    `sampler(params, inputs, negative_params=None) -> float32 [B, H, W, C]`: images around [-1, 1].
    The work is sharded as the rows of the inputs are. `negative_params` has the components that
    the negative branch of guidance has in place of those of `params`; None: none.

  Raises:
    InputError: The pipeline cannot sample that size, or guides by no source image.
  """
  shape = pipeline.sample_shape(size or pipeline.default_size())
  zero_null = pipeline.zero_null_text and not negative
  image_guidance = check_image_guidance(pipeline, guidance, image_guidance)
  if pipeline.edits and steering is not None:
    raise InputError("potentials steer pipelines that make images from text alone; leave it out")

  def conditionings(
    params: Params, inputs: SamplingInputs, negative_params: Params
  ) -> tuple[Conditioning, ...]:
    """Conditioning on prompts and on negative prompts; of edits also on these without sources."""
    if not diffusion.has_guidance(guidance) or zero_null:
      text = pipeline.encode_text(params, inputs.text)
      null = jax.tree.map(jnp.zeros_like, text)
    elif negative_params.keys() & set(pipeline.text_encoders):
      text = pipeline.encode_text(params, inputs.text)
      null = pipeline.encode_text({**params, **negative_params}, inputs.negative_text)
    else:
      both = jax.tree.map(interleave, inputs.negative_text, inputs.text)  # [2B, ...]
      both = pipeline.encode_text(params, both)
      null, text = (jax.tree.map(lambda x, i=i: separate(x)[i], both) for i in (0, 1))
    given = [(text, None), (null, None)]
    if pipeline.edits:
      source = pipeline.encode_source(params, to_floats(inputs.source))  # [B, h, w, Z]
      given = [(text, source), (null, source), (null, jnp.zeros_like(source))]
    return tuple(pipeline.condition(each, inputs.geometry, image) for each, image in given)

  # The solver's numbers are arguments, so that those with as many steps share one program, which
  # jax's compilation cache then finds.
  numbers = jax.tree.map(np.float32, (solver.steps, solver.initial_scale))

  @jax.jit
  def sample(
    params: Params, inputs: SamplingInputs, negative_params: Params | None = None, *, numbers
  ) -> jax.Array:
    def network(x: jax.Array, t: jax.Array, conditioning: Conditioning) -> jax.Array:
      return pipeline.denoise(params, x, t, conditioning)

    def null_network(x: jax.Array, t: jax.Array, conditioning: Conditioning) -> jax.Array:
      return pipeline.denoise({**params, **negative_params}, x, t, conditioning)

    given = conditionings(params, inputs, negative_params or {})
    settings = {
      "scale": guidance,
      "rescale": guidance_rescale,
      "null_network": null_network if pipeline.denoiser in (negative_params or {}) else None,
    }
    if pipeline.edits:
      predict = guided_edit(network, *given, image_scale=image_guidance, **settings)
    else:
      predict = guided(network, *given, **settings)
    if steering is not None:
      pooled = pooled_text(pipeline.encode_text(params, inputs.text))
      predict = steered(
        pipeline, steering, predict, params[STEERING], pooled, seed_keys(inputs.seeds)
      )
    noise = initial_noise(inputs.seeds, shape)  # [B, h, w, Z]
    steps, scale = numbers
    traced = solver._replace(steps=steps, initial_scale=scale)
    x = solve(predict, traced, noise, keys=seed_keys(inputs.seeds))
    return pipeline.decode(params, x) if decode else x  # [B, H, W, C]

  return functools.partial(sample, numbers=numbers)


def check_image_guidance(
  pipeline: TextToImage, guidance: float, image_guidance: float | None
) -> float:
  """The scale of guidance by the source image, checked.

  diffusers' pipelines switch all guidance off where the scale is below 1, and ignore it where the
  caption's scale is 1 or less; here both are errors.

  Args:
    pipeline: The pipeline.
    guidance: Scale of guidance by the caption.
    image_guidance: The scale; None: the pipeline's default.

  Returns:
    The scale; 1, which is none, where the pipeline edits no images or there is no guidance.

  Raises:
    InputError: The scale has no effect, or is below 1 or not finite.
  """
  if image_guidance is None:
    has = pipeline.edits and diffusion.has_guidance(guidance)
    return pipeline.default_image_guidance if has else 1.0
  if not pipeline.edits:
    raise InputError(
      f"image guidance {image_guidance:g} has no effect: this pipeline makes images from text "
      "alone; leave --image-guidance out"
    )
  if not 1 <= image_guidance <= LARGEST_SCALE:
    raise InputError(
      f"--image-guidance must be at least 1, which is none, and finite, got {image_guidance:g}"
    )
  if image_guidance > 1 and not diffusion.has_guidance(guidance):
    raise InputError(
      f"--image-guidance {image_guidance:g} has no effect without guidance by the instruction, and "
      f"{guidance:g} is none, as in diffusers; give --guidance above 1, or leave it out"
    )
  return float(image_guidance)


def sample_batches(
  sampler: Sampler,
  params: Params,
  inputs: SamplingInputs,
  *,
  batch_size: int,
  negative_params: Params | None = None,
  devices: Sequence[jax.Device] | None = None,
  progress: Callable = iter,
) -> Iterator[np.ndarray]:
  """Samples any number of images, batch by batch, each batch sharded over all devices.

  All batches have one size, a multiple of the number of devices: the last is padded, then cut.

  Args:
    sampler: From `make_sampler`.
    params: Parameters by component. Arrays on these very devices keep their sharding, others
      are copied to each device.
    inputs: N of them.
    batch_size: Images at a time; rounded up.
    negative_params: Components of the negative branch of guidance, see `make_sampler`.
    devices: By default all of this process's backend.
    progress: Wraps the sequence of batches, for a progress bar.

  Yields:
    float32 `[n, H, W, C]`, in the order of the inputs.

  Raises:
    InputError: The seeds are not integers from 0 to 2^32 - 1.
  """
  inputs = inputs._replace(seeds=checked_seeds(inputs.seeds))
  devices = jax.devices() if devices is None else list(devices)
  mesh = jax.make_mesh(
    (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
  )
  networks = (params,) if negative_params is None else (params, negative_params)
  params, *negative = jax.tree.map(lambda leaf: _on_devices(leaf, mesh), networks)
  count = len(inputs.seeds)
  size = -(-min(batch_size, count) // len(devices)) * len(devices)
  sharded = NamedSharding(mesh, PartitionSpec("data"))
  for start in progress(range(0, count, size)):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    batch = jax.tree.map(lambda x, rows=rows: jax.device_put(np.asarray(x[rows]), sharded), inputs)
    with jax.set_mesh(mesh):
      images = sampler(params, batch, *negative)
    yield jax.device_get(images)[: count - start]  # [n, H, W, C]


def sample_all(
  sampler: Sampler, params: Params, inputs: SamplingInputs, **options: Any
) -> np.ndarray:
  """Samples any number of images into one array.

  Args:
    sampler: From `make_sampler`.
    params: Parameters by component.
    inputs: N of them.
    **options: Those of `sample_batches`.

  Returns:
    float32 `[N, H, W, C]`.
  """
  return np.concatenate(list(sample_batches(sampler, params, inputs, **options)))


def default_dtype() -> str:
  """The compute dtype of sampling: float32 on CPUs, which gain nothing from less, else bfloat16."""
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def cast_params(pipeline: TextToImage, params: Params, dtype: Any) -> dict[str, Any]:
  """Parameters in the compute dtype; the autoencoder's stay as they are.

  Args:
    pipeline: The pipeline.
    params: Parameters by component.
    dtype: The compute dtype.

  Returns:
    Parameters by component; leaves that have the dtype already are the same arrays.
  """
  dtype = jnp.dtype(dtype)

  def cast(leaf: Any) -> Any:
    return leaf if leaf.dtype == dtype else leaf.astype(dtype)

  with np.errstate(over="ignore"):  # float16; `check_params` finds what became infinite
    return {
      name: tree if name in (pipeline.autoencoder, STEERING) else jax.tree.map(cast, tree)
      for name, tree in params.items()
    }


def _on_devices(leaf: Any, mesh: Mesh) -> jax.Array:
  if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat):
    return leaf
  return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))
