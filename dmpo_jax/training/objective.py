"""From parameters and a batch to the loss of each example: where networks meet losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmpo_jax import losses, models, pipelines
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import Conditioning, Params, Text, TextToImage
from dmpo_jax.sampling import to_floats
from dmpo_jax.training import reference as references
from dmpo_jax.training.batch import (
  Batch,
  EditDropout,
  NoiseSample,
  flipped_labels,
  sample_noise,
  sample_posterior_noise,
  sample_timesteps,
)

# Compiler options of every program that contains an objective. XLA may keep float32 between
# bfloat16 operations, and does so where it fuses them, which differs between a forward whose
# intermediate results a gradient needs and the reference's. Without that, and with the barriers of
# models.remat.checkpoint_name, policy and reference round alike: the logit of a tiny network at
# policy = reference and beta 5000 has a standard deviation of 0.0001 in place of 2.5 (remat "dots")
# and 0.4 ("full").
EXACT_ROUNDING = {"xla_allow_excess_precision": False}

# (errors) or (errors, residuals), as its requirements say -> (loss [examples], diagnostics)
Loss = Callable[..., tuple[jax.Array, losses.Diagnostics]]


def clean_samples(
  pipeline: TextToImage, params: Params, batch: Batch, seed: int, step: jax.Array
) -> jax.Array:
  """x_0 of each image, without gradient: its pixels, or latents sampled from its posterior.

      x_0 = scale(mean + exp(log_variance / 2) ε'),   mean, log_variance = posterior(image)

  Args:
    pipeline: The networks.
    params: Parameters of all components; the autoencoder's are not needed for cached latents.
    batch: The examples, in pixels or as cached latents.
    seed: The run's seed.
    step: int32 scalar.

  Returns:
    float32 `[examples, images, h, w, Z]`.
  """
  if batch.latents is not None:
    images = batch.latents.shape[1]
    cached = batch.latents.reshape(-1, *batch.latents.shape[2:])  # [B, 2, h, w, Z]
    posterior = models.Posterior(cached[:, 0], cached[:, 1])
  else:
    images = batch.pixels.shape[1]
    pixels = to_floats(batch.pixels)
    if pipeline.posterior is None:
      return pixels
    posterior = pipeline.posterior(params, pixels.reshape(-1, *pixels.shape[2:]))  # [B, H, W, C]
  posterior = models.Posterior(*(x.astype(jnp.float32) for x in posterior))  # [B, h, w, Z]
  shape = posterior.mean.shape
  noise = sample_posterior_noise(seed, step, batch, images, shape[1:])
  latents = models.sample_latents(posterior, noise.reshape(shape))
  return jax.lax.stop_gradient(pipeline.scale(latents)).reshape(noise.shape)


def clean_source(pipeline: TextToImage, params: Params, batch: Batch) -> jax.Array | None:
  """The source image of each example as its denoiser reads it, without gradient.

  Args:
    pipeline: The networks.
    params: Parameters of all components; the autoencoder's are not needed for cached latents.
    batch: The examples, in pixels or as cached latents.

  Returns:
    float32 `[examples, h, w, Z]`, the mode of the source's posterior in the autoencoder's own units
    (pixels without an autoencoder); None where the pipeline edits no images.

  Raises:
    InputError: The batch has no source images and the pipeline edits some, or the reverse.
  """
  exists = batch.source is not None or batch.source_latents is not None
  if exists != (pipeline.encode_source is not None):
    raise InputError(
      "the examples have source images, and the pipeline edits none"
      if exists
      else "the pipeline edits images, and the examples have no source images"
    )
  if not exists:
    return None
  if batch.source_latents is not None:
    return batch.source_latents.astype(jnp.float32)
  return jax.lax.stop_gradient(pipeline.encode_source(params, to_floats(batch.source)))


def conditioning(
  pipeline: TextToImage,
  params: Params,
  batch: Batch,
  sample: NoiseSample,
  null_text: Text | None,
  source: jax.Array | None = None,
) -> Conditioning:
  """The denoiser's conditioning on each example, with dropped captions and sources replaced.

  Args:
    pipeline: The networks.
    params: Parameters of all components; the text encoders' are not needed for cached embeddings.
    batch: The examples.
    sample: Which captions and sources are dropped.
    null_text: The empty caption in the form of `batch.text`, without the first axis; None: a
      dropped caption conditions on zeros.
    source: From `clean_source`; a dropped one is zeros.

  Returns:
    Arrays `[examples, ...]` by name.
  """

  def drop(x: jax.Array, null: jax.Array, dropped=sample.dropped) -> jax.Array:
    # [examples, ...], [...], [examples]
    return jnp.where(dropped.reshape(-1, *[1] * (x.ndim - 1)), null[None], x)

  text = batch.text
  if null_text is not None:
    text = {name: drop(x, null_text[name]) for name, x in text.items()}
  encoded = pipeline.encode_text(params, text)
  if null_text is None:
    encoded = jax.tree.map(lambda x: drop(x, jnp.zeros_like(x[0])), encoded)
  if source is not None and sample.source_dropped is not None:
    source = drop(source, jnp.zeros_like(source[0]), sample.source_dropped)
  return pipeline.condition(encoded, batch.geometry, source)


def image_errors(
  pipeline: TextToImage,
  params: Params,
  batch: Batch,
  x0: jax.Array,
  sample: NoiseSample,
  null_text: Text | None,
  source: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Denoising error of each image under one set of parameters, and the residual it comes from.

      R = denoise(x_t, t, c) - target,   e = mean(R²),   x_t = add_noise(x_0, ε, t)

  Args:
    pipeline: Networks and noise process.
    params: Parameters of all components.
    batch: The examples.
    x0: Their clean samples, float32 `[examples, images, h, w, Z]`.
    sample: Their timesteps, noise and dropout.
    null_text: The empty caption, see `conditioning`.
    source: Their source images, from `clean_source`.

  Returns:
    errors: float32 `[examples, images]`.
    residuals: R, float32 `[examples, images, h, w, Z]`; compiled, it costs nothing where it is not
      used.
  """
  examples, images = x0.shape[:2]

  def per_image(x: jax.Array) -> jax.Array:  # [examples, ...] -> [examples * images, ...]
    # Not jnp.repeat: its gather makes the partitioner all-gather the batch.
    shape = (examples, images, *x.shape[1:])
    return jnp.broadcast_to(x[:, None], shape).reshape(examples * images, *x.shape[1:])

  conditions = conditioning(pipeline, params, batch, sample, null_text, source)
  conditions = jax.tree.map(per_image, conditions)
  clean = x0.reshape(examples * images, *x0.shape[2:])  # [B, h, w, Z]
  own = sample.noise.ndim == x0.ndim  # each image has its own noise
  noise = sample.noise.reshape(clean.shape) if own else per_image(sample.noise)
  t = per_image(sample.timesteps)
  noisy = pipeline.process.add_noise(clean, noise, t)  # [B, h, w, Z]
  prediction = pipeline.denoise(params, noisy, t, conditions)  # [B, h, w, Z]
  target = pipeline.process.target(clean, noise, t)  # [B, h, w, Z]
  errors = losses.denoising_error(prediction, target).reshape(examples, images)
  residuals = prediction.astype(jnp.float32) - target
  return errors, residuals.reshape(x0.shape)


def pair_up(kind: type, policy: jax.Array, reference: jax.Array | None) -> NamedTuple:
  """Errors or residuals of policy and reference as four arrays `[examples, ...]`.

  Args:
    kind: `losses.PairErrors` or `losses.Residuals`.
    policy: `[examples, images, ...]`, the images being (preferred, rejected) or one.
    reference: The same of the reference, or None without one. No gradient passes.
  """

  def column(x: jax.Array | None, i: int) -> jax.Array | None:
    return x[:, i] if x is not None and i < x.shape[1] else None

  if reference is not None:
    reference = jax.lax.stop_gradient(reference)
  return kind(
    policy_w=column(policy, 0),
    policy_l=column(policy, 1),
    reference_w=column(reference, 0),
    reference_l=column(reference, 1),
  )


def replace(frozen: Params, trained: Params) -> Params:
  """Parameters of all components, where whole components are trained."""
  return {**frozen, **trained}


def adapt(frozen: Params, trained: Params, *, alpha: float) -> Params:
  """Parameters of all components, where LoRAs of some are trained; see `models.lora.merge`."""
  merged = {
    name: models.lora.merge(frozen[name], lora, alpha=alpha) for name, lora in trained.items()
  }
  return {**frozen, **merged}


class Objective(NamedTuple):
  """The training objective: everything that fixes the loss of a batch but parameters and step.

      loss = objective(trained, frozen, reference, batch, step)
           = loss_of(batch, *evaluate(trained, frozen, reference, batch, step)),  batch prepared

  With gradient accumulation, `prepare` takes the whole batch, `evaluate` one microbatch, and
  `loss_of` the results of the whole batch again.

  Three arguments recur. `trained` holds whole components, or LoRAs of some. `frozen` holds the
  parameters of the other components; with LoRA, of all. `reference` holds what the reference has in
  place of the trained components: copies of them; with LoRA nothing ({}), or LoRAs of its own where
  it moves; None for a loss without reference.

  Attributes:
    pipeline: Networks and noise process.
    loss: The loss over errors, its hyperparameters bound.
    timestep_sampler: `(step key, example keys [examples]) -> t [examples]`.
    caption_dropout: Probability of dropping a caption, where the pipeline edits no images.
    seed: The run's seed.
    null_text: The empty caption, see `conditioning`.
    combine: (frozen, trained) -> the parameters of all components.
    recompute: Whether a forward as a whole is rematerialised for its gradient, so that policy and
      reference are the same program and round alike where nothing else makes them.
    weights: t -> w_t, factor of the errors at a timestep; None: 1.
    label_flip_rate: Probability that the images of a pair are swapped.
    beta_factor: `(score gap [examples] or None, step) -> factor of beta`; None: 1.
    starts_at_reference: Whether the policy of step 0 is the reference, as in a run. Its errors then
      are the reference's too, so that every logit is exactly 0; two programs that compute them
      would differ by rounding, which beta multiplies. The same holds after each copy of the policy
      into the reference.
    reference_update: How the reference moves.
    edit_dropout: Probabilities of dropping caption and source, where the pipeline edits images.
  """

  pipeline: TextToImage
  loss: Loss
  timestep_sampler: Callable
  caption_dropout: float
  seed: int
  null_text: Text | None
  combine: Callable[[Params, Params], Params] = replace
  recompute: bool = False
  weights: Callable[[jax.Array], jax.Array] | None = None
  label_flip_rate: float = 0.0
  beta_factor: Callable[[jax.Array | None, jax.Array], jax.Array] | None = None
  starts_at_reference: bool = False
  reference_update: references.ReferenceUpdate = references.FROZEN
  edit_dropout: EditDropout = EditDropout()

  def __call__(
    self, trained: Params, frozen: Params, reference: Params | None, batch: Batch, step: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of each example.

    Args:
      trained: Trained components or LoRAs.
      frozen: Parameters that are not trained.
      reference: The reference's components, or None.
      batch: The examples.
      step: int32 scalar.

    Returns:
      loss: float32 `[examples]`, weights included.
      metrics: float32 `[examples]` each: the loss, the errors of the first image (w) and the second
        (l), the loss's diagnostics, and labels and weights where there are any. Only the loss is
        weighted, and the diagnostics are those of the errors that timestep weights multiply.
    """
    batch = self.prepare(batch, step)
    return self.loss_of(batch, *self.evaluate(trained, frozen, reference, batch, step))

  def prepare(self, batch: Batch, step: jax.Array) -> Batch:
    """The batch with geometry, timesteps and label flips, which are sampled for all of it at once.

    Args:
      batch: The examples of all devices.
      step: int32 scalar.
    """
    if batch.geometry is None and batch.pixels is not None:
      row = jnp.asarray(pipelines.geometry(batch.pixels.shape[2:4]))
      batch = batch._replace(geometry=jnp.tile(row, (batch.pixels.shape[0], 1)))
    if batch.timesteps is None:
      timesteps = sample_timesteps(self.seed, step, batch, self.timestep_sampler)
      batch = batch._replace(timesteps=timesteps)
    if self.label_flip_rate:
      flipped = flipped_labels(self.seed, batch, self.label_flip_rate)

      def flip(images: jax.Array | None) -> jax.Array | None:
        if images is None:
          return None
        return jnp.where(flipped.reshape(-1, *[1] * (images.ndim - 1)), images[:, ::-1], images)

      images = {name: flip(getattr(batch, name)) for name in ("pixels", "latents", "seeds")}
      batch = batch._replace(**images)
    if self.beta_factor is not None:
      factor = self.beta_factor(batch.score_gap, step)
      batch = batch._replace(beta_factor=jnp.broadcast_to(factor, batch.example_id.shape))
    return batch

  def evaluate(
    self, trained: Params, frozen: Params, reference: Params | None, batch: Batch, step: jax.Array
  ) -> tuple[losses.PairErrors, losses.Residuals | None]:
    """Errors and residuals of policy and reference on a prepared batch or microbatch.

    Args:
      trained: Trained components or LoRAs.
      frozen: Parameters that are not trained.
      reference: The reference's components, or None.
      batch: From `prepare`, or some rows of it.
      step: int32 scalar.

    Returns:
      errors: float32 `[examples]`, not weighted.
      residuals: float32 `[examples, h, w, Z]`; None where the loss takes none.
    """
    x0 = clean_samples(self.pipeline, frozen, batch, self.seed, step)
    source = clean_source(self.pipeline, frozen, batch)
    dropout = self.caption_dropout if source is None else self.edit_dropout
    sample = sample_noise(self.seed, step, batch, x0.shape[2:], dropout)

    count = 2 if losses.requirements(self.loss).residuals else 1

    def evaluate(params: Params) -> tuple[jax.Array, ...]:
      errors = image_errors(self.pipeline, params, batch, x0, sample, self.null_text, source)
      return errors[:count]

    if self.recompute:
      evaluate = jax.checkpoint(evaluate)
    policy, unchanged = evaluate(self.combine(frozen, trained)), (None,) * count
    if reference is not None:
      unchanged = evaluate(self.combine(frozen, reference))
      if self.starts_at_reference:
        # The barrier makes them the same numbers wherever they are used.
        policy = jax.lax.optimization_barrier(policy)
        equal = self.reference_update.is_policy(step)
        unchanged = jax.tree.map(lambda r, e: jnp.where(equal, e, r), unchanged, policy)
    kinds = (losses.PairErrors, losses.Residuals)[:count]
    pairs = [pair_up(*columns) for columns in zip(kinds, policy, unchanged, strict=True)]
    return pairs[0], pairs[1] if count == 2 else None

  def loss_of(
    self, batch: Batch, pairs: losses.PairErrors, residuals: losses.Residuals | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of each example from its errors, as a call returns them.

        e <- w_t s e,  R <- sqrt(w_t s) R,   s the factor of beta

    Args:
      batch: The prepared batch.
      pairs: Its errors.
      residuals: Its residuals, where the loss takes them.

    Returns:
      (loss, metrics).
    """
    errors, weights = pairs, None
    if self.weights is not None:
      weights = self.weights(batch.timesteps)
    if batch.beta_factor is not None:
      weights = batch.beta_factor * (1.0 if weights is None else weights)
    if weights is not None:
      errors = jax.tree.map(lambda e: weights * e, pairs)
      root = jnp.sqrt(weights)[:, None, None, None]
      residuals = jax.tree.map(lambda r: root * r, residuals)
    inputs = (errors,) if residuals is None else (errors, residuals)
    if batch.label is None:
      loss, diagnostics = self.loss(*inputs)
    else:
      loss, diagnostics = losses.soft_label_loss(self.loss, errors, batch.label, *inputs[1:])
    if batch.weight is not None:
      loss = batch.weight * loss
    metrics = {"loss": loss, **pairs._asdict(), **diagnostics._asdict()}
    metrics |= {"label": batch.label, "weight": batch.weight}
    return loss, {name: value for name, value in metrics.items() if value is not None}
