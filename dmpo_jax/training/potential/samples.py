"""Samples of the reference with their rewards, or scored pairs, and the batches made of them."""

import dataclasses
import functools
import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dmpo_jax import data, interop, pipelines
from dmpo_jax.common import choose, files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data.datasets import DATASETS, RENAMED
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import TextToImage
from dmpo_jax.pipelines.fingerprints import sampling_fingerprint
from dmpo_jax.pipelines.steering import prompts_text

LOGGER = logging.getLogger(__name__)
MAX_BYTES = 1 << 34
FILE = "reference_samples.npz"
# (images [N, H, W, C] in [-1, 1], N prompts) -> [N]
Score = Callable[[np.ndarray, Sequence[str]], np.ndarray]


class Batch(NamedTuple):
  """Groups of images, one caption each; the first axis is sharded over all devices.

  Attributes:
    x: x_0 in the denoiser's units, float32 `[G, n, h, w, Z]`.
    text: Pooled caption, float32 `[G, text]`.
    reward: Reward less its mean over the caption's samples, float32 `[G, n]`; of pairs 0.
    label: Probability that image i is preferred to image i + n/2, `[G, n/2]`; without pairs 1/2.
    example_id: uint32 `[G]`.
  """

  x: np.ndarray
  text: np.ndarray
  reward: np.ndarray
  label: np.ndarray
  example_id: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pool:
  """Images by caption.

  Attributes:
    x: x_0, float32 `[M, h, w, Z]`.
    text: Pooled captions, float32 `[C, text]`.
    rewards: float32 `[M]`, of mean 0 within each caption; zeros for pairs.
    rows: Of each caption, the rows of x to train on: single images `[k]`, or pairs `[k, 2]`.
    held_out: The same of the held-out rows.
    labels: Of each row of x that is the first of a pair, the probability that it is preferred.
    is_pairs: Whether rows are pairs.
  """

  x: np.ndarray
  text: np.ndarray
  rewards: np.ndarray
  rows: list[np.ndarray]
  held_out: list[np.ndarray]
  labels: np.ndarray
  is_pairs: bool

  def batch(self, seed: int, step: int, groups: int, size: int) -> Batch:
    """The batch of a step, a function of seed and step alone."""
    rng = np.random.default_rng([seed, step])
    captions = rng.permutation(np.resize(rng.permutation(len(self.rows)), groups))
    return self._gather(rng, captions, self.rows, size)

  def evaluation(self, size: int) -> list[Batch]:
    """A batch of one group of `size` held-out images for each caption."""
    rng = np.random.default_rng(0)
    return [self._gather(rng, np.array([c]), self.held_out, size) for c in range(len(self.rows))]

  def _gather(
    self, rng: np.random.Generator, captions: np.ndarray, rows: list[np.ndarray], size: int
  ) -> Batch:
    count = size // 2 if self.is_pairs else size
    chosen = []
    for caption in captions:
      available = rows[caption]
      replace = len(available) < count
      chosen.append(available[rng.choice(len(available), count, replace=replace)])
    index = np.stack(chosen)  # [G, n] or [G, n/2, 2]
    label = np.full((len(captions), size // 2), 0.5, np.float32)
    if self.is_pairs:
      label = self.labels[index[..., 0]]
      index = np.concatenate([index[..., 0], index[..., 1]], axis=1)
    return Batch(
      x=self.x[index],
      text=self.text[captions],
      reward=self.rewards[index],
      label=label,
      example_id=np.asarray(captions, np.uint32),
    )


def reference_pool(
  config: ConfigDict,
  pipeline: interop.Pipeline,
  functions: TextToImage,
  score: Score,
  workdir: paths.Path,
  devices: Sequence[jax.Device],
  progress: Callable = iter,
) -> Pool:
  """Samples of the reference with rewards; x_0 is kept in the work directory.

  Args:
    config: A checked config.
    pipeline: The reference.
    functions: Its functions.
    score: Score of images; the reward is score/temperature.
    workdir: Work directory.
    devices: Devices to sample on.
    progress: Wraps the sequence of batches.

  Returns:
    `Pool`.

  Raises:
    InputError: A score is not finite, or all scores of a caption agree.
  """
  prompts, options = list(config.prompts), config.samples
  names = [prompt for prompt in prompts for _ in range(options.per_prompt)]
  seeds = np.arange(len(names), dtype=np.uint32) + np.uint32(config.seed) * np.uint32(2**20)
  solver = functions.make_solver(options.steps)
  inputs, _ = pipelines.sampling_inputs(functions, names, seeds)
  content = json.dumps(
    {
      **sampling_fingerprint(pipeline, solver, inputs),
      "guidance": options.guidance,
      "seeds": [int(seeds[0]), len(seeds)],
    },
    sort_keys=True,
  )
  x = _read(workdir / FILE, content)
  if x is None:
    sampler = pipelines.make_sampler(functions, solver, guidance=options.guidance, decode=False)
    x = pipelines.sample_all(
      sampler,
      pipeline.params,
      inputs,
      batch_size=options.batch_size,
      devices=devices,
      progress=progress,
    )
    write_atomically(workdir / FILE, functools.partial(np.savez, x=x, content=content))
  decode = jax.jit(functions.decode)
  size = options.batch_size
  images = [decode(pipeline.params, x[i : i + size]) for i in range(0, len(x), size)]
  values = np.asarray(score(np.concatenate([np.asarray(v) for v in images]), names), np.float64)
  if values.shape != (len(names),) or not np.isfinite(values).all():
    raise InputError(
      f"the score {config.score.name!r} gives {values.shape} values, "
      f"{np.count_nonzero(~np.isfinite(values))} of them not finite; expected one finite number "
      f"for each of {len(names)} images"
    )
  rewards = (values / config.score.temperature).reshape(len(prompts), -1)  # [C, N]
  if (flat := np.ptp(rewards, axis=1) == 0).any():
    raise InputError(
      f"the score {config.score.name!r} is the same for all samples of "
      f"{prompts[int(np.argmax(flat))]!r}: there is nothing to prefer"
    )
  rewards -= rewards.mean(axis=1, keepdims=True)
  rows = np.arange(len(names)).reshape(len(prompts), -1)
  return Pool(
    x=x,
    text=prompts_text(functions, pipeline.params, prompts),
    rewards=rewards.reshape(-1).astype(np.float32),
    rows=list(rows[:, options.held_out :]),
    held_out=list(rows[:, : options.held_out]),
    labels=np.zeros(len(names), np.float32),
    is_pairs=False,
  )


def pairs_pool(
  config: ConfigDict, pipeline: interop.Pipeline, functions: TextToImage
) -> tuple[Pool, str]:
  """Scored pairs of a data set, and the data set's fingerprint.

  A quarter of each caption's pairs, at least one, is held out.

  Raises:
    InputError: The data set cannot be read, does not hold pairs, or a caption has fewer than four.
  """
  build, options = choose.select("data set", config.data, DATASETS, renamed=RENAMED)
  examples = build(**options)
  if isinstance(examples, data.CachedLatents):
    raise InputError("config.data names cached latents; a potential is learned from images")
  count = len(examples)
  loader = examples.loader(
    functions.tokenize, channels=functions.image_channels, batch_size=count, seed=config.seed
  )
  batch = loader[0]  # one epoch
  pixels = np.asarray(batch["pixels"])  # [P, 2, H, W, C]
  if pixels.shape[1] != 2:
    raise InputError("config.data names single images; name pairs")
  if pixels.dtype == np.uint8:
    pixels = pixels.astype(np.float32) / 127.5 - 1
  label = np.asarray(batch.get("label", np.ones(count)), np.float32)
  flat = np.concatenate([np.asarray(v).reshape(count, -1) for v in batch["text"].values()], axis=1)
  _, first, caption = np.unique(flat, axis=0, return_index=True, return_inverse=True)
  encode = jax.jit(
    lambda params, images: (
      images
      if functions.posterior is None
      else functions.scale(functions.posterior(params, images).mean)
    )
  )
  images = np.concatenate([pixels[:, 0], pixels[:, 1]])
  size = config.samples.batch_size
  x = np.concatenate(
    [np.asarray(encode(pipeline.params, images[i : i + size])) for i in range(0, len(images), size)]
  )
  train, held_out = [], []
  for number in range(len(first)):
    members = np.flatnonzero(caption.reshape(-1) == number)
    if len(members) < 4:
      raise InputError(
        f"a caption has {len(members)} pairs; a potential needs at least 4 of each caption, and "
        "dozens to estimate its normaliser"
      )
    rows = np.stack([members, members + count], axis=1)
    part = max(1, len(rows) // 4)
    held_out.append(rows[:part])
    train.append(rows[part:])
  tokens = {name: np.asarray(v)[first] for name, v in batch["text"].items()}
  from dmpo_jax.pipelines.steering import pooled_text

  text = np.asarray(pooled_text(functions.encode_text(pipeline.params, tokens)))
  pool = Pool(
    x=x,
    text=text,
    rewards=np.zeros(len(x), np.float32),
    rows=train,
    held_out=held_out,
    labels=np.concatenate([label, 1 - label]),
    is_pairs=True,
  )
  return pool, examples.fingerprint()


def _read(file: paths.Path, content: str) -> np.ndarray | None:
  """The samples in a file; None, with a message, if it is damaged or has other content."""
  if not file.exists():
    return None
  try:
    stream = io.BytesIO(files.read_bytes(file, max_bytes=MAX_BYTES))
    with (
      files.reading(file, "file of samples"),
      np.load(stream, allow_pickle=False) as arrays,
    ):
      if str(arrays["content"]) != content:
        LOGGER.info("%s holds samples of other weights or settings; sampling again", file)
        return None
      return arrays["x"]
  except InputError as error:
    LOGGER.warning("%s; sampling again", error)
    return None
