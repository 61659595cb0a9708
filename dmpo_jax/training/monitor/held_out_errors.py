"""Denoising errors of policy and reference on held-out pairs, by timestep; margin and accuracy.

Every evaluation uses the same pairs, noise and timesteps. Two evaluations therefore differ by the
parameters alone, and policy and reference are compared pair by pair.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dmpo_jax import losses
from dmpo_jax.parallel import sharding
from dmpo_jax.training.batch import Batch, NoiseSample
from dmpo_jax.training.objective import (
  EXACT_ROUNDING,
  Loss,
  Objective,
  Params,
  clean_samples,
  clean_source,
  image_errors,
)

# Noise and timesteps derive from this seed and the example ids: equal in runs with other seeds.
SEED = 20_231_121


class Thresholds(NamedTuple):
  """Thresholds of the alarms, of config.health.

  Attributes:
    rise: Standard errors beyond which a rise of the preferred image's error counts. Without a true
      rise the mean of 64 pairs exceeds three about once in 500 evaluations.
    saturated: Fraction of saturated pairs.
    saturated_factor: Fraction of its initial gradient factor below which a pair is saturated.
    drift: Mean change of the errors relative to their mean.
  """

  rise: float = 3.0
  saturated: float = 0.9
  saturated_factor: float = 0.05
  drift: float = 0.5


DEFAULT = Thresholds()


class HeldOutErrors(NamedTuple):
  """Denoising errors of policy and reference on the held-out examples.

  Attributes:
    policy: Errors of the policy, float32 `[bins, examples, images]`.
    start: Errors of the initial pipeline, of the same shape.
    weights: The loss's weights of these errors at the sampled timesteps, float32
      `[bins, examples]`.
    moving: Errors of a reference that moves, as it is now; None: it is the initial pipeline.
  """

  policy: np.ndarray
  start: np.ndarray
  weights: np.ndarray
  moving: np.ndarray | None = None

  @property
  def reference(self) -> np.ndarray:
    """Errors of the reference that the loss takes."""
    return self.start if self.moving is None else self.moving


def make_errors(
  objective: Objective, mesh: Mesh, bins: int
) -> Callable[[Params, Params, Batch], tuple[jax.Array, jax.Array]]:
  """Returns the compiled function that computes the errors of a batch of held-out examples.

  Each example gets one timestep per bin with noise of its own, derived from its id. Captions and
  source images are not dropped.

  Args:
    objective: Training objective.
    mesh: Devices; the work is sharded as the arguments are.
    bins: Number of timestep bins of equal length.

  Returns:
    `(trained, frozen, batch) -> (errors, weights)`, float32 `[bins, examples, images]` and
    `[bins, examples]`, replicated; see `HeldOutErrors`. The same compiled function must serve
    policy and reference, so that equal parameters give equal errors.
  """
  pipeline = objective.pipeline
  edges = jnp.asarray(pipeline.process.bins(bins))

  def errors(trained: Params, frozen: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    step = jnp.zeros((), jnp.int32)
    batch = objective._replace(label_flip_rate=0.0).prepare(batch, step)
    x0 = clean_samples(pipeline, frozen, batch, SEED, step)
    source = clean_source(pipeline, frozen, batch)
    params = objective.combine(frozen, trained)
    shape = x0.shape[2:]

    def sample(example_id: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), example_id), i)
      timestep_key, noise_key = jax.random.split(key)
      timestep = pipeline.process.sample_between(timestep_key, edges[i], edges[i + 1])
      return timestep, jax.random.normal(noise_key, shape)

    def in_bin(i: jax.Array) -> tuple[jax.Array, jax.Array]:
      timesteps, noise = jax.vmap(sample, in_axes=(0, None))(batch.example_id, i)
      noise_sample = NoiseSample(timesteps, noise, jnp.zeros(timesteps.shape, bool))
      errors, _ = image_errors(
        pipeline, params, batch, x0, noise_sample, objective.null_text, source
      )
      weights = objective.weights or (lambda t: jnp.ones(t.shape, jnp.float32))
      return errors, weights(timesteps)  # [examples, images], [examples]

    return jax.lax.map(in_bin, jnp.arange(bins))

  return jax.jit(errors, out_shardings=sharding.replicated(mesh), compiler_options=EXACT_ROUNDING)


def measure(
  errors: Callable, trained: Params, frozen: Params, batches: Sequence[Batch]
) -> tuple[np.ndarray, np.ndarray]:
  """Computes errors and weights of all held-out examples under one set of parameters.

  Args:
    errors: Result of `make_errors`.
    trained: Trained parameters, see `Objective`.
    frozen: Parameters that are not trained.
    batches: The examples, on the devices.

  Returns:
    (errors, weights), float32 `[bins, examples, images]` and `[bins, examples]`.
  """
  results = [jax.device_get(errors(trained, frozen, batch)) for batch in batches]
  return tuple(np.concatenate(arrays, axis=1) for arrays in zip(*results, strict=True))


def summarise(
  errors: HeldOutErrors, loss: Loss, edges: np.ndarray, thresholds: Thresholds = DEFAULT
) -> dict[str, Any]:
  """Returns the metrics record of an evaluation, over all timesteps and by bin.

      change_w = mean(e_w - s_w),   change_l = mean(e_l - s_l),   s the initial pipeline's errors
      margin = mean((e_l - s_l) - (e_w - s_w)),   accuracy = fraction of pairs with margin > 0
      gradient factor = mean(-d loss/d z),   z the loss's logit
      saturation = fraction with |d loss/d z| < saturated_factor · its value at policy = reference
      drift = mean |e - s| / mean s,   with a reference that moves mean |r - s| / mean s

  Args:
    errors: Errors of pairs, or of single images, which have preferred images only.
    loss: The loss, for its logit and gradient factor.
    edges: Edges of the timestep bins, `[bins + 1]`, see `diffusion.Process.bins`.
    thresholds: Those of the alarms.

  Returns:
    preferred, preferred_reference, preferred_change and its standard error preferred_change_se, the
    same of the rejected image; margin, accuracy (a tie counts 1/2); drift; logit, gradient_factor
    and saturation if the loss has them; the alarms preferred_rises, drifts and saturates, 1 where
    they are on, else 0; and "bins", a list of the same metrics without alarms, with "from" and
    "to", the first and last timestep of the bin.
  """
  images = errors.policy.shape[2]
  change = errors.policy - errors.start  # [bins, examples, images]
  drift = change if errors.moving is None else errors.moving - errors.start
  per_pair = _logit_and_gradient_factor(loss, errors) if images == 2 else {}
  if per_pair:
    equal = _logit_and_gradient_factor(loss, errors._replace(policy=errors.reference))
    limit = thresholds.saturated_factor * np.abs(equal["gradient_factor"])
    per_pair["saturation"] = np.abs(per_pair["gradient_factor"]) < limit

  def means(part: slice) -> dict[str, float]:
    metrics = {}
    for i, name in enumerate(("preferred", "rejected")[:images]):
      # Timesteps of one pair are not independent: the standard error is over pairs.
      by_pair = change[part, :, i].mean(0)  # [examples]
      metrics[name] = errors.policy[part, :, i].mean()
      metrics[f"{name}_reference"] = errors.start[part, :, i].mean()
      metrics[f"{name}_change"] = by_pair.mean()
      metrics[f"{name}_change_se"] = _standard_error(by_pair)
    if images == 2:
      margin = change[part, :, 1] - change[part, :, 0]
      metrics["margin"] = margin.mean()
      metrics["accuracy"] = np.where(margin == 0, 0.5, margin > 0).mean()
    metrics["drift"] = np.abs(drift[part]).mean() / errors.start[part].mean()
    metrics |= {name: value[part].mean() for name, value in per_pair.items()}
    return {name: float(value) for name, value in metrics.items()}

  record = means(slice(None))
  rise = record["preferred_change"], record["preferred_change_se"]
  record["preferred_rises"] = float(rises(*rise, thresholds.rise))
  record["drifts"] = float(not record["drift"] <= thresholds.drift)
  if per_pair:
    record["saturates"] = float(record["saturation"] > thresholds.saturated)
  record["bins"] = [
    {"from": first, "to": last, **means(slice(i, i + 1))}
    for i, (first, last) in enumerate(bin_ranges(edges))
  ]
  return record


def bin_ranges(edges: np.ndarray) -> list[tuple[float, float]]:
  """First and last time of each bin; an integer edge belongs to the next bin."""
  last = 1 if np.issubdtype(edges.dtype, np.integer) else 0
  return [(a.item(), b.item() - last) for a, b in itertools.pairwise(edges)]


def rises(change: float, standard_error: float, rise: float = DEFAULT.rise) -> bool:
  """Returns True if the preferred image's error exceeds the initial pipeline's significantly.

      mean(e_w - s_w) > rise · std(e_w - s_w) / sqrt(pairs)

  NaN counts as a rise.
  """
  return not change <= rise * standard_error


def _standard_error(values: np.ndarray) -> float:
  return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def has_gradient_factor(loss: Loss) -> bool:
  """Whether records have the logit, the gradient factor and the saturation of a loss."""
  return _loss_of_logit(loss) is not None


def _loss_of_logit(loss: Loss) -> Loss | None:
  """The loss, or its base, that is a function of the errors alone; None without one."""
  needs = losses.requirements(loss)
  while needs.residuals and "base" in loss.keywords:
    loss = loss.keywords["base"]
    needs = losses.requirements(loss)
  return None if needs.residuals or not needs.rejected else loss


def _logit_and_gradient_factor(loss: Loss, errors: HeldOutErrors) -> dict[str, np.ndarray]:
  """Logit and gradient factor of each pair in each bin, `[bins, examples]`.

      d loss/dz = (d loss/de_l) / (dz/de_l)

  For a loss that is not a function of the logit alone (`kto`, `mapo`) this is the part that reaches
  the rejected image. A wrapper (`sdpo`) has the factor of its base. A loss without rejected images
  has neither, nor has `dspo`, which needs more than the errors.
  """
  loss = _loss_of_logit(loss)
  if loss is None:
    return {}

  def flat(values: np.ndarray) -> jax.Array:
    return jnp.asarray((errors.weights * values).reshape(-1))

  pairs = losses.PairErrors(
    policy_w=flat(errors.policy[..., 0]),
    policy_l=flat(errors.policy[..., 1]),
    reference_w=flat(errors.reference[..., 0]),
    reference_l=flat(errors.reference[..., 1]),
  )

  # The first process alone calls this, so the computation must not span other processes' devices.
  with jax.default_device(jax.local_devices()[0]):
    results = _differentiate(loss, pairs)
  shape = errors.policy.shape[:2]
  return {name: np.asarray(value).reshape(shape) for name, value in results.items()}


@functools.partial(jax.jit, static_argnums=0)
def _differentiate(loss: Loss, pairs: losses.PairErrors) -> dict[str, jax.Array]:
  def sums(policy_l: jax.Array) -> tuple[jax.Array, jax.Array]:
    per_pair, diagnostics = loss(pairs._replace(policy_l=policy_l))
    return jnp.stack([jnp.sum(per_pair), jnp.sum(diagnostics.logit)]), diagnostics.logit

  # Sums give each pair's own derivative: batch statistics stop the gradient between pairs.
  (d_loss, d_logit), logit = jax.jacrev(sums, has_aux=True)(pairs.policy_l)
  return {"logit": logit, "gradient_factor": -d_loss / d_logit}
