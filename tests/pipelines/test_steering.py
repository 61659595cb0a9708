"""Samplers that follow a potential."""

import dataclasses

import jax
import numpy as np
import pytest

from dmpo_jax import pipelines
from dmpo_jax.errors import InputError
from dmpo_jax.models import potential as networks
from dmpo_jax.pipelines.fingerprints import pipeline_fingerprint
from dmpo_jax.pipelines.generate import STEERING
from dmpo_jax.pipelines.potential_folder import load_potential, save_potential
from dmpo_jax.pipelines.steering import Potential, Steering, check_drift, prompts_text
from tests.interop import tiny

PROMPTS, SEEDS = ["one", "the digit seven", "one"], np.array([3, 4, 5], np.uint32)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  return pipelines.load(tiny.write_tiny_pixels(tmp_path_factory.mktemp("pixels")))


@pytest.fixture(scope="module")
def functions(pipeline):
  return pipelines.build(pipeline)


@pytest.fixture(scope="module")
def potential(pipeline, functions):
  text = prompts_text(functions, pipeline.params, ["one"])
  config = networks.PotentialConfig(1, text.shape[1], widths=(8,), groups=4)
  zero = networks.build(config).init(jax.random.key(0))
  kernel = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
  params = {**zero, "out": {"kernel": 3 * kernel, "bias": np.zeros(1, np.float32)}}
  return Potential(config, params, zero, "log_h", pipeline_fingerprint(pipeline), {})


SAMPLERS = {}


def images(pipeline, functions, steering, rows=(0, 1, 2)):
  """Images of rows; samplers are compiled once."""
  name = steering and steering.drift
  if name not in SAMPLERS:
    SAMPLERS[name] = pipelines.make_sampler(
      functions, functions.make_solver(2), guidance=2.0, steering=steering
    )
  inputs, _ = pipelines.sampling_inputs(functions, [PROMPTS[i] for i in rows], SEEDS[list(rows)])
  params = pipeline.params if steering is None else {**pipeline.params, STEERING: steering.params}
  return pipelines.sample_all(
    SAMPLERS[name], params, inputs, batch_size=3, devices=jax.devices()[:1]
  )


@pytest.fixture(scope="module")
def plain(pipeline, functions):
  return images(pipeline, functions, None)


def test_a_drift_of_zero_changes_nothing(pipeline, functions, potential, plain):
  steered = images(pipeline, functions, Steering(potential, "log_h"))
  np.testing.assert_allclose(steered, plain, atol=1e-5)


def test_a_nested_drift_gives_an_image_of_its_seed_in_any_batch(
  pipeline, functions, potential, plain
):
  steering = Steering(potential, "nested", particles=3, inner_steps=2)
  steered = images(pipeline, functions, steering)
  assert np.abs(steered - plain).max() > 1e-3
  others = images(pipeline, functions, steering, (1, 1, 0))
  np.testing.assert_allclose(others[[0, 2]], steered[[1, 0]], atol=1e-5)


def test_a_folder_round_trips(pipeline, potential, tmp_path):
  save_potential(tmp_path / "potential", potential)
  loaded = load_potential(tmp_path / "potential", pipeline)
  assert loaded.config == potential.config
  for ours, theirs in zip(
    jax.tree.leaves((loaded.params, loaded.learned)),
    jax.tree.leaves((potential.params, potential.learned)),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_a_potential_of_another_pipeline_is_refused(pipeline, potential, tmp_path):
  save_potential(tmp_path / "potential", potential)
  name = next(iter(pipeline.params))
  changed = jax.tree.map(lambda x: x + np.float32(0.5), pipeline.params[name])
  other = dataclasses.replace(pipeline, params={**pipeline.params, name: changed})
  with pytest.raises(InputError, match="belongs to another pipeline: its weights differ"):
    load_potential(tmp_path / "potential", other)


def test_a_damaged_folder_is_refused(pipeline, potential, tmp_path):
  folder = tmp_path / "potential"
  with pytest.raises(InputError, match=r"it has no potential\.json"):
    load_potential(tmp_path, pipeline)
  save_potential(folder, potential)
  (folder / "potential.safetensors").write_bytes(b"damaged")
  with pytest.raises(InputError, match=r"potential\.safetensors"):
    load_potential(folder, pipeline)


def test_an_unknown_drift_and_one_that_was_not_learned_are_refused(potential):
  with pytest.raises(InputError, match="drift 'nestd'; did you mean 'nested'"):
    check_drift(Steering(potential, "nestd"))
  with pytest.raises(InputError, match="which has learned 'log_h'"):
    check_drift(Steering(potential, "denoising"))


def test_the_cost_of_a_sample_is_counted(potential):
  assert Steering(potential, "log_h").evaluations(20, guided=True) == 40
  assert Steering(potential, "nested", 64, 15).evaluations(20, guided=True) == 20 * 961 * 2
