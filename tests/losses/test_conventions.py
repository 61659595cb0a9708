"""The numbers of docs/objectives.md: the same setting in different units, starts and optima."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmpo_jax import losses
from dmpo_jax.losses import PairErrors

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text()
U = math.log(99)
FIGURES = {
  "0.3052": 5000 / 16384,
  "0.09155": 6000 / 65536,
  "15.62": 1000 / 64,
  "1.526e-4": 5000 / (2 * 1000 * 16384),
  "2.048e-5": 1e-8 * 2048,
  "8.192e-9": 2000 / 5000 * 2.048e-8,
  "2500": 2.048e-5 / 8.192e-9,
  "2.757": (1 - 2 * 0.2) * U,
  "1.349": math.log(0.794 / 0.206),
  "0.119": 1 / (1 + math.exp(2)),
  "0.6931": math.log(2),
  "1.6145": -math.log(4 * 0.01 * 0.99) / 2,
}
errors = PairErrors(
  *jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.102, (4, 64)), jnp.float32)
)


@pytest.mark.parametrize("written", FIGURES)
def test_a_figure_of_the_page_is_what_its_formula_gives(written):
  assert written in PAGE
  digits = len(written.split("e")[0].replace(".", "").lstrip("0"))
  assert float(written) == pytest.approx(FIGURES[written], rel=0.51 * 10 ** (1 - digits))


def test_summed_errors_want_beta_divided_by_the_number_of_elements():
  summed = PairErrors(*(16384 * e for e in errors))
  np.testing.assert_allclose(
    losses.dpo(summed, beta=5000 / 16384)[0], losses.dpo(errors, beta=5000.0)[0], rtol=1e-5
  )


def test_the_logit_of_kto_at_1000_is_that_of_dpo_at_2000():
  diagnostics, wanted = losses.kto(errors, beta=1000.0)[1], losses.dpo(errors, beta=2000.0)[1]
  np.testing.assert_allclose(diagnostics.logit, wanted.logit, rtol=1e-5)


def test_f_dpo_with_the_reverse_kl_is_dpo_at_the_product():
  actual = losses.f_dpo(errors, divergence="reverse_kl", beta=5000 / 16384, inner_scale=16384.0)
  np.testing.assert_allclose(actual[0], losses.dpo(errors, beta=5000.0)[0], rtol=1e-6)


@pytest.mark.parametrize(("loss", "beta"), [(losses.hinge, 200.0), (losses.ipo, 100.0)])
def test_hinge_at_200_and_ipo_at_100_have_their_minimum_at_a_margin_of_five_thousandths(loss, beta):
  def value(margin):
    zero = jnp.zeros_like(margin)
    return loss(PairErrors(-margin, zero, zero, zero), beta=beta)[0]

  assert value(jnp.array([0.005]))[0] < 1e-7 < value(jnp.array([0.004]))[0]


def test_mapo_as_published_is_a_tenth_of_dpo_without_reference_at_500():
  alone = errors._replace(reference_w=jnp.zeros(64), reference_l=jnp.zeros(64))
  loss, _ = losses.mapo(errors, beta=0.1, snr=0.5, num_timesteps=1000)
  wanted = 0.1 * losses.dpo(alone, beta=500.0)[0]
  np.testing.assert_allclose(loss - errors.policy_w, wanted, rtol=0.02)


def test_a_missing_half_means_twice_the_beta():
  margin = (errors.policy_w - errors.reference_w) - (errors.policy_l - errors.reference_l)
  without_half = -jax.nn.log_sigmoid(-2500.0 * margin)
  np.testing.assert_allclose(losses.dpo(errors, beta=5000.0)[0], without_half, rtol=1e-4)


@pytest.mark.parametrize(
  ("loss", "optimum"),
  [
    (functools.partial(losses.dmpo, beta=2.0, alpha=0.01), 2.757),
    (functools.partial(losses.dpo, beta=2.0, label_smoothing=0.01), 1.349),
  ],
  ids=["dmpo", "cdpo"],
)
def test_with_a_fifth_of_the_labels_flipped_the_slope_vanishes_where_the_page_says(loss, optimum):
  def value(z):
    zero = jnp.zeros_like(z)
    return losses.soft_label_loss(loss, PairErrors(-z, zero, zero, zero), 0.8)[0][0]

  for side in (-1, 1):
    assert side * float(jax.grad(value)(jnp.array([optimum + side * 0.01]))[0]) > 0


@pytest.mark.parametrize(("alpha", "written"), [(0.01, "0.405"), (0.1, "0.716")])
def test_dmpo_is_convex_from_the_inflection_of_the_page_on(alpha, written):
  def slope(z):
    def value(z):
      zero = jnp.zeros(1)
      return losses.dmpo(PairErrors(-z[None], zero, zero, zero), beta=2.0, alpha=alpha)[0][0]

    return jax.grad(value)(z)

  assert f"{written} at" in PAGE
  inflection = -float(written)
  assert jax.grad(slope)(inflection - 0.002) < 0 < jax.grad(slope)(inflection + 0.002)
  assert all(jax.grad(slope)(z) > 0 for z in np.linspace(inflection + 0.01, 2.0, 7))


@pytest.mark.parametrize(
  ("z", "written"),
  [(0.0, "2.30"), (0.97, "2.63"), (-3.0, "0.36"), (-5.0, "0.064"), (-8.0, "0.0042")],
)
def test_the_ratio_of_dmpos_gradient_to_dpos_is_the_one_on_the_page(z, written):
  def slope(loss):
    zero = jnp.zeros(1)
    return jax.grad(lambda e: loss(PairErrors(e, zero, zero, zero))[0][0])(jnp.full(1, -z))[0]

  dmpo = slope(functools.partial(losses.dmpo, beta=2.0, alpha=0.01))
  assert written in PAGE
  assert float(dmpo / slope(functools.partial(losses.dpo, beta=2.0))) == pytest.approx(
    float(written), rel=0.01
  )
