"""What the pictures of objectives show: value and slope along a pair's logits."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from dmpo_jax import losses
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import objective_plots
from dmpo_jax.evaluation.plots import DARK, LIGHT

LOGITS = np.linspace(-6, 6, 25)
DMPO = functools.partial(losses.dmpo, beta=1000.0, alpha=0.05)
DPO = functools.partial(losses.dpo, beta=1000.0)


def response(loss, **options):
  return objective_plots.response(
    loss, **{"beta": 1000.0, "level": 0.1, "logits": LOGITS} | options
  )


def opened(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_the_value_of_dpo_is_the_softplus_of_minus_the_logit():
  np.testing.assert_allclose(response(DPO).value, np.logaddexp(0, -LOGITS), rtol=1e-4)


def test_the_slopes_of_dmpo_are_those_of_the_closed_form_on_winner_and_loser():
  p = 1 / (1 + np.exp(-LOGITS))
  wanted = p * (1 - p) * (LOGITS - np.log(0.95 / 0.05))
  found = response(DMPO)
  np.testing.assert_allclose(found.winner, wanted, atol=2e-4)
  np.testing.assert_allclose(found.loser, wanted, atol=2e-4)


def test_fine_tuning_pulls_on_the_winner_alone():
  found = response(losses.sft)
  np.testing.assert_allclose(found.winner, np.full(25, -2 / 1000), rtol=1e-6)
  np.testing.assert_array_equal(found.loser, np.zeros(25))


def test_the_logit_of_the_axis_is_that_of_beta_whatever_the_objective_has():
  found = response(functools.partial(losses.dpo, beta=500.0))
  np.testing.assert_allclose(found.value, np.logaddexp(0, -LOGITS / 2), rtol=1e-4)


def test_parallel_residuals_let_the_safeguard_cut_the_loser_to_the_share_mu_leaves():
  found = response(functools.partial(losses.sdpo, base=DPO, mu=0.75), logits=[-1.0, 0.0, 1.0])
  np.testing.assert_allclose(found.winner, response(DPO, logits=[-1.0, 0.0, 1.0]).winner, rtol=1e-5)
  # λ = (1 - µ) ‖R_w‖/‖R_l‖ for parallel residuals: at z = 0 a quarter
  np.testing.assert_allclose(found.loser[1] / found.winner[1], 0.25, rtol=1e-5)


def test_errors_that_would_be_negative_are_refused():
  with pytest.raises(InputError, match=r"level must be above max \|logit\|/beta = 0.006"):
    response(DPO, level=0.005)


def test_nothing_to_draw_is_refused():
  with pytest.raises(InputError, match="no objective"):
    objective_plots.picture({}, beta=1000.0, level=0.1)


def test_every_objective_gets_its_place():
  two = opened(objective_plots.picture({"a": DPO, "b": DMPO}, beta=1000.0, level=0.1))
  five = opened(objective_plots.picture(dict.fromkeys("abcde", DPO), beta=1000.0, level=0.1))
  assert five.shape[0] > 1.5 * two.shape[0]
  assert five.shape[1] > 1.5 * two.shape[1]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_winner_and_loser_are_drawn_in_the_themes_colours_on_its_page(theme):
  png = objective_plots.picture({"sft": losses.sft}, beta=1000.0, level=0.1, theme=theme)
  colours = {tuple(pixel) for pixel in opened(png).reshape(-1, 3)}
  for text in (theme.page, theme.preferred, theme.rejected):
    assert tuple(bytes.fromhex(text[1:])) in colours


def test_the_picture_is_written_where_it_is_asked_for(tmp_path):
  path = tmp_path / "a.png"
  png = objective_plots.picture({"sft": losses.sft}, beta=1000.0, level=0.1, path=path)
  assert path.read_bytes() == png
