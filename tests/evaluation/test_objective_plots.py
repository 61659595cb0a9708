"""Value and slope of losses along the logits of a pair."""

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


def test_the_slopes_of_dmpo_agree_with_the_closed_form():
  p = 1 / (1 + np.exp(-LOGITS))
  wanted = p * (1 - p) * (LOGITS - np.log(0.95 / 0.05))
  curve = response(DMPO)
  np.testing.assert_allclose(curve.preferred, wanted, atol=2e-4)
  np.testing.assert_allclose(curve.rejected, wanted, atol=2e-4)


def test_fine_tuning_depends_on_the_preferred_error_alone():
  curve = response(losses.sft)
  np.testing.assert_allclose(curve.preferred, np.full(25, -2 / 1000), rtol=1e-6)
  np.testing.assert_array_equal(curve.rejected, np.zeros(25))


def test_the_axis_has_its_own_beta():
  curve = response(functools.partial(losses.dpo, beta=500.0))
  np.testing.assert_allclose(curve.value, np.logaddexp(0, -LOGITS / 2), rtol=1e-4)


def test_with_parallel_residuals_the_safeguard_scales_the_slope_of_the_rejected_image():
  curve = response(functools.partial(losses.sdpo, base=DPO, mu=0.75), logits=[-1.0, 0.0, 1.0])
  np.testing.assert_allclose(
    curve.preferred, response(DPO, logits=[-1.0, 0.0, 1.0]).preferred, rtol=1e-5
  )
  # λ = (1 - µ) ‖R_w‖/‖R_l‖ for parallel residuals: at z = 0 a quarter
  np.testing.assert_allclose(curve.rejected[1] / curve.preferred[1], 0.25, rtol=1e-5)


def test_errors_that_would_be_negative_are_refused():
  with pytest.raises(InputError, match=r"level must be above max \|logit\|/beta = 0.006"):
    response(DPO, level=0.005)


def test_no_loss_is_refused():
  with pytest.raises(InputError, match="no loss to plot"):
    objective_plots.picture({}, beta=1000.0, level=0.1)


def test_every_loss_has_its_own_axes():
  two = opened(objective_plots.picture({"a": DPO, "b": DMPO}, beta=1000.0, level=0.1))
  five = opened(objective_plots.picture(dict.fromkeys("abcde", DPO), beta=1000.0, level=0.1))
  assert five.shape[0] > 1.5 * two.shape[0]
  assert five.shape[1] > 1.5 * two.shape[1]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_plot_has_the_colours_of_its_theme(theme):
  png = objective_plots.picture({"sft": losses.sft}, beta=1000.0, level=0.1, theme=theme)
  colours = {tuple(pixel) for pixel in opened(png).reshape(-1, 3)}
  for colour in (theme.page, theme.preferred, theme.rejected):
    assert tuple(bytes.fromhex(colour[1:])) in colours


def test_the_png_is_written_to_the_path(tmp_path):
  path = tmp_path / "a.png"
  png = objective_plots.picture({"sft": losses.sft}, beta=1000.0, level=0.1, path=path)
  assert path.read_bytes() == png
