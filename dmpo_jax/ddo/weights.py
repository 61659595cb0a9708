"""The weights of an iteration: f_{k+1} = a f_k + b g_k, with g_k the first variation at q_k."""

from dmpo_jax.common.ranges import Integers, Interval, check_integer, check_number

POSITIVE = Interval(0, 1e30)
STEPS = Integers(1, 2**31 - 1)


def averaging_weights(k: int, *, beta: float, beta_prime: float) -> tuple[float, float]:
  """Weights (a, b) of the k-th step of dual averaging, f_{k+1} = a f_k + b g_k.

      q_{k+1} = argmin_q Σ_{j<=k} j [<g_j, q> + beta KL(q||p_ref)] + beta' (k + 1) KL(q||p_ref)
      f_{k+1} = Σ_{j<=k} j g_j / D_k,   D_k = beta k (k + 1)/2 + beta' (k + 1)
      a = D_{k-1}/D_k,  b = k/D_k

  The effective step b is at most 1/beta', so that beta' is the knob of stability: too small, the
  iteration diverges where F is rough relative to the KL divergence. For k = 1 the potential f_1 is
  0, and a has no effect. The weights j are those of particle dual averaging (arXiv 2012.15477).
  For a constant g the iterate falls short of g/beta by the factor k/(k + 2 beta'/beta).

  Args:
    k: The step, 1, 2, ...
    beta: Weight of the KL divergence in the loss, > 0.
    beta_prime: beta', weight of the additional regularisation, > 0; often beta.

  Returns:
    (a, b), floats.

  Raises:
    InputError: A number is out of range.

  Source: derived here; the constants of arXiv 2502.02954 are unknown.
  """
  k = check_integer("k", k, STEPS)
  beta = check_number("beta", beta, POSITIVE)
  beta_prime = check_number("beta_prime", beta_prime, POSITIVE)
  here = beta * k * (k + 1) / 2 + beta_prime * (k + 1)
  before = beta * k * (k - 1) / 2 + beta_prime * k
  return before / here, k / here


def proximal_weights(k: int, *, beta: float, tau: float) -> tuple[float, float]:
  """Weights (a, b) of a step of proximal (mirror) descent, the same for every k.

      q_{k+1} = argmin_q <g_k, q> + beta KL(q||p_ref) + KL(q||q_k)/tau
      a = 1 - η,  b = η/beta,  η = beta/(beta + 1/tau)

  Its fixed points are those of dual averaging, and it has no bias towards the reference at finite
  k. If F is convex and L-smooth relative to the KL divergence and 1/tau >= L, then
  KL(q*||q_{k+1}) <= (1 - η) KL(q*||q_k).

  Args:
    k: The step, 1, 2, ...; without effect.
    beta: Weight of the KL divergence in the loss, > 0.
    tau: Step size, > 0.

  Returns:
    (a, b), floats.

  Raises:
    InputError: A number is out of range.

  Source: derived here.
  """
  check_integer("k", k, STEPS)
  beta = check_number("beta", beta, POSITIVE)
  tau = check_number("tau", tau, POSITIVE)
  eta = beta / (beta + 1 / tau)
  return 1 - eta, eta / beta
