"""The gradient of a batch's mean loss, at once or part by part, with the same result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax import losses
from dmpo_jax.errors import InputError
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.objective import Objective, Params

# (trained, frozen, reference, batch, step) -> (gradient, metrics [examples])
Gradient = Callable[..., tuple[Params, dict[str, jax.Array]]]


def whole(objective: Callable) -> Gradient:
  """∇ mean_i loss_i over all examples in one pass.

  Args:
    objective: `(trained, frozen, reference, batch, step) -> (loss [examples], metrics)`.

  Returns:
    `(trained, frozen, reference, batch, step) -> (gradient, metrics)`.
  """

  def gradient(trained, frozen, reference, batch, step):
    def mean_loss(trained):
      loss, metrics = objective(trained, frozen, reference, batch, step)
      return jnp.mean(loss), metrics

    found, metrics = jax.grad(mean_loss, has_aux=True)(trained)
    return found, metrics

  return gradient


def in_parts(objective: Objective, parts: int, constrain: Callable[[Any], Any]) -> Gradient:
  """The same gradient from parts of the batch, of which one is in memory at a time.

      ∇ mean_i loss_i = 1/P Σ_p ∇ mean_{i in p} loss_i

  Sums are float32. Where the loss of an example depends on a mean over the batch, all errors are
  found first without gradient, and from them what the loss changes by with each of them; the
  second pass then is, exactly,

      ∇ mean_i loss_i = Σ_p Σ_{i in p} (d mean loss / d e_i) ∇ e_i

  for a policy forward more. A part takes every P-th example, so that all devices work on each.

  Args:
    objective: What is minimised.
    parts: P; it divides the number of examples.
    constrain: Lays a tree that looks like the trained parameters out over devices, inside a jit.

  Returns:
    As `whole`; metrics are in the order of the examples.

  Raises:
    InputError: The objective depends on a batch's mean and on residuals, which are too large to be
      kept for a whole batch.
  """
  known = losses.requirements(objective.loss)
  if known.needs_global_batch and known.residuals:
    raise InputError(
      "this objective needs a mean over the whole batch and the residuals of all its images; "
      "set config.accumulation=1, or choose an objective without one of the two"
    )

  def add(total, gradient):
    return constrain(jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, gradient))

  def zeros(trained):
    return constrain(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained))

  def separately(trained, frozen, reference, batch, step):
    def mean_loss(trained, part):
      loss, metrics = objective.score(
        part, *objective.evaluate(trained, frozen, reference, part, step)
      )
      return jnp.mean(loss), metrics

    def body(total, part):
      found, metrics = jax.grad(mean_loss, has_aux=True)(trained, part)
      return add(total, found), metrics

    total, metrics = jax.lax.scan(body, zeros(trained), split(batch, parts))
    return jax.tree.map(lambda x: x / parts, total), join(metrics)

  def in_two_passes(trained, frozen, reference, batch, step):
    def errors(trained, part):
      return objective.evaluate(trained, frozen, reference, part, step)[0]

    def mean_loss(found):
      loss, metrics = objective.score(batch, found, None)
      return jnp.mean(loss), metrics

    cut = split(batch, parts)
    _, found = jax.lax.scan(lambda _, part: (None, errors(trained, part)), None, cut)
    slopes, metrics = jax.grad(mean_loss, has_aux=True)(join(found))

    def body(total, inputs):
      part, slope = inputs
      _, pull = jax.vjp(lambda trained: errors(trained, part), trained)
      return add(total, pull(slope)[0]), None

    total, _ = jax.lax.scan(body, zeros(trained), (cut, split(slopes, parts)))
    return total, metrics

  passes = in_two_passes if known.needs_global_batch else separately

  def gradient(trained, frozen, reference, batch, step):
    return passes(trained, frozen, reference, objective.prepare(batch, step), step)

  return gradient


def split(batch: Batch | Any, parts: int) -> Batch | Any:
  """Cuts arrays `[examples, ...]` into `[parts, examples / parts, ...]`, interleaved.

  Example i goes to part i mod parts: examples that lie on a device in one run stay there.
  """
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def join(parts: Any) -> Any:
  """The inverse of `split`."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)
