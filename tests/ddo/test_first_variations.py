"""First variations against the gradients of their losses on a finite set, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import ddo
from dmpo_jax.errors import InputError


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def case(n=5, seed=0):
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.ones(n))
  f = jnp.asarray(rng.normal(size=n))
  raw = rng.uniform(size=(n, n))
  preference = jnp.asarray((raw + 1 - raw.T) / 2)
  return jnp.asarray(p), f, preference


def q_of(f, p):
  q = p * jnp.exp(-f)
  return q / q.sum()


def test_dpo_is_the_gradient_of_its_loss_and_has_mean_zero_under_q():
  p, f, preference = case()
  q = q_of(f, p)

  def loss(q):
    log_rho = jnp.log(q) - jnp.log(p)
    logits = 1.7 * (log_rho[:, None] - log_rho[None, :])
    return -jnp.einsum("i,j,ij,ij", p, p, 2 * preference, jax.nn.log_sigmoid(logits))

  expected = jax.grad(loss)(q)
  log_z = ddo.log_normalizer(f, probabilities=p)
  g = ddo.first_variation_dpo(f, f, preference, gamma=1.7, log_z=log_z, probabilities=p)
  np.testing.assert_allclose(g, expected, rtol=1e-9)
  assert abs(q @ g) < 1e-12
  loss_of_f = ddo.dpo_loss(f, f, preference, gamma=1.7, probabilities=p, probabilities_x=p)
  np.testing.assert_allclose(loss_of_f, loss(q), rtol=1e-12)


def test_at_the_bradley_terry_potential_dpo_is_stationary():
  p, _, _ = case()
  reward = jnp.asarray([0.3, -1.0, 0.2, 2.0, 0.0])
  preference = jax.nn.sigmoid(reward[:, None] - reward[None, :])
  f = -reward / 0.8
  g = ddo.first_variation_dpo(
    f, f, preference, gamma=0.8, log_z=ddo.log_normalizer(f, probabilities=p), probabilities=p
  )
  assert np.abs(g).max() < 1e-14


def test_targets_of_labelled_pairs_are_unbiased():
  p, f, preference = case()
  log_z = ddo.log_normalizer(f, probabilities=p)
  i, j = (x.ravel() for x in jnp.meshgrid(jnp.arange(5), jnp.arange(5), indexing="ij"))
  mean_i, mean_j = 0.0, 0.0  # over the label, for each pair
  for c in (0.0, 1.0):
    chance = jnp.where(c, preference[i, j], 1 - preference[i, j])
    label = jnp.full(25, c)
    t_i, t_j = ddo.first_variation_dpo_pairs(f[i], f[j], label, gamma=1.7, log_z=log_z)
    mean_i, mean_j = mean_i + chance * t_i, mean_j + chance * t_j
  g = ddo.first_variation_dpo(f, f, preference, gamma=1.7, log_z=log_z, probabilities=p)
  np.testing.assert_allclose(mean_i.reshape(5, 5) @ p, g, rtol=1e-12)
  np.testing.assert_allclose(mean_j.reshape(5, 5).T @ p, g, rtol=1e-12)


@pytest.mark.parametrize("through_kl", [False, True])
def test_kto_is_the_gradient_of_its_loss(through_kl):
  p, f, _ = case()
  q = q_of(f, p)
  d, u = jnp.asarray([0.2, 0.9, 0.5, 0.1, 0.7]), jnp.asarray([0.6, 0.1, 0.4, 0.8, 0.2])

  def loss(q):
    log_rho = jnp.log(q / p)
    kl = q @ log_rho
    a = 1.3 * (log_rho - (kl if through_kl else jax.lax.stop_gradient(kl)))
    return p @ (d * (1 - jax.nn.sigmoid(a)) + u * (1 - jax.nn.sigmoid(-a)))

  log_z = ddo.log_normalizer(f, probabilities=p)
  kl = ddo.kl_divergence(f, probabilities=p)
  options = {"gamma": 1.3, "log_z": log_z, "kl": kl, "probabilities": p}
  g = ddo.first_variation_kto(f, d, u, through_kl=through_kl, **options)
  np.testing.assert_allclose(g, jax.grad(loss)(q), rtol=1e-9)
  np.testing.assert_allclose(ddo.kto_loss(f, d, u, **options), loss(q), rtol=1e-12)


def test_rlhf_is_minus_the_reward():
  np.testing.assert_array_equal(ddo.first_variation_rlhf(jnp.arange(3.0)), [0.0, -1.0, -2.0])


def test_effective_sample_size_and_divergence_are_those_of_the_weights():
  p, f, _ = case()
  rho = q_of(f, p) / p
  np.testing.assert_allclose(ddo.effective_sample_size(f, probabilities=p), 1 / (p @ rho**2))
  np.testing.assert_allclose(ddo.kl_divergence(f, probabilities=p), p @ (rho * jnp.log(rho)))
  even = jnp.full(5, 0.2)
  np.testing.assert_allclose(ddo.log_normalizer(f), ddo.log_normalizer(f, probabilities=even))


def test_preferences_that_are_not_complementary_are_refused():
  f = jnp.zeros(3)
  with pytest.raises(InputError, match=r"not complementary.*up to 0.4"):
    ddo.first_variation_dpo(f, f, jnp.full((3, 3), 0.7), gamma=1.0, log_z=0.0)


@pytest.mark.parametrize(
  ("preference", "message"),
  [(jnp.full((3, 3), 1.5), "expected probabilities"), (jnp.full((3, 2), 0.5), "expected .N, M.")],
)
def test_wrong_preferences_are_refused(preference, message):
  with pytest.raises(InputError, match=message):
    ddo.first_variation_dpo(jnp.zeros(3), jnp.ones(3), preference, gamma=1.0, log_z=0.0)
