"""The gradient of a batch's mean loss, in one pass or accumulated over microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax import losses
from dmpo_jax.errors import InputError
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.objective import Objective, Params

# (trained, frozen, reference, batch, step) -> (grads, metrics [examples])
Gradient = Callable[..., tuple[Params, dict[str, jax.Array]]]


def full_batch(objective: Callable) -> Gradient:
  """∇ mean_i loss_i over all examples in one pass.

  Args:
    objective: `(trained, frozen, reference, batch, step) -> (loss [examples], metrics)`.

  Returns:
    `(trained, frozen, reference, batch, step) -> (grads, metrics)`.
  """

  def gradient(trained, frozen, reference, batch, step):
    def mean_loss(trained):
      loss, metrics = objective(trained, frozen, reference, batch, step)
      return jnp.mean(loss), metrics

    return jax.grad(mean_loss, has_aux=True)(trained)

  return gradient


def accumulated(
  objective: Objective, microbatches: int, constrain: Callable[[Any], Any]
) -> Gradient:
  """The gradient of `full_batch`, accumulated over microbatches one at a time.

      ∇ mean_i loss_i = 1/P Σ_p ∇ mean_{i in p} loss_i

  Sums are float32. Where the loss of an example depends on a mean over the batch, a first pass
  without gradient computes all errors e_i, and from them the cotangents of the errors. The second
  pass then is, exactly,

      ∇ mean_i loss_i = Σ_p Σ_{i in p} (d mean loss / d e_i) ∇ e_i

  at the cost of one more forward of the policy. Microbatch p takes the examples i with
  i mod P = p, so that all devices work on each.

  Args:
    objective: The training objective.
    microbatches: P; it divides the number of examples.
    constrain: Shards a tree like the trained parameters over devices, inside a jit.

  Returns:
    `(trained, frozen, reference, batch, step) -> (grads, metrics)`; metrics are in the order of the
    examples.

  Raises:
    InputError: The loss depends on a batch's mean and on residuals, which are too large to keep for
      a whole batch.
  """
  needs = losses.requirements(objective.loss)
  if needs.needs_global_batch and needs.residuals:
    raise InputError(
      "this loss needs a mean over the whole batch and the residuals of all its images; set "
      "config.grad_accumulation_steps=1, or choose a loss without one of the two"
    )

  def add(total, grads):
    return constrain(jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, grads))

  def zeros(trained):
    return constrain(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained))

  def one_pass(trained, frozen, reference, batch, step):
    def mean_loss(trained, microbatch):
      loss, metrics = objective.loss_of(
        microbatch, *objective.evaluate(trained, frozen, reference, microbatch, step)
      )
      return jnp.mean(loss), metrics

    def body(total, microbatch):
      grads, metrics = jax.grad(mean_loss, has_aux=True)(trained, microbatch)
      return add(total, grads), metrics

    total, metrics = jax.lax.scan(body, zeros(trained), split(batch, microbatches))
    return jax.tree.map(lambda x: x / microbatches, total), join(metrics)

  def two_passes(trained, frozen, reference, batch, step):
    def errors_of(trained, microbatch):
      return objective.evaluate(trained, frozen, reference, microbatch, step)[0]

    def mean_loss(errors):
      loss, metrics = objective.loss_of(batch, errors, None)
      return jnp.mean(loss), metrics

    parts = split(batch, microbatches)
    _, errors = jax.lax.scan(lambda _, part: (None, errors_of(trained, part)), None, parts)
    cotangents, metrics = jax.grad(mean_loss, has_aux=True)(join(errors))

    def body(total, inputs):
      microbatch, cotangent = inputs
      _, vjp = jax.vjp(lambda trained: errors_of(trained, microbatch), trained)
      return add(total, vjp(cotangent)[0]), None

    total, _ = jax.lax.scan(body, zeros(trained), (parts, split(cotangents, microbatches)))
    return total, metrics

  passes = two_passes if needs.needs_global_batch else one_pass

  def gradient(trained, frozen, reference, batch, step):
    return passes(trained, frozen, reference, objective.prepare(batch, step), step)

  return gradient


def split(batch: Batch | Any, microbatches: int) -> Batch | Any:
  """Splits arrays `[examples, ...]` into interleaved microbatches `[P, examples / P, ...]`.

  Example i goes to microbatch i mod P: consecutive examples on a device stay there.
  """
  return jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)


def join(parts: Any) -> Any:
  """The inverse of `split`."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)
