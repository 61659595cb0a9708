"""Learning a potential: resume, devices, what it minimises, and its errors."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from dmpo_jax import pipelines
from dmpo_jax.commands.main import main
from dmpo_jax.configs import digits_ddo
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines.potential_folder import load_potential
from dmpo_jax.training.potential import config as configs
from dmpo_jax.training.potential import run as run_module
from dmpo_jax.training.potential import samples
from dmpo_jax.training.potential.run import learn
from tests.interop import tiny


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  return tiny.write_tiny_pixels(tmp_path_factory.mktemp("pixels"))


def tiny_config(pipeline, loss="rlhf"):
  config = digits_ddo.get_config(loss)
  config.pipeline = str(pipeline)
  config.prompts = ("the digit seven", "one")
  config.samples.update({"per_prompt": 24, "held_out": 8, "steps": 2, "batch_size": 24})
  config.score.name = "level"
  config.score.temperature = 0.05
  config.groups, config.group_size = 2, 8
  config.network.update({"widths": (8,), "groups": 4})
  config.num_loops, config.steps_per_loop = 2, 4
  config.drift.num_steps = 3
  config.checkpoint.every = 3
  config.log_every = 1
  config.num_devices = 1
  return config


def score(images, prompts):
  return images.mean(axis=(1, 2, 3))


def weights_of(folder):
  return {
    name: load_file(folder / "potential" / f"{name}.safetensors") for name in ("potential", "drift")
  }


def assert_same(first, second):
  for name, arrays in weights_of(first).items():
    for key, array in weights_of(second)[name].items():
      np.testing.assert_array_equal(array, arrays[key], err_msg=f"{name}.{key}")


def numbers(file):
  """All numbers of a file of records, but those of gradients."""
  text = file.read_text()
  records = json.loads(text) if file.suffix == ".json" else map(json.loads, text.splitlines())
  kept = [{k: v for k, v in record.items() if k != "gradient_norm"} for record in records]
  return jax.tree.leaves(kept)


@pytest.fixture(scope="module")
def learned(pipeline, tmp_path_factory):
  folder = tmp_path_factory.mktemp("learned")
  learn(tiny_config(pipeline), folder, score, show_progress=False)
  return folder


def test_a_run_writes_a_potential_its_loops_and_metrics(learned, pipeline):
  potential = load_potential(learned / "potential", pipelines.load(pipeline))
  assert potential.drift == "log_h"
  assert [loop["loop"] for loop in potential.record["loops"]] == [0, 1, 2]
  lines = [
    json.loads(line)
    for line in (learned / "metrics" / "train-000000.jsonl").read_text().splitlines()
  ]
  assert [line["step"] for line in lines] == list(range(1, 12))
  assert {"loss", "effective_sample_size", "max_potential"} <= set(lines[0])
  assert lines[0]["effective_sample_size"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("stop", [4, 9])  # at the start of a loop, and while the drift is learned
def test_a_run_that_was_interrupted_ends_with_the_same_potential(
  learned, pipeline, tmp_path, monkeypatch, stop
):
  batch = samples.Pool.batch

  def interrupted(self, seed, step, *sizes):
    if step == stop:
      raise KeyboardInterrupt
    return batch(self, seed, step, *sizes)

  monkeypatch.setattr(samples.Pool, "batch", interrupted)
  with pytest.raises(KeyboardInterrupt):
    learn(tiny_config(pipeline), tmp_path / "run", score, show_progress=False)
  monkeypatch.undo()
  learn(tiny_config(pipeline), tmp_path / "run", score, show_progress=False)
  assert_same(learned, tmp_path / "run")


def test_two_devices_learn_the_same_potential(learned, pipeline, tmp_path):
  config = tiny_config(pipeline)
  config.num_devices = 2
  learn(config, tmp_path / "run", score, show_progress=False)
  # By what it does: Adam scales the rounding of a gradient of 0 up, as a constant of f has.
  for name in ("metrics/train-000000.jsonl", "loops.json"):
    one, two = (numbers(folder / name) for folder in (learned, tmp_path / "run"))
    np.testing.assert_allclose(two, one, atol=2e-3, err_msg=name)


def test_another_config_is_refused_in_the_same_directory(learned, pipeline):
  config = tiny_config(pipeline)
  config.beta = 0.7
  with pytest.raises(InputError, match=r"holds a different run(.|\n)*config.beta"):
    learn(config, learned, score, show_progress=False)


def test_a_collapsed_effective_sample_size_stops_the_run(pipeline, tmp_path):
  config = tiny_config(pipeline)
  config.score.temperature, config.beta, config.weights.beta_prime = 1e-4, 1e-3, 1e-3
  config.steps_per_loop, config.min_ess = 60, 0.9
  config.optimizer.learning_rate = 2e-2
  with pytest.raises(InputError, match=r"effective sample size is .*Raise beta"):
    learn(config, tmp_path / "run", score, show_progress=False)


def test_a_loss_that_rises_stops_the_run(pipeline, tmp_path, monkeypatch):
  config = tiny_config(pipeline)
  record, values = run_module._Run._record, iter([1.0, 2.0, 3.0])

  def rising(self, k, params):
    level = next(values)
    return {**record(self, k, params), "loss": level, "losses": [level, level]}

  monkeypatch.setattr(run_module._Run, "_record", rising)
  config.num_loops = 1
  with pytest.raises(InputError, match=r"the loss rises to 2 in step 1 .*Raise beta_prime"):
    learn(config, tmp_path / "run", score, show_progress=False)


def test_pairs_of_a_data_set_teach_a_potential_too(pipeline, tmp_path):
  config = tiny_config(pipeline, "dpo")
  config.data = ConfigDict(
    {"name": "digit_pairs", "num_pairs": 200, "temperature": 0.03, "seed": 1}
  )
  config.drift.name = ""
  config.num_loops, config.prompts = 1, ()
  result = learn(config, tmp_path / "run", None, show_progress=False)
  assert not (result.potential / "drift.safetensors").exists()
  assert len(result.loops) == 2


def test_the_denoising_drift_is_learned_from_the_guided_score(pipeline, tmp_path):
  config = tiny_config(pipeline)
  config.drift.name, config.num_loops, config.drift.num_steps = "denoising", 1, 2
  result = learn(config, tmp_path / "run", score, show_progress=False)
  potential = load_potential(result.potential, pipelines.load(pipeline))
  assert potential.drift == "denoising"
  assert np.abs(potential.learned["out"]["kernel"]).max() > 0


def test_the_command_samples_a_potential_it_has_learned(learned, pipeline, tmp_path, capsys):
  arguments = ["sample", "--pipeline", str(pipeline), "--prompt", "the digit seven", "--steps", "2"]
  arguments += ["--potential", str(learned / "potential"), "--seeds", "1"]
  assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
  manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
  assert manifest["drift"] == "log_h"
  assert "potential" in manifest["content"]
  assert main([*arguments, "--out", str(tmp_path / "b"), "--drift", "denoising"]) == 2
  assert "has learned 'log_h'" in capsys.readouterr().err
  assert main([*arguments, "--out", str(tmp_path / "b"), "--particles", "2"]) == 2
  assert "no effect on the learned drift 'log_h'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.loss.update({"name": "dpoo"}), "did you mean 'dpo'"),
    (lambda c: c.loss.update({"gamma": 1.0}), r"'rlhf' has the keys \[\], got \['gamma'\]"),
    (lambda c: c.update({"beta": 0.0}), "config.beta must be"),
    (lambda c: c.drift.update({"name": "nested"}), "config.drift.name 'nested'"),
    (lambda c: c.samples.update({"held_out": 24}), "must be below config.samples.per_prompt"),
    (lambda c: c.update({"prompts": ()}), "config.prompts is empty"),
    (lambda c: c.data.update({"name": "digit_pairs"}), "which the loss 'dpo' takes"),
  ],
)
def test_a_config_that_cannot_be_used_is_refused_by_key(pipeline, change, message):
  config = tiny_config(pipeline)
  with config.unlocked():
    change(config)
  with pytest.raises(InputError, match=message):
    configs.check(config)


def test_the_configs_of_the_digits_pass_the_check():
  for loss in digits_ddo.LOSSES:
    configs.check(digits_ddo.get_config(loss))
  assert jax.tree.leaves(configs.default().to_dict())
