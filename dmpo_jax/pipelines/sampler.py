"""From token ids and seeds to images: encoders, network, solver and decoder in one function."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmpo_jax import diffusion
from dmpo_jax.pipelines import stable_diffusion
from dmpo_jax.sampling.noise import checked_seeds, initial_noise, seed_keys
from dmpo_jax.sampling.solve import guided, interleave, separate, solve

Sampler = Callable[[Mapping[str, Any], stable_diffusion.Requests], jax.Array]


class Networks(NamedTuple):
  """The networks of a pipeline, as functions of their parameters.

  Attributes:
    unet: `models.Model.apply` of the UNet.
    text_encoders: That of the one or two text encoders.
    decode: `(params, latents [B, h, w, Z]) -> images [B, H, W, C]`; None where the UNet denoises
      the images themselves.
  """

  unet: Callable[..., jax.Array]
  text_encoders: tuple[Callable[..., Any], ...]
  decode: Callable[[Any, jax.Array], jax.Array] | None = None


def make_sampler(
  networks: Networks,
  solver: diffusion.Solver,
  *,
  shape: Sequence[int],
  guidance: float,
  guidance_rescale: float = 0.0,
  zero_null: bool = False,
  dtype: Any = jnp.float32,
) -> Sampler:
  """A compiled function from parameters, prompts and seeds to images.

  The parameters are an argument: models of one shape share one compilation.

  Args:
    networks: The networks.
    solver: The solver with its steps.
    shape: The shape of what the UNet denoises, (H, W, C) of one image or of its latents.
    guidance: Scale of classifier-free guidance; 1 is none.
    guidance_rescale: Strength of `diffusion.rescale`; 0 is none.
    zero_null: Takes zeros in the place of the encoded null prompts (SDXL without a negative one).
    dtype: In which UNet and text encoders compute; solver and guidance are float32.

  Returns:
    `sampler(params, requests) -> float32 [B, H, W, C]`: images around [-1, 1]. `params` holds
    `unet`, `text_encoder` and, where there are, `text_encoder_2` and `vae`. Where the requests are
    sharded by their rows, so is the work.
  """

  def conditionings(
    params: Mapping[str, Any], requests: stable_diffusion.Requests
  ) -> tuple[stable_diffusion.Conditioning, stable_diffusion.Conditioning | None]:
    """What the UNet is told of prompts and null prompts."""
    encode = networks.text_encoders
    if guidance == 1 or zero_null:
      full = stable_diffusion.encode(encode, params, requests.ids, dtype=dtype)
      null = jax.tree.map(jnp.zeros_like, full)
    else:
      ids = jax.tree.map(interleave, requests.null_ids, requests.ids)  # [2B, L]
      both = stable_diffusion.encode(encode, params, ids, dtype=dtype)
      null, full = (jax.tree.map(lambda x, i=i: separate(x)[i], both) for i in (0, 1))
    if requests.time_ids is not None:
      full["time_ids"], null["time_ids"] = requests.time_ids, requests.null_time_ids
    return full, null

  # The solver's numbers are arguments, so that those with as many steps share one program, which
  # jax's compilation cache then finds.
  numbers = jax.tree.map(np.float32, (solver.steps, solver.initial_scale))

  @jax.jit
  def draw(params: Mapping[str, Any], requests: stable_diffusion.Requests, *, numbers) -> jax.Array:
    def network(x: jax.Array, t: jax.Array, told: stable_diffusion.Conditioning) -> jax.Array:
      return networks.unet(params["unet"], x, t, **told, dtype=dtype)

    full, null = conditionings(params, requests)
    predict = guided(network, full, null, scale=guidance, rescale=guidance_rescale)
    noise = initial_noise(requests.seeds, shape)  # [B, h, w, Z]
    steps, scale = numbers
    traced = solver._replace(steps=steps, initial_scale=scale)
    x = solve(predict, traced, noise, keys=seed_keys(requests.seeds))
    return x if networks.decode is None else networks.decode(params["vae"], x)  # [B, H, W, C]

  return functools.partial(draw, numbers=numbers)


def sample_batches(
  sampler: Sampler,
  params: Mapping[str, Any],
  requests: stable_diffusion.Requests,
  *,
  batch_size: int,
  devices: Sequence[jax.Device] | None = None,
  progress: Callable = iter,
) -> Iterator[np.ndarray]:
  """Images of any number of requests, batch by batch, each batch split over all devices.

  All batches have one size, a multiple of the number of devices: the last is filled up, then cut.

  Args:
    sampler: As `make_sampler` returns it.
    params: Parameters by component. Arrays that lie on these very devices keep their sharding, all
      others are copied to each device.
    requests: N of them.
    batch_size: Images at a time; rounded up.
    devices: By default all of this process's backend.
    progress: Wraps the sequence of batches, for a progress bar.

  Yields:
    float32 `[n, H, W, C]`, in the order of the requests.

  Raises:
    InputError: The seeds are not integers from 0 to 2^32 - 1.
  """
  requests = requests._replace(seeds=checked_seeds(requests.seeds))
  devices = jax.devices() if devices is None else list(devices)
  mesh = jax.make_mesh(
    (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
  )
  params = jax.tree.map(lambda leaf: _placed(leaf, mesh), params)
  count = len(requests.seeds)
  size = -(-min(batch_size, count) // len(devices)) * len(devices)
  split = NamedSharding(mesh, PartitionSpec("data"))
  for start in progress(range(0, count, size)):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    batch = jax.tree.map(lambda x, rows=rows: jax.device_put(np.asarray(x)[rows], split), requests)
    with jax.set_mesh(mesh):
      images = sampler(params, batch)
    yield jax.device_get(images)[: count - start]  # [n, H, W, C]


def sample_in_batches(
  sampler: Sampler, params: Mapping[str, Any], requests: stable_diffusion.Requests, **options: Any
) -> np.ndarray:
  """The images of `sample_batches` in one array.

  Args:
    sampler: As `make_sampler` returns it.
    params: Parameters by component.
    requests: N of them.
    **options: Those of `sample_batches`.

  Returns:
    float32 `[N, H, W, C]`.
  """
  return np.concatenate(list(sample_batches(sampler, params, requests, **options)))


def _placed(leaf: Any, mesh: Mesh) -> jax.Array:
  if isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat):
    return leaf
  return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))
