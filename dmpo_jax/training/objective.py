"""From parameters and a batch to the loss of each example: where networks meet objectives."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax import diffusion, losses

Params = Mapping[str, Any]
# (errors) or (errors, residuals), as its facts say -> (loss [examples], diagnostics)
Loss = Callable[..., tuple[jax.Array, losses.Diagnostics]]


class Batch(NamedTuple):
  """Examples of one step; the first axis is the one that devices share.

  Attributes:
    images: float32 `[examples, images, H, W, C]` in [-1, 1] or in latent units; two images are
      (preferred, rejected), one is an image without preference.
    input_ids: int32 `[examples, L]`, the caption's tokens.
    example_id: uint32 `[examples]`, the identity that random draws derive from.
    label: float32 `[examples]` in [0, 1], probability that the first image of a pair is the
      preferred one; None: it is.
    weight: float32 `[examples]`, >= 0, what the loss of an example is multiplied by; None: 1.
      Nothing divides by the sum of the weights: twice the weights are twice the loss.
  """

  images: jax.Array
  input_ids: jax.Array
  example_id: jax.Array
  label: jax.Array | None = None
  weight: jax.Array | None = None


class Networks(NamedTuple):
  """The forward functions of a pipeline.

  Attributes:
    unet: `(params, noisy [B, H, W, C], timesteps [B], context [B, L, D]) -> [B, H, W, C]`.
    text_encoder: `(params, input_ids [B, L])` -> an object with `last_hidden_state [B, L, D]`.
  """

  unet: Callable[..., jax.Array]
  text_encoder: Callable[..., Any]


class Draws(NamedTuple):
  """The random quantities of a batch; an example's images share all of them.

  Attributes:
    timesteps: int32 `[examples]`.
    noise: float32 `[examples, H, W, C]`, standard normal.
    dropped: bool `[examples]`, whether the caption is replaced by the empty one.
  """

  timesteps: jax.Array
  noise: jax.Array
  dropped: jax.Array


def draw(
  seed: int, step: jax.Array, batch: Batch, timesteps: Callable, caption_dropout: float
) -> Draws:
  """Timestep, noise and caption dropout of each example, from (seed, step, example id) alone.

  They do not depend on an example's place in the batch, on the number of devices, or on when the
  run was resumed. Only a stratified timestep sampler looks at the batch as a whole.

  Args:
    seed: The run's seed.
    step: int32 scalar.
    batch: The examples.
    timesteps: `(step key, example keys [examples]) -> int32 [examples]`.
    caption_dropout: Probability of dropping a caption.

  Returns:
    `Draws`.
  """
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(step_key, i), 3))(batch.example_id)
  shape = batch.images.shape[2:]
  return Draws(
    timesteps=timesteps(step_key, keys[:, 0]),
    noise=jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 1]),
    dropped=jax.vmap(lambda key: jax.random.bernoulli(key, caption_dropout))(keys[:, 2]),
  )


def image_errors(
  networks: Networks,
  schedule: diffusion.Schedule,
  params: Params,
  batch: Batch,
  draws: Draws,
  null_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Denoising error of each image under one set of parameters, and what it is the square of.

      R = f(x_t, t, c) - target,   e = mean(R²),   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) ε

  Args:
    networks: Forward functions.
    schedule: Noise schedule; its prediction type says what the target is.
    params: Parameters of all components.
    batch: The examples.
    draws: Their timesteps, noise and caption dropout.
    null_ids: int32 `[L]`, the tokens of the empty caption.

  Returns:
    errors: float32 `[examples, images]`.
    residuals: R, float32 `[examples, images, H, W, C]`; compiled, it costs nothing where it is not
      used.
  """
  examples, images = batch.images.shape[:2]

  def per_image(x: jax.Array) -> jax.Array:  # [examples, ...] -> [examples * images, ...]
    return jnp.repeat(x, images, axis=0, total_repeat_length=examples * images)

  ids = jnp.where(draws.dropped[:, None], null_ids[None], batch.input_ids)
  context = networks.text_encoder(params["text_encoder"], ids).last_hidden_state  # [N, L, D]
  clean = batch.images.reshape(examples * images, *batch.images.shape[2:])  # [B, H, W, C]
  noise, t = per_image(draws.noise), per_image(draws.timesteps)
  noisy = diffusion.add_noise(schedule, clean, noise, t)  # [B, H, W, C]
  prediction = networks.unet(params["unet"], noisy, t, per_image(context))  # [B, H, W, C]
  target = diffusion.target(schedule, clean, noise, t)  # [B, H, W, C]
  errors = losses.denoising_error(prediction, target).reshape(examples, images)
  residuals = prediction.astype(jnp.float32) - target
  return errors, residuals.reshape(batch.images.shape)


def pair_up(kind: type, policy: jax.Array, reference: jax.Array | None) -> NamedTuple:
  """What both networks found on winners and losers, as four arrays `[examples, ...]`.

  Args:
    kind: `losses.PairErrors` or `losses.Residuals`.
    policy: `[examples, images, ...]`, the images being (preferred, rejected) or one.
    reference: The same of the frozen reference, or None without one. No gradient passes.
  """

  def column(found: jax.Array | None, i: int) -> jax.Array | None:
    return found[:, i] if found is not None and i < found.shape[1] else None

  if reference is not None:
    reference = jax.lax.stop_gradient(reference)
  return kind(
    policy_w=column(policy, 0),
    policy_l=column(policy, 1),
    reference_w=column(reference, 0),
    reference_l=column(reference, 1),
  )


class Objective(NamedTuple):
  """All that fixes the loss of a batch but parameters, batch and step."""

  networks: Networks
  schedule: diffusion.Schedule
  loss: Loss
  timesteps: Callable
  caption_dropout: float
  seed: int
  null_ids: jax.Array

  def __call__(
    self, trained: Params, frozen: Params, reference: Params | None, batch: Batch, step: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of each example, and what is worth watching.

    Args:
      trained: Parameters of the components that are trained.
      frozen: Parameters of the others.
      reference: Frozen copies of the trained components, or None for a loss without reference.
      batch: The examples.
      step: int32 scalar.

    Returns:
      loss: float32 `[examples]`, weights included.
      metrics: float32 `[examples]` each: the loss, the errors of the first image (w) and the second
        (l), the objective's diagnostics, and labels and weights where there are any. Only the loss
        is weighted.
    """
    draws = draw(self.seed, step, batch, self.timesteps, self.caption_dropout)

    def evaluate(params: Params) -> tuple[jax.Array, jax.Array]:
      everything = {**frozen, **params}
      return image_errors(self.networks, self.schedule, everything, batch, draws, self.null_ids)

    policy = evaluate(trained)
    frozen_policy = (None, None) if reference is None else evaluate(reference)
    pairs = pair_up(losses.PairErrors, policy[0], frozen_policy[0])
    inputs = (pairs,)
    if losses.facts(self.loss).residuals:
      inputs += (pair_up(losses.Residuals, policy[1], frozen_policy[1]),)
    if batch.label is None:
      loss, diagnostics = self.loss(*inputs)
    else:
      loss, diagnostics = losses.expected(self.loss, pairs, batch.label, *inputs[1:])
    if batch.weight is not None:
      loss = batch.weight * loss
    metrics = {"loss": loss, **pairs._asdict(), **diagnostics._asdict()}
    metrics |= {"label": batch.label, "weight": batch.weight}
    return loss, {name: value for name, value in metrics.items() if value is not None}
