"""Gaussian mixtures, whose tilts, noised densities and scores have closed forms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import ddo


class Mixture(NamedTuple):
  """Weights `[K]`, means `[K, D]` and covariances `[K, D, D]`."""

  weights: np.ndarray
  means: np.ndarray
  covariances: np.ndarray

  def tilted(self, b):
    """The mixture ∝ exp(b.x) p, and log E_p[exp(b.x)]."""
    log_w = (
      np.log(self.weights) + self.means @ b + 0.5 * np.einsum("i,kij,j->k", b, self.covariances, b)
    )
    log_z = np.logaddexp.reduce(log_w)
    return Mixture(
      np.exp(log_w - log_z), self.means + self.covariances @ b, self.covariances
    ), log_z

  def noised(self, a, s):
    """The mixture of a x + s eps."""
    eye = np.eye(self.means.shape[1])
    return Mixture(self.weights, a * self.means, a**2 * self.covariances + s**2 * eye)

  def sample(self, n, seed=0):
    rng = np.random.default_rng(seed)
    k = rng.choice(len(self.weights), n, p=self.weights)
    roots = np.linalg.cholesky(self.covariances)
    z = rng.standard_normal((n, self.means.shape[1]))
    return self.means[k] + np.einsum("nij,nj->ni", roots[k], z)

  def score(self, x):
    """∇ log p at x `[N, D]`, in numpy."""
    inverse = np.linalg.inv(self.covariances)
    away = self.means[None] - x[:, None]  # [N, K, D]
    pull = np.einsum("kij,nkj->nki", inverse, away)
    log_k = np.log(self.weights) - 0.5 * np.linalg.slogdet(self.covariances)[1]
    log_k = log_k - 0.5 * np.einsum("nki,nki->nk", away, pull)
    posterior = np.exp(log_k - np.logaddexp.reduce(log_k, axis=1, keepdims=True))
    return np.einsum("nk,nki->ni", posterior, pull)


P3 = Mixture(
  np.array([0.5, 0.3, 0.2]),
  np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.5]]),
  np.array([[[0.5, 0.1], [0.1, 0.4]], [[0.3, 0.0], [0.0, 0.6]], [[0.7, -0.2], [-0.2, 0.5]]]),
)
B = np.array([1.0, -0.5]) / 0.8


def score_of(mixture, a, s, x):
  """∇ log p_t at x `[N, D]` in jax, with levels a and s `[N, 1]` that may be traced."""
  values, vectors = np.linalg.eigh(mixture.covariances)  # a² C + s² I has the same vectors
  values, vectors, means, log_w = (
    jnp.asarray(v[None], x.dtype) for v in (values, vectors, mixture.means, np.log(mixture.weights))
  )
  a, s = a[..., None], s[..., None]  # [N, 1, 1]
  away = jnp.einsum("kji,nkj->nki", vectors[0], a * means - x[:, None])  # [N, K, D]
  spread = a**2 * values + s**2
  log_k = log_w - 0.5 * jnp.sum(jnp.log(spread) + away**2 / spread, -1)
  pull = jnp.einsum("kij,nkj->nki", vectors[0], away / spread)
  return jnp.sum(jax.nn.softmax(log_k, axis=1)[..., None] * pull, axis=1)


def predictor(process, mixture):
  """The exact eps-network of a mixture as the data of a process."""

  def predict(x, t):
    a, s = ddo.levels(process, t, x)
    a, s = (jnp.broadcast_to(level, (len(x), 1)) for level in (a, s))
    return -s * score_of(mixture, a, s, x)

  return predict
