"""Every loss from its config: inputs, cost, gradients and two steps of training.

The losses share one compiled network: the index of the loss is an argument of the step.
"""

import functools
import importlib
import pathlib

import jax
import numpy as np
import pytest

from dmpo_jax import configs as folder
from dmpo_jax import data, interop, losses, pipelines, sampling
from dmpo_jax.errors import InputError
from dmpo_jax.parallel.sharding import batch as split_over
from dmpo_jax.parallel.sharding import make_mesh
from dmpo_jax.training import config as checks
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.run import train
from dmpo_jax.training.step import initial_state, make_step
from tests.losses.cases import random_pairs
from tests.training.tiny import smallest_config

FILES = sorted(pathlib.Path(folder.__file__).parent.glob("digits_*.py"))
CONFIGS = {
  file.stem: importlib.import_module(f"dmpo_jax.configs.{file.stem}").get_config()
  for file in FILES
  if file.stem != "digits_ddo"  # of dmpo-jax potential, whose losses are others
}
PAIRED = sorted(set(CONFIGS) - {"digits_reference"})
LOSSES = [setup.make_loss(CONFIGS[name].loss) for name in PAIRED]
LABELS = np.array([1, 0.5, 0, 0.25, 1, 0.75, 0.5, 0.9], np.float32)
WEIGHTS = np.array([1, 2, 0.5, 0, 1, 3, 1, 0.25], np.float32)
# Compiled in half the time; it runs only a few steps.
QUICK = {"xla_backend_optimization_level": 0}
every = pytest.mark.parametrize("name", PAIRED)


def apply(loss, errors, residuals):
  """The losses of pairs, whether or not the objective takes residuals."""
  return loss(errors, residuals)[0] if losses.requirements(loss).residuals else loss(errors)[0]


def chosen(index):
  """The loss that the objective of that index computes, as one function that can be traced."""

  def loss(errors, residuals):
    branches = [functools.partial(apply, loss) for loss in LOSSES]
    return jax.lax.switch(index, branches, errors, residuals), losses.sft(errors)[1]

  loss.requirements = losses.Requirements(residuals=True)
  return loss


@pytest.fixture(scope="module")
def pipeline():
  return setup.load_pipeline(smallest_config(), ["the digit seven"])


@pytest.fixture(scope="module")
def batch(pipeline):
  examples = data.DATASETS["digit_pairs"](num_pairs=8, temperature=0.03, seed=1)
  text, _ = pipelines.build(pipeline).tokenize(examples.captions)
  return Batch(text, examples.ids, pixels=examples.images, weight=WEIGHTS)


@pytest.fixture(scope="module")
def minimise(pipeline):
  """An objective whose loss is chosen by `frozen["index"]`; `denoise` replaces the network."""

  def make(**functions):
    base = setup.make_objective(CONFIGS["digits_dpo"], pipeline)
    base = base._replace(pipeline=base.pipeline._replace(**functions))

    def objective(trained, frozen, reference, batch, step):
      frozen = dict(frozen)
      loss = chosen(frozen.pop("index"))
      return base._replace(loss=loss)(trained, frozen, reference, batch, step)

    return objective

  return make


@pytest.fixture(scope="module")
def params(pipeline):
  """(trained, frozen, reference) of the real network, the policy near its reference."""
  rng = np.random.default_rng(0)
  reference = {"unet": pipeline.params["unet"]}
  trained = jax.tree.map(
    lambda x: x + 0.003 * rng.normal(size=x.shape).astype(np.float32), reference
  )
  return trained, {"text_encoder": pipeline.params["text_encoder"]}, reference


def linear(params, x_t, t, conditioning):
  """A network of one parameter."""
  return params["unet"] * x_t


LINEAR = ({"unet": np.float32(0.97)}, {"unet": np.float32(1.0)})


@pytest.fixture(scope="module")
def evaluate(minimise, params, batch):
  """(index, devices) -> (losses, metrics, gradient), with the linear network."""
  objective = minimise(denoise=linear)
  trained, reference = LINEAR

  def run(trained, frozen, batch):
    def total(trained):
      loss, logged = objective(trained, frozen, reference, batch, np.int32(0))
      return loss.mean(), (loss, logged)

    gradient, outputs = jax.grad(total, has_aux=True)(trained)
    return *outputs, gradient["unet"]

  run = jax.jit(run, compiler_options=QUICK)

  def evaluate_on(index, devices):
    frozen = {**params[1], "index": np.int32(index)}
    return run(trained, frozen, jax.device_put(batch, split_over(make_mesh(devices))))

  return evaluate_on


@pytest.fixture(scope="module")
def take_two_steps(minimise, params, batch):
  """index -> (state, losses) after two steps of the real network."""
  trained, frozen, reference = params
  optimizer = make_optimizer(CONFIGS["digits_dpo"].optimizer.to_dict() | {"warmup_steps": 0})
  step = make_step(minimise(), optimizer, ema_decay=0.0)
  step = jax.jit(step, donate_argnums=0, compiler_options=QUICK)

  def run(index):
    state, example_losses = initial_state(trained, optimizer, ema=False), []
    more = {**frozen, "index": np.int32(index)}
    for _ in range(2):
      state, _, loss = step(state, more, reference, batch)
      example_losses.append(np.asarray(loss))
    return jax.device_get(state), example_losses

  return run


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_passes_the_check(name):
  checks.check(CONFIGS[name])


def test_every_objective_has_a_config():
  assert {config.loss.name for config in CONFIGS.values()} == set(losses.LOSSES)


@every
def test_the_loss_is_that_of_the_logged_errors_times_the_weights(name, evaluate):
  index = PAIRED.index(name)
  example_losses, logged, _ = evaluate(index, 1)
  errors = losses.PairErrors(*(logged[field] for field in losses.PairErrors._fields))
  loss = LOSSES[index]
  if loss.func is losses.sdpo:  # the safeguard changes the gradient, not the value
    loss = loss.keywords["base"]
  if loss.func is losses.dspo:  # whose residuals are not logged; at this beta it is fine-tuning
    np.testing.assert_allclose(example_losses, WEIGHTS * errors.policy_w, rtol=5e-3)
  elif (
    loss.func is losses.contrastive
  ):  # likewise; its residuals lie within √r and √e of each other
    ew, el, rw, rl = errors
    part = (ew - el) / 2 + rw / 2 + 3 / 2 * rl - (np.sqrt(ew) - np.sqrt(rw)) ** 2 / 4
    assert np.all(example_losses <= WEIGHTS * (part + (np.sqrt(el) + np.sqrt(rl)) ** 2 * 3 / 4))
    part += (np.sqrt(ew) - np.sqrt(rw)) ** 2 / 4 - (np.sqrt(ew) + np.sqrt(rw)) ** 2 / 4
    least = WEIGHTS * (part + (np.sqrt(el) - np.sqrt(rl)) ** 2 * 3 / 4)
    assert np.all(example_losses >= least - 1e-6)
  else:
    np.testing.assert_allclose(example_losses, WEIGHTS * loss(errors)[0], rtol=1e-5, atol=1e-9)
  np.testing.assert_array_equal(logged["weight"], WEIGHTS)


@every
def test_two_steps_from_the_config_move_the_parameters_and_stay_finite(
  name, params, take_two_steps
):
  state, example_losses = take_two_steps(PAIRED.index(name))
  assert np.all(np.isfinite(example_losses))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params[0])
  assert 0 < max(jax.tree.leaves(moved)) < 1e-2
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))


@every
def test_four_devices_give_the_losses_and_the_gradient_of_one(name, evaluate):
  index = PAIRED.index(name)
  (one, _, slope_one), (four, _, slope_four) = (evaluate(index, devices) for devices in (1, 4))
  # An error's last digit, 1e-8, is multiplied by up to 1000; a statistic of the two pairs of a
  # device alone would be off by percents.
  np.testing.assert_allclose(four, one, rtol=1e-4)
  np.testing.assert_allclose(slope_four, slope_one, rtol=1e-4)


def test_a_loss_with_labels_is_the_expectation_over_the_two_orders(pipeline, params, batch):
  objective = setup.make_objective(CONFIGS["digits_dmpo"], pipeline)
  objective = objective._replace(pipeline=objective.pipeline._replace(denoise=linear))
  trained, reference = LINEAR
  labelled = batch._replace(label=LABELS)
  run = jax.jit(lambda t: objective(t, params[1], reference, labelled, 0), compiler_options=QUICK)
  example_losses, logged = run(trained)
  errors = losses.PairErrors(*(logged[field] for field in losses.PairErrors._fields))
  first, second = (objective.loss(x)[0] for x in (errors, losses.swap(errors)))
  expected = WEIGHTS * (LABELS * first + (1 - LABELS) * second)
  np.testing.assert_allclose(example_losses, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "times"), [("digits_dpo", 2), ("digits_mapo", 1), ("digits_sft", 1)]
)
def test_an_objective_without_reference_runs_the_network_once(name, times, pipeline, params, batch):
  trained, frozen, reference = params
  config, calls = CONFIGS[name], []
  objective = setup.make_objective(config, pipeline)
  functions = objective.pipeline

  def denoise(*arguments):
    calls.append(1)
    return functions.denoise(*arguments)

  objective = objective._replace(pipeline=functions._replace(denoise=denoise))
  reference = reference if setup.uses_reference(config) else None
  _, logged = jax.eval_shape(objective, trained, frozen, reference, batch, np.int32(0))
  assert len(calls) == times
  assert ("reference_w" in logged) == (times == 2)


def test_residuals_are_kept_only_for_objectives_that_take_them(pipeline, params, batch):
  trained, frozen, reference = params
  seen = {}
  for name in ("digits_dpo", "digits_sdpo"):
    objective = setup.make_objective(CONFIGS[name], pipeline)

    def spy(*inputs, loss=objective.loss, name=name):
      seen[name] = [type(x).__name__ for x in inputs]
      return loss(*inputs)

    spy.requirements = losses.requirements(objective.loss)
    arguments = (trained, frozen, reference, batch, np.int32(0))
    jax.eval_shape(objective._replace(loss=spy), *arguments)
  assert seen == {"digits_dpo": ["PairErrors"], "digits_sdpo": ["PairErrors", "Residuals"]}


@pytest.mark.parametrize(("name", "wanted"), [("digits_dpo", True), ("digits_mapo", False)])
def test_a_run_has_a_reference_where_its_loss_uses_one(name, wanted, pipeline):
  assert (setup.split_params(CONFIGS[name], pipeline)[2] is not None) == wanted


def test_a_misspelt_key_of_a_wrapped_objective_is_refused():
  with pytest.raises(ValueError, match=r"'dpo'.*'betta'; did you mean 'beta'"):
    setup.make_loss({"name": "sdpo", "mu": 0.9, "base": {"name": "dpo", "betta": 1.0}})


def test_controls_stand_beside_the_keys_of_a_loss_and_are_logged(pipeline, params, batch):
  config = CONFIGS["digits_dpo"].copy_and_resolve_references()
  with config.loss.unlocked():
    config.loss.update({"auto_gradient_factor": 0.2, "sft_weight": 0.5})
  objective = setup.make_objective(config, pipeline)
  trained, frozen, reference = params
  loss, metrics = jax.jit(objective.__call__)(trained, frozen, reference, batch, np.int32(0))
  size = np.abs(metrics["logit"] / metrics["beta_scale"]).mean()
  np.testing.assert_allclose(metrics["beta_scale"], np.log(4) / size, rtol=1e-4)
  dpo = -jax.nn.log_sigmoid(metrics["logit"])
  np.testing.assert_allclose(loss, WEIGHTS * (dpo + 0.5 * metrics["policy_w"]), rtol=1e-5)


def test_a_misspelt_control_is_refused():
  with pytest.raises(ValueError, match=r"'dpo'.*'sft_wieght'; did you mean 'sft_weight'"):
    setup.make_loss({"name": "dpo", "beta": 1.0, "sft_wieght": 1.0})


def test_a_wrapped_objective_that_is_no_section_is_refused():
  with pytest.raises(ValueError, match=r"section with a name.*'dpo'"):
    setup.make_loss({"name": "sdpo", "mu": 0.9, "base": "dpo"})


def test_labels_are_refused_by_an_objective_that_cannot_use_them(pipeline, params, batch):
  trained, frozen, reference = params
  config = CONFIGS["digits_dynamic_alpha_dpo"]
  objective = setup.make_objective(config, pipeline)
  with pytest.raises(ValueError, match="takes no soft labels"):
    jax.eval_shape(objective, trained, frozen, reference, batch._replace(label=LABELS), np.int32(0))


def test_a_run_without_reference_on_labelled_weighted_pairs(pipeline, tmp_path, monkeypatch):
  def tied(*, num_pairs, temperature, seed):
    pairs = data.datasets.digit_pairs(num_pairs=num_pairs, temperature=temperature, seed=seed)
    return data.Examples(pairs.images, pairs.captions, pairs.ids, LABELS, WEIGHTS)

  monkeypatch.setitem(data.DATASETS, "tied", tied)
  interop.save_pipeline(tmp_path / "start", pipeline)
  config = CONFIGS["digits_mapo"].copy_and_resolve_references()
  config.pipeline = str(tmp_path / "start")
  config.data.update({"name": "tied", "num_pairs": 8})
  config.batch_size, config.num_steps, config.num_devices = 8, 2, 1
  config.checkpoint.every, config.ema_decay = 2, 0.0
  train(config, tmp_path / "run", show_progress=False)
  first, last = metrics.read(tmp_path / "run")
  assert "reference_w" not in first
  assert np.isfinite(last["loss"])
  assert first["weight"] == last["weight"] == pytest.approx(float(WEIGHTS.mean()))
  assert first["label"] == pytest.approx(float(LABELS.mean()))


SEEDED = Batch(
  text={"input_ids": np.zeros((3, 8), np.int32)},
  example_id=np.arange(3, dtype=np.uint32),
  pixels=np.random.default_rng(3).uniform(-1, 1, (3, 2, 8, 8, 1)).astype(np.float32),
  timesteps=np.array([10, 400, 900], np.int32),
  seeds=np.array([[5, 2**32 - 1], [7, 7], [0, 3]], np.uint32),
  score_gap=np.array([0.02, -0.4, 0.0], np.float32),
)


@pytest.fixture(scope="module")
def seeded(pipeline):
  """The objective of digits_dpo with a network that predicts 0, and (frozen, x_T by seed)."""
  base = setup.make_objective(CONFIGS["digits_dpo"], pipeline)
  functions = base.pipeline._replace(denoise=lambda params, x_t, t, c: 0.0 * x_t)
  frozen = {"text_encoder": pipeline.params["text_encoder"], "unet": {}}
  noise = np.asarray(sampling.initial_noise(SEEDED.seeds.reshape(-1), (8, 8, 1)))
  return base._replace(pipeline=functions), frozen, noise.reshape(3, 2, 8, 8, 1)


def test_each_image_is_noised_with_what_its_sampling_began_with(seeded):
  """A network that predicts 0 has the error mean(x_T²)."""
  objective, frozen, noise = seeded
  batch = objective.prepare(SEEDED, np.int32(4))
  errors, _ = objective.evaluate({}, frozen, None, batch, np.int32(4))
  expected = np.square(noise).mean(axis=(2, 3, 4))
  np.testing.assert_allclose(errors.policy_w, expected[:, 0], rtol=1e-6)
  np.testing.assert_allclose(errors.policy_l, expected[:, 1], rtol=1e-6)


def test_flipped_labels_take_the_seeds_with_the_images(seeded):
  objective, _, _ = seeded
  flipped = objective._replace(label_flip_rate=1.0).prepare(SEEDED, np.int32(0))
  np.testing.assert_array_equal(flipped.seeds, SEEDED.seeds[:, ::-1])
  np.testing.assert_array_equal(flipped.pixels, SEEDED.pixels[:, ::-1])


def test_the_factor_of_beta_is_that_of_the_loss_at_each_pairs_own_beta(seeded):
  objective, _, _ = seeded
  config = checks.check(CONFIGS["digits_dpo"]).copy_and_resolve_references().unlock()
  config.data.score_gaps, config.beta.score_temperature, config.beta.decay_end = True, 0.1, 10
  objective = objective._replace(beta_factor=setup.beta_factor(config))
  batch = objective.prepare(SEEDED, np.int32(5))
  errors, _ = random_pairs(pairs=3)
  loss, _ = objective.loss_of(batch, errors, None)
  factor = 0.75 * np.tanh(np.abs(SEEDED.score_gap) / 0.2)
  for i in range(3):
    pair = jax.tree.map(lambda e, i=i: e[i : i + 1], errors)
    if factor[i] == 0:
      assert loss[i] == pytest.approx(np.log(2))
    else:
      expected, _ = losses.dpo(pair, beta=1000.0 * float(factor[i]))
      np.testing.assert_allclose(loss[i : i + 1], expected, rtol=1e-4)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"beta.score_temperature": 0.1}, "belong together"),
    ({"data.score_gaps": True}, "belong together"),
    ({"beta.decay_start": 5}, "decay_end must be above decay_start 5, got 0"),
    ({"beta.decay_start": 5, "beta.decay_end": 5}, "decay_end must be above decay_start 5, got 5"),
    ({"beta.decay_end": 5, "loss.name": "ipo"}, "no meaning for the loss 'ipo'"),
  ],
)
def test_a_factor_of_beta_without_effect_or_meaning_is_refused(changes, message):
  config = CONFIGS["digits_dpo"].copy_and_resolve_references().unlock()
  if changes.get("loss.name"):
    del config.loss.label_smoothing
  for key, value in changes.items():
    section, name = key.split(".")
    config[section][name] = value
  with pytest.raises(InputError, match=message):
    checks.check(config)
