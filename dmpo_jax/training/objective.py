"""From parameters and a batch to the loss of each example: where networks meet objectives."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax import diffusion, losses, models
from dmpo_jax.pipelines.stable_diffusion import Conditioning, Networks, size_ids
from dmpo_jax.sampling import to_floats
from dmpo_jax.training.batch import (
  Batch,
  Draws,
  draw,
  draw_encodings,
  draw_timesteps,
  misjudged,
)

Params = Mapping[str, Any]

# Compiler options for whoever compiles an objective. XLA may keep float32 between operations that
# are asked for in bfloat16, and does so where it fuses them, which differs between a forward whose
# intermediate results a gradient needs and the reference's. Every rounding is done, then. With what
# models.remat.checkpoint_name does beside it, the logit of a tiny network at policy = reference and
# beta 5000 had a standard deviation of 0.0001 in place of 2.5 (remat "dots") and of 0.4 ("full").
ROUNDING = {"xla_allow_excess_precision": False}

# (errors) or (errors, residuals), as its requirements say -> (loss [examples], diagnostics)
Loss = Callable[..., tuple[jax.Array, losses.Diagnostics]]


def encode_images(
  networks: Networks, params: Params, batch: Batch, seed: int, step: jax.Array
) -> Batch:
  """The batch with what is denoised in the place of its images; no gradient passes.

      x_0 = scale(mean + exp(log_variance / 2) ε'),   mean, log_variance = encode(image)

  Args:
    networks: Forward functions; without `moments` the images themselves are denoised.
    params: Parameters of all components; those of the autoencoder are not needed for moments.
    batch: The examples, in pixels or as moments.
    seed: The run's seed.
    step: int32 scalar.

  Returns:
    The batch with images `[examples, images, h, w, Z]`, float32.
  """
  if batch.images.ndim == 6:
    flat = batch.images.reshape(-1, *batch.images.shape[2:])  # [B, 2, h, w, Z]
    moments = (flat[:, 0], flat[:, 1])
  else:
    batch = batch._replace(images=to_floats(batch.images))
    if networks.moments is None:
      return batch
    pixels = batch.images.reshape(-1, *batch.images.shape[2:])  # [B, H, W, C]
    moments = networks.moments(params, pixels)
  moments = models.Moments(*(m.astype(jnp.float32) for m in moments))  # [B, h, w, Z]
  noise = draw_encodings(seed, step, batch, moments.mean.shape[1:])
  latents = models.draw_latents(moments, noise.reshape(moments.mean.shape))
  latents = jax.lax.stop_gradient(networks.scale(latents))
  return batch._replace(images=latents.reshape(noise.shape))


def image_errors(
  networks: Networks,
  schedule: diffusion.Schedule,
  params: Params,
  batch: Batch,
  draws: Draws,
  null_ids: tuple[jax.Array, ...] | None,
  null_text: Conditioning | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Denoising error of each image under one set of parameters, and what it is the square of.

      R = f(x_t, t, c) - target,   e = mean(R²),   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) ε

  Args:
    networks: Forward functions.
    schedule: Noise schedule; its prediction type says what the target is.
    params: Parameters of all components.
    batch: The examples; images in the units of the UNet.
    draws: Their timesteps, noise and caption dropout.
    null_ids: int32 `[L]` for each text encoder, the tokens of the empty caption; None: of a dropped
      caption the UNet is told zeros.
    null_text: What the text encoders gave for the empty caption, `[L, D]` and perhaps `[P]`, for a
      batch that has embeddings; with null_ids None it is not used either.

  Returns:
    errors: float32 `[examples, images]`.
    residuals: R, float32 `[examples, images, H, W, C]`; compiled, it costs nothing where it is not
      used.
  """
  examples, images = batch.images.shape[:2]

  def per_image(x: jax.Array) -> jax.Array:  # [examples, ...] -> [examples * images, ...]
    return jnp.repeat(x, images, axis=0, total_repeat_length=examples * images)

  told = _conditioning(networks, params, batch, draws.dropped, null_ids, null_text)
  context = per_image(told.pop("encoder_hidden_states"))  # [B, L, D]
  added = {name: per_image(x) for name, x in told.items()}
  clean = batch.images.reshape(examples * images, *batch.images.shape[2:])  # [B, H, W, C]
  noise, t = per_image(draws.noise), per_image(draws.timesteps)
  noisy = diffusion.add_noise(schedule, clean, noise, t)  # [B, H, W, C]
  prediction = networks.unet(params["unet"], noisy, t, context, **added)  # [B, H, W, C]
  target = diffusion.target(schedule, clean, noise, t)  # [B, H, W, C]
  errors = losses.denoising_error(prediction, target).reshape(examples, images)
  residuals = prediction.astype(jnp.float32) - target
  return errors, residuals.reshape(batch.images.shape)


def _conditioning(
  networks: Networks,
  params: Params,
  batch: Batch,
  dropped: jax.Array,
  null_ids: tuple[jax.Array, ...] | None,
  null_text: Conditioning | None,
) -> Conditioning:
  """What the UNet is told of each example's caption and, where it listens, sizes."""

  def drop(given: jax.Array, null: jax.Array | None) -> jax.Array:  # [examples, ...]
    null = jnp.zeros_like(given) if null is None else null[None]
    return jnp.where(dropped.reshape(-1, *[1] * (given.ndim - 1)), null, given)

  if batch.embeddings is not None:
    told = {"encoder_hidden_states": batch.embeddings, "text_embeds": batch.pooled}
    told = {k: x.astype(jnp.float32) for k, x in told.items() if x is not None}
    nulls = dict.fromkeys(told) if null_ids is None else null_text
    told = {name: drop(x, nulls[name]) for name, x in told.items()}
  else:
    ids = tuple(x for x in (batch.input_ids, batch.input_ids_2) if x is not None)
    if null_ids is not None:
      ids = tuple(drop(x, null) for x, null in zip(ids, null_ids, strict=True))
    told = dict(networks.text(params, ids))
    if null_ids is None:
      told = {name: drop(x, None) for name, x in told.items()}
  if "text_embeds" in told:
    told["time_ids"] = batch.time_ids
  return told


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


def replace(frozen: Params, trained: Params) -> Params:
  """All components' parameters, where whole components are trained."""
  return {**frozen, **trained}


def adapt(frozen: Params, trained: Params, *, alpha: float) -> Params:
  """All components' parameters, where LoRAs of some are trained; see `models.lora.merge`."""
  merged = {
    name: models.lora.merge(frozen[name], lora, alpha=alpha) for name, lora in trained.items()
  }
  return {**frozen, **merged}


class Objective(NamedTuple):
  """All that fixes the loss of a batch but parameters, batch and step.

      loss = objective(trained, frozen, reference, batch, step)
           = score(batch, *evaluate(trained, frozen, reference, batch, step)),  batch prepared

  The parts are there for who goes through a batch in pieces: `prepare` is given all of it, then
  `evaluate` any part, then `score` what was found on all of it.

  Attributes:
    networks: Forward functions.
    schedule: Noise schedule.
    loss: The objective over errors.
    timesteps: See `draw_timesteps`.
    caption_dropout: Probability of dropping a caption.
    seed: The run's seed.
    null_ids: See `image_errors`.
    combine: (frozen, trained) -> the parameters of all components.
    recompute: Whether a forward as a whole is computed again for its gradient, so that policy and
      reference are the same program and round alike where nothing else sees to it.
    weights: t -> w_t, what the errors at a timestep are multiplied by; None: 1.
    label_noise: Share of pairs whose images change places.
  """

  networks: Networks
  schedule: diffusion.Schedule
  loss: Loss
  timesteps: Callable
  caption_dropout: float
  seed: int
  null_ids: tuple[jax.Array, ...] | None
  combine: Callable[[Params, Params], Params] = replace
  null_text: Conditioning | None = None
  recompute: bool = False
  weights: Callable[[jax.Array], jax.Array] | None = None
  label_noise: float = 0.0

  def __call__(
    self, trained: Params, frozen: Params, reference: Params | None, batch: Batch, step: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of each example, and what is worth watching.

    Args:
      trained: What is trained: whole components, or LoRAs of some.
      frozen: Parameters of the other components, of all of them with LoRA.
      reference: What the reference has in the place of the frozen components: copies of the trained
        ones, or nothing ({}) with LoRA; None for a loss without reference.
      batch: The examples.
      step: int32 scalar.

    Returns:
      loss: float32 `[examples]`, weights included.
      metrics: float32 `[examples]` each: the loss, the errors of the first image (w) and the second
        (l), the objective's diagnostics, and labels and weights where there are any. Only the loss
        is weighted, and the diagnostics are those of the errors that timestep weights multiply.
    """
    batch = self.prepare(batch, step)
    return self.score(batch, *self.evaluate(trained, frozen, reference, batch, step))

  def prepare(self, batch: Batch, step: jax.Array) -> Batch:
    """The batch with sizes, timesteps and label noise, which are drawn for all of it at once."""
    if batch.time_ids is None:
      sizes = jnp.asarray(size_ids(batch.images.shape[2:4]))
      batch = batch._replace(time_ids=jnp.tile(sizes, (batch.images.shape[0], 1)))
    if batch.timesteps is None:
      drawn = draw_timesteps(self.seed, step, batch, self.timesteps)
      batch = batch._replace(timesteps=drawn)
    if self.label_noise:
      wrong = misjudged(self.seed, batch, self.label_noise)
      wrong = wrong.reshape(-1, *[1] * (batch.images.ndim - 1))
      batch = batch._replace(images=jnp.where(wrong, batch.images[:, ::-1], batch.images))
    return batch

  def evaluate(
    self, trained: Params, frozen: Params, reference: Params | None, batch: Batch, step: jax.Array
  ) -> tuple[losses.PairErrors, losses.Residuals | None]:
    """What policy and reference find on a prepared batch, or on a part of one.

    Args:
      trained: As for a call, and so are the next two.
      frozen: See there.
      reference: See there.
      batch: From `prepare`, or some rows of it.
      step: int32 scalar.

    Returns:
      errors: float32 `[examples]`, not weighted.
      residuals: float32 `[examples, H, W, C]`; None where the objective takes none.
    """
    batch = encode_images(self.networks, frozen, batch, self.seed, step)
    draws = draw(self.seed, step, batch, self.caption_dropout)

    def evaluate(params: Params) -> tuple[jax.Array, jax.Array]:
      nulls = (self.null_ids, self.null_text)
      return image_errors(self.networks, self.schedule, params, batch, draws, *nulls)

    if self.recompute:
      evaluate = jax.checkpoint(evaluate)
    policy = evaluate(self.combine(frozen, trained))
    frozen_policy = (None, None) if reference is None else evaluate({**frozen, **reference})
    pairs = pair_up(losses.PairErrors, policy[0], frozen_policy[0])
    if not losses.requirements(self.loss).residuals:
      return pairs, None
    return pairs, pair_up(losses.Residuals, policy[1], frozen_policy[1])

  def score(
    self, batch: Batch, pairs: losses.PairErrors, residuals: losses.Residuals | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of each example from what was found on it, as a call returns it.

        e <- w_t e,  R <- sqrt(w_t) R

    Args:
      batch: The prepared batch.
      pairs: Its errors.
      residuals: Its residuals, where the objective takes them.

    Returns:
      (loss, metrics).
    """
    counted, more = pairs, residuals
    if self.weights is not None:
      weights = self.weights(batch.timesteps)
      counted = jax.tree.map(lambda e: weights * e, pairs)
      root = jnp.sqrt(weights)[:, None, None, None]
      more = jax.tree.map(lambda r: root * r, residuals)
    inputs = (counted,) if more is None else (counted, more)
    if batch.label is None:
      loss, diagnostics = self.loss(*inputs)
    else:
      loss, diagnostics = losses.soft_label_loss(self.loss, counted, batch.label, *inputs[1:])
    if batch.weight is not None:
      loss = batch.weight * loss
    metrics = {"loss": loss, **pairs._asdict(), **diagnostics._asdict()}
    metrics |= {"label": batch.label, "weight": batch.weight}
    return loss, {name: value for name, value in metrics.items() if value is not None}
