"""Hyperparameters for every loss, and random pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors, Residuals

PAIRS, SHAPE = 4, (2, 3)
HYPERPARAMETERS = {
  "alpha_dpo": {"beta": 30.0, "divergence_alpha": 0.9999},
  "contrastive": {"beta": 0.5},
  "dmpo": {"beta": 30.0, "alpha": 0.01},
  "dpo": {"beta": 30.0, "label_smoothing": 0.1},
  "dspo": {"beta": 0.5},
  "dynamic_alpha_dpo": {"beta": 30.0, "divergence_alpha": 0.9},
  "f_dpo": {"divergence": "jeffreys", "beta": 2.0, "inner_scale": 15.0},
  "hinge": {"beta": 30.0},
  "ipo": {"beta": 30.0},
  "kto": {"beta": 15.0, "weight_w": 1.5},
  "linear_dpo": {"beta": 5.0, "eta": 0.01},
  "mapo": {"beta": 0.1, "snr": 0.5, "num_timesteps": 1000},
  "sdpo": {"base": functools.partial(losses.dmpo, beta=30.0, alpha=0.01), "mu": 0.9},
  "sft": {},
}
NAMES = sorted(losses.LOSSES)


def bind(name, **changes):
  """The loss of a name with its hyperparameters bound."""
  return functools.partial(losses.LOSSES[name], **{**HYPERPARAMETERS[name], **changes})


def random_pairs(seed=0, pairs=PAIRS, near=0.3):
  """Residuals of a policy near its reference, and the errors that belong to them."""
  rng = np.random.default_rng(seed)
  reference = 0.4 * rng.normal(size=(2, pairs, *SHAPE))
  policy = reference + near * rng.normal(size=reference.shape)
  residuals = Residuals(*(jnp.asarray(x, jnp.float32) for x in (*policy, *reference)))
  return PairErrors(*(losses.denoising_error(x, jnp.zeros_like(x)) for x in residuals)), residuals


def apply(loss, errors, residuals):
  """The loss of each pair; residuals are passed where the loss needs them."""
  return loss(errors, residuals)[0] if losses.requirements(loss).residuals else loss(errors)[0]


@functools.cache
def compiled(name, **changes):
  """(errors, residuals) -> (losses, gradient of their sum with respect to the errors), jitted."""
  loss = bind(name, **changes)

  def run(errors, residuals):
    values, vjp = jax.vjp(lambda e: apply(loss, e, residuals), errors)
    return values, vjp(jnp.ones_like(values))[0]

  return jax.jit(run)


def at(loss, z, scale=1.0):
  """The losses where (e_w - r_w) - (e_l - r_l) is -z/scale, by the preferred image's error
  alone."""
  zero = jnp.zeros_like(z)
  return loss(PairErrors(-z / scale, zero, zero, zero))[0]


def grad(function, argnums=0):
  """jax.grad under jit: without it every primitive is compiled by itself."""
  return jax.jit(jax.grad(function, argnums))


def value_and_grad(function, argnums=0):
  """jax.value_and_grad under jit."""
  return jax.jit(jax.value_and_grad(function, argnums))
