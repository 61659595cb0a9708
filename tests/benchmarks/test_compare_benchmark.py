"""The comparison of objectives: matched movement, seeds, flips, and its report."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import compare_objectives
import compare_report
import compare_setting
import compare_training

from dmpo_jax.errors import InputError


def fake_run(name, seed, gain, level=0.1, flip_rate=0.0):
  point = {"level": level, "step": 7.0, "movement": 0.1, "error_change": 0.01, "gain": gain}
  point |= {"win_rate": 0.9, "right": 1.0, "vendi": 1.5}
  return {"name": name, "seed": seed, "flip_rate": flip_rate, "points": [point]}


def test_the_interval_is_students():
  mean, half = compare_report.mean_and_half_width([1.0, 2.0, 4.0])
  assert mean == pytest.approx(7 / 3)
  # t of 2 degrees of freedom at 97.5%: 4.302653
  assert half == pytest.approx(4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3), rel=1e-6)


def test_differences_are_of_equal_seeds_that_both_reached_the_level():
  runs = [fake_run("dmpo", s, g) for s, g in ((0, 0.5), (1, 0.7), (2, 0.9))]
  runs += [fake_run("dpo", 1, 0.4), fake_run("dpo", 0, 0.1), fake_run("dpo", 2, 0.1, level=None)]
  found = compare_report.differences(runs, "dpo", 0.0, 0.1, "gain")
  np.testing.assert_allclose(found, [0.4, 0.3])


def test_the_controls_have_dmpos_gradient_at_the_start():
  """By finite differences of the losses themselves, in float64 formulas."""
  sections = compare_setting.objectives()
  alpha, h = sections["dmpo"]["alpha"], 1e-6
  target = np.log((1 - alpha) / alpha)

  def dmpo(z):
    p = 1 / (1 + np.exp(-z))
    return p * (z - target) + np.log1p(np.exp(-z)) - np.log(alpha)

  # d loss/d margin at 0; the logit is beta times the margin.
  slope = sections["dmpo"]["beta"] * (dmpo(h) - dmpo(-h)) / (2 * h)
  up, gradient = sections["dpo_beta_up"], sections["dpo_gradient"]
  assert -0.5 * up["beta"] == pytest.approx(slope, rel=1e-3)
  assert -0.5 * gradient["beta"] * gradient["preferred_gradient_scale"] == pytest.approx(
    slope, rel=1e-3
  )
  down = sections["dpo_beta_down"]["beta"]
  assert down * up["beta"] == pytest.approx(sections["dpo"]["beta"] ** 2)


class LineTrainer:
  """A model of one parameter that moves by 0.3 a step; its movement is the square of it."""

  setting = None

  def start(self):
    return compare_training.State(0, {"x": np.zeros(1)}, None, None)

  def batches(self, seed):
    return lambda step: step

  def step(self, state, name, seed, flip_rate, batch):
    return state._replace(params={"x": state.params["x"] + 0.3})

  def movement(self, params):
    return float(params["x"][0] ** 2), 0.0

  def sample(self, params):
    return params["x"]


def run(monkeypatch, **options):
  monkeypatch.setattr(compare_training, "scores", lambda setting, images, baseline: {})
  settings = {"levels": [0.04, 0.5, 1.0], "max_steps": 10, "every": 2, "baseline": None}
  return compare_training.run(LineTrainer(), "dpo", 0, 0.0, **(settings | options))


def test_a_run_is_measured_where_its_movement_is_the_level(monkeypatch):
  result = run(monkeypatch)
  np.testing.assert_allclose([p["movement"] for p in result["points"]], [0.04, 0.5, 1.0])
  np.testing.assert_allclose([p["step"] for p in result["points"]], np.sqrt([0.04, 0.5, 1.0]) / 0.3)
  assert result["trajectory"][-1][0] == 4, "it ends at the last level"


def test_a_run_that_does_not_reach_a_level_is_measured_at_its_end(monkeypatch):
  points = run(monkeypatch, levels=[0.5, 100.0], max_steps=5)["points"]
  assert [p["level"] for p in points] == [0.5, None]
  assert points[-1]["step"] == 5
  assert points[-1]["movement"] == pytest.approx(1.5**2)


def test_a_work_directory_of_other_settings_is_refused(tmp_path):
  compare_objectives.check_setting(tmp_path, {"rate": 1e-4})
  compare_objectives.check_setting(tmp_path, {"rate": 1e-4})
  with pytest.raises(InputError, match=r"another rate \(0.0001, now 0.001\)"):
    compare_objectives.check_setting(tmp_path, {"rate": 1e-3})


@pytest.mark.slow
def test_runs_are_resumed_and_reported(tmp_path, monkeypatch):
  """Two objectives on the digits from a new network, without and with flips."""
  from dmpo_jax import pipelines
  from tests.training.tiny import smallest_config

  config = smallest_config()
  reference = tmp_path / "reference"
  captions = [f"the digit {word}" for word in compare_setting.digits.WORDS]
  pipelines.save(reference, pipelines.create(config.model.to_dict(), captions, 0))
  options = [
    *("dmpo", "sft", "--reference", str(reference), "--workdir", str(tmp_path / "out")),
    *("--seeds", "2", "--flips", "0", "0.5", "--levels", "1e-5", "--steps", "2", "--every", "1"),
    *("--batch-size", "4", "--per-caption", "2", "--warmup", "0", "--rate", "1e-3"),
  ]
  compare_objectives.main(options)
  report = (tmp_path / "out/report.md").read_text()
  runs = compare_objectives.read_runs(tmp_path / "out")
  assert len(runs) == 8
  assert all(run["trajectory"][0] == [0, 0.0] for run in runs)
  by_flip = [
    [r["trajectory"] for r in runs if (r["name"], r["flip_rate"]) == ("dmpo", f)] for f in (0, 0.5)
  ]
  assert by_flip[0] != by_flip[1], "flips change nothing"
  assert by_flip[0][0] != by_flip[0][1], "seeds change nothing"
  assert (tmp_path / "out/compare.png").stat().st_size > 10_000
  monkeypatch.setattr(compare_objectives, "Trainer", None)  # finished runs train nothing
  compare_objectives.main(options)
  assert (tmp_path / "out/report.md").read_text() == report
