"""Losses by which the drift is learned from samples of the reference, noised forward."""

from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.ddo.processes import levels


def log_h_loss(log_h: jax.Array, weights: jax.Array) -> jax.Array:
  """Loss of a learned A(x_t, t), whose minimiser is log h(x_t, t) = log E[w | x_t].

      exp(A) - w A

  Args:
    log_h: A at noised samples of the reference, `[N]`.
    weights: w = exp(-f(x_0))/Z of their clean samples, of mean 1; `[N]`.

  Returns:
    Losses, `[N]`.

  Source: derived here.
  """
  return jnp.exp(log_h) - weights * log_h


def denoising_loss(
  process: Any,
  drift: jax.Array,
  score: jax.Array,
  x_0: jax.Array,
  x_t: jax.Array,
  t: jax.Array,
  weights: jax.Array,
) -> jax.Array:
  """Weighted denoising loss of a learned drift, whose minimiser is u.

      w s_t² || ∇ log p_t(x_t) + u(x_t, t) + (x_t - a_t x_0)/s_t² ||²,  mean over dimensions

  The factor s_t² gives every level the weight that it has in the training of eps-networks.

  Args:
    process: The noise process, see `levels`.
    drift: u(x_t, t), `[N, ...]`.
    score: The reference's score at x_t, `[N, ...]`.
    x_0: Clean samples of the reference, `[N, ...]`.
    x_t: Their noised samples, `[N, ...]`.
    t: Times, `[N]`.
    weights: w = exp(-f(x_0))/Z, of mean 1; `[N]`.

  Returns:
    Losses, `[N]`.

  Source: derived here.
  """
  a, s = levels(process, t, x_t)
  residual = s * (score + drift) + (x_t - a * x_0) / s
  return weights * jnp.mean(residual.reshape(len(x_t), -1) ** 2, axis=1)
