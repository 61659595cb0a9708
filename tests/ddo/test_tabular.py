"""The exact iteration against solutions in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from dmpo_jax import ddo
from dmpo_jax.errors import InputError


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def averaging(beta, beta_prime):
  return functools.partial(ddo.averaging_weights, beta=beta, beta_prime=beta_prime)


def dpo(preference, p, gamma):
  def loss(q):
    f = ddo.potential_of(q, p)
    return ddo.dpo_loss(f, f, preference, gamma=gamma, probabilities=p, probabilities_x=p)

  return loss


def two_regions(pi, p, gamma, beta, beta_prime, steps):
  """log ρ1/ρ2 of each iterate, and the solution."""
  preference = jnp.asarray([[0.5, p], [1 - p, 0.5]])
  reference = jnp.asarray([pi, 1 - pi])
  solution = ddo.solve_tabular(
    dpo(preference, reference, gamma),
    averaging(beta, beta_prime),
    reference,
    beta=beta,
    num_steps=steps,
  )
  return np.asarray(solution.potentials @ jnp.asarray([-1.0, 1.0])), solution


@pytest.mark.parametrize(
  ("case", "ratio", "mass", "loss"),
  [
    ((0.5, 0.9, 1.0, 0.1), 1.78294971, 0.85606071, 0.54153773),
    ((0.5, 0.9, 1.0, 1.0), 0.56707633, 0.63808828, 0.6382037),
    ((0.3, 0.8, 0.5, 0.2), 0.83030472, 0.49575182, 0.66654486),
    ((0.5, 1.0, 2.0, 0.5), 1.08529515, 0.74749473, 0.46463985),
  ],
)
def test_two_regions_converge_to_the_root_of_their_equation(case, ratio, mass, loss):
  ratios, solution = two_regions(*case, beta_prime=0.5, steps=20_000)
  np.testing.assert_allclose(ratios[-1], ratio, atol=3e-4)
  np.testing.assert_allclose(solution.probabilities[-1, 0], mass, atol=3e-4)
  np.testing.assert_allclose(solution.losses[-1], loss, atol=1e-6)


def test_the_iterates_of_two_regions_are_those_of_dual_averaging():
  ratios, _ = two_regions(0.5, 0.9, 1.0, 0.1, beta_prime=0.5, steps=100)
  expected = [0.72727, 1.01553, 1.19339, 1.57893, 1.76195]
  np.testing.assert_allclose(ratios[[1, 2, 3, 10, 100]], expected, atol=1e-5)


def test_a_small_beta_prime_diverges_and_the_error_says_so():
  with pytest.raises(InputError, match=r"the loss rises to .* in step .*Raise beta_prime"):
    two_regions(0.5, 0.9, 1.0, 0.05, beta_prime=0.05, steps=100)
  ratios, _ = two_regions(0.5, 0.9, 1.0, 0.05, beta_prime=0.5, steps=5000)
  np.testing.assert_allclose(ratios[-1], 1.981, atol=2e-3)


def ranks(gamma, beta, steps, n=401):
  """Hard preferences by rank: the solution and the ranks."""
  u = (np.arange(n) + 0.5) / n
  preference = jnp.asarray((u[:, None] > u[None, :]) + 0.5 * np.eye(n))
  p = jnp.full(n, 1 / n)
  return u, ddo.solve_tabular(
    dpo(preference, p, gamma), averaging(beta, beta), p, beta=beta, num_steps=steps
  )


def test_hard_preferences_reach_the_known_mean_ranks_and_losses():
  u, solution = ranks(1.0, 1.0, 200)
  means = np.asarray(solution.probabilities) @ u
  steps = [1, 2, 3, 10, 40, 200]
  np.testing.assert_allclose(
    means[steps], [0.55515, 0.57373, 0.58428, 0.60796, 0.62036, 0.62476], atol=2e-5
  )
  np.testing.assert_allclose(
    solution.losses[jnp.asarray(steps)],
    [0.60954, 0.59062, 0.58216, 0.56935, 0.56638, 0.56603],
    atol=2e-5,
  )


def test_the_first_step_of_dpo_is_linear_in_the_win_rate():
  n, tau = 801, 0.7
  x = np.linspace(-5, 5, n)
  p = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
  preference = jnp.asarray(norm.cdf((x[:, None] - x[None, :]) / tau))  # probit, reward x
  solution = ddo.solve_tabular(
    dpo(preference, jnp.asarray(p), 1.0),
    averaging(0.5, 0.25),
    jnp.asarray(p),
    beta=0.5,
    num_steps=1,
  )
  win_rate = norm.cdf(x / np.sqrt(tau**2 + 1))
  kappa = 2 * 1.0 / (0.5 + 2 * 0.25)
  f = np.asarray(solution.potentials[1])
  middle = slice(100, -100)  # the grid ends at 5 standard deviations
  np.testing.assert_allclose(f[middle], -kappa * (win_rate - 0.5)[middle], atol=1e-4)


def gaussian_grid():
  x = np.linspace(-12, 14, 4001)
  p = np.exp(-((x - 1) ** 2) / 4)
  return x, p / p.sum()


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
def test_a_squared_mean_has_the_iterates_of_its_recursion(steps):
  x, p = gaussian_grid()
  solution = ddo.solve_tabular(
    lambda q: (q @ x + 1) ** 2 / 2, averaging(0.5, 0.5), jnp.asarray(p), beta=0.5, num_steps=steps
  )
  theta = {1: 1.333333, 2: 0.222222, 3: 1.066667, 10: 0.783838, 100: 0.79824}[steps]
  slope = np.diff(np.asarray(solution.potentials[-1])).mean() / (x[1] - x[0])
  np.testing.assert_allclose(slope, theta, atol=1e-5)


def test_the_proximal_step_solves_a_squared_mean_at_once():
  x, p = gaussian_grid()
  beta, variance = 0.5, 2.0  # eta = beta/(beta + variance)
  weights = functools.partial(ddo.proximal_weights, beta=beta, tau=1 / variance)
  solution = ddo.solve_tabular(
    lambda q: (q @ x + 1) ** 2 / 2, weights, jnp.asarray(p), beta=beta, num_steps=1
  )
  slope = np.diff(np.asarray(solution.potentials[1])).mean() / (x[1] - x[0])
  np.testing.assert_allclose(slope, 0.8, atol=1e-6)


def test_a_squared_mean_of_a_mixture_has_the_known_minimiser():
  x = np.linspace(-8, 8, 4001)
  left, right = 0.6 * norm.pdf(x, -2, np.sqrt(0.6)), 0.4 * norm.pdf(x, 2, np.sqrt(0.4))
  p = jnp.asarray((left + right) / (left + right).sum())
  weights = functools.partial(ddo.proximal_weights, beta=0.5, tau=0.2)
  solution = ddo.solve_tabular(lambda q: (q @ x - 1) ** 2 / 2, weights, p, beta=0.5, num_steps=500)
  q = np.asarray(solution.probabilities[-1])
  slope = np.diff(np.asarray(solution.potentials[-1])).mean() / (x[1] - x[0])
  np.testing.assert_allclose(slope, -0.29161085, atol=1e-6)
  np.testing.assert_allclose(q @ x, 0.85419457, atol=1e-6)
  np.testing.assert_allclose(q @ (right / (left + right)), 0.67971767, atol=1e-6)


def test_a_linear_loss_falls_short_by_a_known_factor():
  reward = jnp.asarray([0.0, 1.0, -0.5])
  solution = ddo.solve_tabular(
    lambda q: -q @ reward, averaging(0.5, 0.8), jnp.full(3, 1 / 3), beta=0.5, num_steps=7
  )
  expected = -reward / 0.5 * (7 / (7 + 2 * 0.8 / 0.5))
  np.testing.assert_allclose(solution.potentials[-1], expected, rtol=1e-12)


@pytest.mark.parametrize(
  ("through_kl", "ratio", "mass"), [(True, 0.63925579, 0.65458521), (False, 0.64257482, 0.65533527)]
)
def test_kto_on_two_atoms_converges_to_the_known_solution(through_kl, ratio, mass):
  p = jnp.asarray([0.5, 0.5])
  desirable, undesirable = jnp.asarray([0.2, 0.8]), jnp.asarray([0.8, 0.2])  # c_D p_D/p_ref

  def loss(q):
    f = ddo.potential_of(q, p)
    kl = ddo.kl_divergence(f, probabilities=p)
    log_z = ddo.log_normalizer(f, probabilities=p)
    kl = kl if through_kl else jax.lax.stop_gradient(kl)
    return ddo.kto_loss(f, desirable, undesirable, gamma=1.0, log_z=log_z, kl=kl, probabilities=p)

  weights = functools.partial(ddo.proximal_weights, beta=0.5, tau=1.0)
  solution = ddo.solve_tabular(loss, weights, p, beta=0.5, num_steps=300)
  f = np.asarray(solution.potentials[-1])
  np.testing.assert_allclose(f[0] - f[1], ratio, atol=1e-7)
  np.testing.assert_allclose(solution.probabilities[-1, 1], mass, atol=1e-7)
  if through_kl:
    np.testing.assert_allclose(solution.losses[-1], 0.47686546, atol=1e-7)


def test_a_reference_that_is_no_distribution_is_refused():
  with pytest.raises(InputError, match="expected probabilities > 0 of sum 1"):
    ddo.solve_tabular(
      lambda q: q.sum(), averaging(1.0, 1.0), jnp.asarray([0.5, 0.6]), beta=1.0, num_steps=1
    )
