"""Weights of timesteps: against the published definition in x_0, and what is refused."""

import numpy as np
import pytest

from dmpo_jax import diffusion

FIELDS = {"num_train_timesteps": 6, "beta_start": 0.01, "beta_end": 0.6, "beta_schedule": "linear"}
T = np.arange(6, dtype=np.int32)


def _schedule(kind):
  return diffusion.from_config({**FIELDS, "prediction_type": kind})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_the_error_of_the_image_by_the_capped_snr(kind):
  schedule = _schedule(kind)
  rng = np.random.default_rng(0)
  x0, noise, off = rng.normal(size=(3, 6, 4, 4, 1)).astype(np.float32)
  x_t = schedule.add_noise(x0, noise, T)
  target = schedule.target(x0, noise, T)
  error = np.mean(np.square(off), axis=(1, 2, 3))  # of a prediction that is wrong by `off`
  of_image = np.square(np.asarray(schedule.to_x0(target + off, x_t, T)) - x0)
  abar = np.cumprod(1 - np.linspace(0.01, 0.6, 6))
  wanted = np.minimum(abar / (1 - abar), 0.9) * of_image.mean(axis=(1, 2, 3))
  weight = schedule.weights({"name": "min_snr", "gamma": 0.9})(T)
  np.testing.assert_allclose(weight * error, wanted, rtol=2e-4)


def test_none_is_no_weight_and_a_table_is_looked_up():
  assert _schedule("epsilon").weights({"name": "none"}) is None
  table = _schedule("epsilon").weights({"name": "table", "values": (1, 0, 2.5, 0, 0, 3)})
  np.testing.assert_array_equal(table(np.array([2, 5, 1])), [2.5, 3, 0])


@pytest.mark.parametrize(
  ("config", "words"),
  [
    ({"name": "min_snr"}, "needs the key 'gamma'"),
    (
      {"name": "min_snr", "gamma": 0.0},
      r"'min_snr' must be a number in \[1e-06, 1e\+06\], got 0\.0",
    ),
    ({"name": "min_snr", "gamma": 5.0, "gama": 1}, "gama"),
    ({"name": "minsnr", "gamma": 5.0}, "did you mean 'min_snr'"),
    ({"name": "table", "values": (1, 2)}, "must be 6 finite numbers.*got 2"),
    ({"name": "table", "values": (1, 1, 1, 1, 1, float("nan"))}, "finite"),
    ({"name": "table", "values": (0,) * 6}, "not all 0"),
    (
      {"name": "table", "values": (1, 1, 1, 1, 1, 1e39)},
      "from 1 to 1e\\+39, which float32 does not",
    ),
    (
      {"name": "table", "values": (0, 0, 0, 0, 0, 1e-50)},
      "from 0 to 1e-50, which float32 does not",
    ),
    ({"name": "min_snr", "gamma": 1e-50}, "must be a number in .*, got 1e-50"),
    ({"name": "min_snr", "gamma": "5"}, "gamma must be a number, got '5'"),
  ],
)
def test_what_is_no_weight_is_refused(config, words):
  with pytest.raises(ValueError, match=words):
    _schedule("epsilon").weights(config)
