"""The estimators of Doob's drift against closed forms on Gaussians and their mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import ddo, diffusion
from dmpo_jax.errors import InputError
from dmpo_jax.sampling import seed_keys, solve
from tests.ddo.mixtures import P3, B, Mixture, predictor

OU = ddo.OrnsteinUhlenbeck()
T, X = 0.7, np.array([[0.3, -0.4]])
DRIFT = np.array([[1.06083562, -0.3466887]])  # of P3 tilted by exp(B.x) at T and X


def exact_drift(mixture, b, a, s, x):
  """∇ log q_t - ∇ log p_t by the scores of both mixtures."""
  return mixture.tilted(b)[0].noised(a, s).score(x) - mixture.noised(a, s).score(x)


def linear(b):
  return lambda x: -x @ jnp.asarray(b, x.dtype)


def test_a_tilted_mixture_has_the_known_parameters():
  tilted, log_z = P3.tilted(B)
  np.testing.assert_allclose(log_z, 1.60265389, atol=1e-8)
  np.testing.assert_allclose(tilted.weights, [0.01221396, 0.55986242, 0.42792362], atol=1e-8)
  np.testing.assert_allclose(tilted.weights @ tilted.means, [1.74003932, -0.96212882], atol=1e-8)
  np.testing.assert_allclose(-0.8 * log_z, -1.28212311, atol=1e-8)


def test_a_quadratic_tilt_has_the_known_parameters():
  a_matrix, c, a, beta = np.array([[1.2, 0.3], [0.3, 0.8]]), np.ones(2), np.array([1, -0.5]), 0.8
  precision = np.linalg.inv(P3.covariances)
  covariances = np.linalg.inv(precision + a_matrix / beta)
  pull = np.einsum("kij,kj->ki", precision, P3.means)
  e = pull + a_matrix @ c / beta + a / beta
  means = np.einsum("kij,kj->ki", covariances, e)
  log_w = np.log(P3.weights) + 0.5 * (
    np.linalg.slogdet(covariances)[1]
    - np.linalg.slogdet(P3.covariances)[1]
    + np.sum(e * means, 1)
    - np.sum(P3.means * pull, 1)
    - c @ a_matrix @ c / beta
  )
  log_z = np.logaddexp.reduce(log_w)
  # Against importance weights of samples of P3.
  x = P3.sample(400_000)
  reward = -np.einsum("ni,ij,nj->n", x - c, a_matrix, x - c) / 2 + x @ a
  f = jnp.asarray(-reward / beta)
  np.testing.assert_allclose(log_z, -0.29758223, atol=1e-8)
  np.testing.assert_allclose(ddo.log_normalizer(f), log_z, atol=0.01)
  w = np.exp(log_w - log_z)
  np.testing.assert_allclose(w @ means, [1.96702246, 0.613913], atol=1e-7)
  np.testing.assert_allclose(np.asarray(jax.nn.softmax(-f)) @ x, w @ means, atol=0.01)


def test_the_doob_term_of_a_tilted_mixture_has_the_known_value():
  a, s = np.exp(-T), np.sqrt(1 - np.exp(-2 * T))
  np.testing.assert_allclose(exact_drift(P3, B, a, s, X), DRIFT, atol=1e-7)


def test_the_gradient_of_the_exact_log_h_is_the_drift():
  tilted = P3.tilted(B)[0]

  def log_density(mixture, x, t):
    a, s = jnp.exp(-t), jnp.sqrt(1 - jnp.exp(-2 * t))
    parts = [
      jnp.log(w)
      + jax.scipy.stats.multivariate_normal.logpdf(x, a * m, a**2 * c + s**2 * jnp.eye(2))
      for w, m, c in zip(*map(jnp.asarray, mixture), strict=True)
    ]
    return jax.nn.logsumexp(jnp.stack(parts))

  def log_h(x, t):
    return jax.vmap(lambda x, t: log_density(tilted, x, t) - log_density(P3, x, t))(x, t)

  u = jax.jit(lambda x, t: ddo.drift_log_h(log_h)(x, t, None))(
    jnp.asarray(X, jnp.float32), jnp.float32(T)
  )
  np.testing.assert_allclose(u, DRIFT, atol=1e-4)


def test_a_stored_set_of_samples_gives_the_drift():
  samples = jnp.asarray(P3.sample(200_000), jnp.float32)
  drift = ddo.drift_stored(OU, samples, linear(B)(samples))
  np.testing.assert_allclose(drift(jnp.asarray(X, jnp.float32), T, None), DRIFT, atol=0.03)


@pytest.fixture(scope="module")
def nested():
  """Means and standard errors of the nested estimators, many independent ones at one point."""

  def run(form, particles, repeats, steps=20):
    drift = ddo.drift_nested(
      OU, predictor(OU, P3), linear(B), particles=particles, num_steps=steps, form=form
    )
    x = jnp.repeat(jnp.asarray(X, jnp.float32), repeats, axis=0)
    u = np.asarray(jax.jit(drift)(x, jnp.float32(T), jax.random.key(1)), np.float64)
    return u.mean(0), u.std(0), u.std(0) / np.sqrt(repeats)

  return run


@pytest.mark.parametrize("form", ["covariance", "reinforce"])
def test_nested_simulation_gives_the_drift_with_many_particles(nested, form):
  mean, _, error = nested(form, particles=512, repeats=40)
  # A bias of 1/M, and of the steps of the simulation.
  np.testing.assert_allclose(mean, DRIFT[0], atol=0.05 + 3 * error.max())


def test_few_particles_bias_the_drift_towards_the_reference(nested):
  bias = {}
  for particles in (8, 64):
    mean, _, error = nested("covariance", particles=particles, repeats=600)
    bias[particles] = DRIFT[0, 0] - mean[0]
    assert bias[particles] > -3 * error[0] - 0.02
  assert bias[8] > 0.06
  assert bias[64] < bias[8] / 2


def test_the_reinforce_form_spreads_more(nested):
  spread = [nested(form, particles=32, repeats=400)[1][1] for form in ("covariance", "reinforce")]
  assert spread[1] > 1.05 * spread[0]


@pytest.mark.parametrize(("t", "drift"), [(0.1, 0.68509767), (0.7, 0.25049784), (2.0, 0.06024561)])
def test_the_drift_of_a_gaussian_under_a_linear_tilt_does_not_depend_on_x(t, drift):
  gaussian = Mixture(np.ones(1), np.array([[0.4]]), np.array([[[0.49]]]))
  a, s = np.exp(-t), np.sqrt(1 - np.exp(-2 * t))
  np.testing.assert_allclose(
    exact_drift(gaussian, [0.9], a, s, np.array([[-1.0], [2.0]])), drift, atol=1e-7
  )
  nested = ddo.drift_nested(
    OU, predictor(OU, gaussian), linear([0.9]), particles=4096, num_steps=30
  )
  u = jax.jit(nested)(jnp.asarray([[-1.0], [2.0]]), jnp.float32(t), jax.random.key(0))
  np.testing.assert_allclose(u, drift, rtol=0.1)


def noised(n, t, seed=0):
  """Clean and noised samples of a Gaussian, and weights exp(0.9 x_0)/Z."""
  rng = np.random.default_rng(seed)
  x0 = 0.4 + 0.7 * rng.standard_normal(n)
  a, s = np.exp(-t), np.sqrt(1 - np.exp(-2 * t))
  return x0, a * x0 + s * rng.standard_normal(n), np.exp(0.9 * x0 - 0.9 * 0.4 - 0.81 * 0.49 / 2)


def test_the_minimiser_of_the_log_h_loss_is_log_h():
  _, xt, w = (jnp.asarray(v) for v in noised(400_000, T))

  def loss(theta):
    return jnp.mean(ddo.log_h_loss(theta[0] + theta[1] * xt, w))

  def newton(_, theta):  # the loss is convex
    return theta - jnp.linalg.solve(jax.hessian(loss)(theta), jax.grad(loss)(theta))

  theta = jax.jit(lambda: jax.lax.fori_loop(0, 12, newton, jnp.zeros(2)))()
  np.testing.assert_allclose(theta[1], 0.25049784, atol=0.01)  # log h is linear with slope u


def test_the_minimiser_of_the_denoising_loss_is_the_drift():
  x0, xt, w = (jnp.asarray(v, jnp.float32)[:, None] for v in noised(400_000, T))
  a, s2 = np.exp(-T), 1 - np.exp(-2 * T)
  score = -(xt - a * 0.4) / (a**2 * 0.49 + s2)

  def loss(u):
    drift = jnp.full_like(xt, u)
    return jnp.mean(ddo.denoising_loss(OU, drift, score, x0, xt, jnp.full(len(xt), T), w[:, 0]))

  u = jax.jit(lambda: -jax.grad(loss)(0.0) / jax.hessian(loss)(0.0))()  # it is quadratic in u
  np.testing.assert_allclose(u, 0.25049784, atol=0.01)


def vp(kind="epsilon", count=200):
  betas = np.linspace(1e-4, 0.06, count)
  return diffusion.DiscreteProcess(np.cumprod(1 - betas), prediction_type=kind)


@pytest.mark.parametrize("process", [vp(), diffusion.FlowProcess(), OU], ids=["vp", "flow", "ou"])
def test_nested_simulation_serves_every_process_with_a_score(process):
  t = jnp.asarray(110 if isinstance(process, diffusion.DiscreteProcess) else 0.5)
  x = jnp.asarray(X, jnp.float32)
  a, s = (float(level[..., 0].item()) for level in ddo.levels(process, t, x))
  epsilon = predictor(process, P3)

  def predict(x, t):
    noise = epsilon(x, t)
    if isinstance(process, diffusion.FlowProcess):  # v = eps - x_0
      a, s = ddo.levels(process, t, x)
      return noise - (x - s * noise) / a
    return noise

  drift = ddo.drift_nested(process, predict, linear(B), particles=1024, num_steps=30)
  drift = jax.jit(drift)
  u = np.mean([drift(x, t, jax.random.key(i)) for i in range(4)], axis=0)
  exact = exact_drift(P3, B, a, s, X)
  np.testing.assert_allclose(u, exact, atol=0.08 * np.abs(exact).max())


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_shifted_prediction_implies_the_shifted_score(kind):
  process = vp(kind)
  rng = np.random.default_rng(0)
  x, prediction, u = (jnp.asarray(rng.normal(size=(3, 2)), jnp.float32) for _ in range(3))
  t = jnp.asarray([3, 90, 199])
  moved = ddo.shifted(process, prediction, u, x, t)
  _, s = process.levels(t, x)
  change = process.to_epsilon(moved, x, t) - process.to_epsilon(prediction, x, t)
  np.testing.assert_allclose(-change / s, u, atol=2e-3)


def test_levels_between_timesteps_are_those_of_the_solvers():
  process, x = vp(), jnp.zeros((2, 1))
  at = ddo.levels(process, jnp.asarray([7.0, 120.0]), x)
  for ours, exact in zip(at, process.levels(jnp.asarray([7, 120]), x), strict=True):
    np.testing.assert_allclose(ours, exact, rtol=1e-5)
  half = ddo.levels(process, jnp.asarray(7.5), x)
  ratios = np.sqrt(1 / process.alphas_cumprod - 1)
  np.testing.assert_allclose(half[1] / half[0], (ratios[7] + ratios[8]) / 2, rtol=1e-5)


def test_a_process_without_levels_is_refused():
  class Unknown:
    pass

  with pytest.raises(InputError, match="Unknown has no known score"):
    ddo.levels(Unknown(), jnp.asarray(0.5), jnp.zeros((1, 2)))


def test_an_unknown_form_is_refused_with_the_known_ones():
  with pytest.raises(InputError, match="form of the nested drift 'cov'"):
    ddo.drift_nested(OU, None, None, particles=1, num_steps=1, form="cov")


MODES = Mixture(
  np.array([0.6, 0.4]), np.array([[-1.5, 0.0], [1.5, 0.5]]), np.array([np.eye(2) * 0.2] * 2)
)
TILT = np.array([-0.6, 0.3])


@pytest.mark.parametrize("steps", [20, 190])
def test_the_sampler_reaches_the_mode_weights_with_enough_steps(steps):
  process = vp()
  target = MODES.tilted(TILT)[0].weights[1]
  reference, tilted = predictor(process, MODES), predictor(process, MODES.tilted(TILT)[0])

  def predict(x, t):
    _, s = ddo.levels(process, t, x)
    epsilon = reference(x, t)
    drift = (epsilon - tilted(x, t)) / s  # the exact one
    return ddo.shifted(process, epsilon, drift, x, t)

  seeds = np.arange(8000, dtype=np.uint32)
  noise = jax.random.normal(jax.random.key(5), (8000, 2))
  solver = diffusion.ddim.make(process, steps, eta=1.0)
  images = jax.jit(lambda noise: solve(predict, solver, noise, keys=seed_keys(seeds)))(noise)
  weight = np.mean(np.asarray(images) @ [1.5, 0.25] > 0)
  error = np.sqrt(target * (1 - target) / 8000)
  if steps == 190:
    assert abs(weight - target) < 3 * error
  else:
    assert abs(weight - target) < 0.05
