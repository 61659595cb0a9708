"""A reference that moves: its updates, the logits around them, layouts, resumed runs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmpo_jax import data, interop, losses, models
from dmpo_jax.commands.main import main
from dmpo_jax.configs import digits_dpo
from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.parallel import sharding
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.config import check
from dmpo_jax.training.export import export
from dmpo_jax.training.objective import adapt
from dmpo_jax.training.reference import ReferenceUpdate
from dmpo_jax.training.resume import to_saved
from dmpo_jax.training.run import train
from dmpo_jax.training.step import (
  compile_step,
  initial_state,
  make_step,
  sharded_initial_state,
)
from tests.training.rows import computed
from tests.training.tiny import pairs_config, smallest_config

EMA = ReferenceUpdate("ema", decay=0.75)
LATE = ReferenceUpdate("ema", decay=0.75, start=2)
HARD = ReferenceUpdate("hard", every=2)
STEPS = 5


class Steps(NamedTuple):
  """Results of the first steps: policy and reference from step 0 on, metrics from step 1 on."""

  policy: list
  reference: list
  metrics: list


def denoise(params, x_t, t, conditioning):
  """A network of one layer, a different function at each timestep."""
  scale = (1 + t / 1000)[:, None, None]
  return jnp.tanh(scale * (x_t[..., 0] @ params["unet"]["proj"]["kernel"]))[..., None]


@pytest.fixture(scope="module")
def setting():
  """An objective over that network, its parameters, and eight pairs."""
  pipeline = setup.load_pipeline(smallest_config(), ["the digit seven"])
  objective = setup.make_objective(digits_dpo.get_config(), pipeline)
  objective = objective._replace(
    pipeline=objective.pipeline._replace(denoise=denoise),
    loss=functools.partial(losses.dpo, beta=5000.0),
    starts_at_reference=True,
  )
  kernel = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
  frozen = {"text_encoder": pipeline.params["text_encoder"]}
  pairs = data.DATASETS["digit_pairs"](num_pairs=8, temperature=0.03, seed=1)
  text, _ = objective.pipeline.tokenize(pairs.captions)
  return (
    objective,
    {"proj": {"kernel": kernel}},
    frozen,
    Batch(text, pairs.ids, pixels=pairs.images),
  )


@pytest.fixture(scope="module")
def steps(setting):
  """(update, is a LoRA, data, fsdp, microbatches) -> `Steps`."""
  smallest, sharding.SMALLEST = sharding.SMALLEST, 8

  @functools.cache
  def run(update, lora=False, size=1, fsdp=1, microbatches=1):
    objective, unet, frozen, batch = setting
    trained, reference = {"unet": unet}, {"unet": unet}
    if lora:
      factors = models.lora.init(jax.random.key(0), unet, targets=("proj",), rank=2)
      trained, frozen, reference = {"unet": factors}, {**frozen, "unet": unet}, {}
      objective = objective._replace(combine=functools.partial(adapt, alpha=2.0))
    mesh = sharding.make_mesh(size * fsdp, fsdp=fsdp)
    optimizer = optax.adam(1e-3)
    step = make_step(
      objective._replace(reference_update=update),
      optimizer,
      ema_decay=0.0,
      reference_update=update,
      grad_accumulation_steps=microbatches,
      constrain=functools.partial(sharding.constrain, mesh),
    )
    with jax.set_mesh(mesh):
      state = sharded_initial_state(trained, optimizer, mesh, ema=False, reference=update.moves)
      inputs = (frozen, None if update.moves else reference)
      inputs = [jax.device_put(x, sharding.shardings(mesh, x)) for x in inputs]
      compiled = compile_step(step, mesh, state, *inputs)
      results = Steps([], [], [])
      for i in range(STEPS + 1):
        results.policy.append(jax.device_get(state.params))
        results.reference.append(jax.device_get(state.reference))
        if i < STEPS:
          state, metrics, _ = compiled(state, *inputs, batch)
          results.metrics.append(jax.device_get(metrics))
    return results

  yield run
  sharding.SMALLEST = smallest


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


kinds = pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])


@pytest.mark.parametrize(("update", "lora"), [(EMA, False), (LATE, True)], ids=["whole", "LoRA"])
def test_an_ema_reference_is_the_weighted_sum_of_all_policies_since_its_start(update, lora, steps):
  policy, reference, _ = steps(update, lora)
  d, first = update.decay, update.start
  for n in range(STEPS + 1):
    expected = [d ** max(n - first, 0) * np.float64(x) for x in leaves(policy[0])]
    for k in range(first + 1, n + 1):
      weighted = [(1 - d) * d ** (n - k) * np.float64(x) for x in leaves(policy[k])]
      expected = [a + b for a, b in zip(expected, weighted, strict=True)]
    for a, b in zip(leaves(reference[n]), expected, strict=True):
      assert a.dtype == np.float32
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_the_loss_of_a_step_takes_the_errors_of_the_reference_of_that_step(setting, steps):
  objective, _, frozen, batch = setting
  policy, reference, metrics = steps(EMA)
  run = jax.jit(lambda policy, reference, n: objective(policy, frozen, reference, batch, n)[1])
  for n in range(STEPS):
    expected = run(policy[n], reference[n], jnp.int32(n))
    for name in ("policy_w", "reference_w", "reference_l"):
      np.testing.assert_allclose(metrics[n][name], expected[name].mean(), rtol=1e-6)
  assert metrics[0]["logit"] == 0
  assert all(m["logit"] != 0 for m in metrics[1:])


@kinds
def test_a_hard_update_copies_the_policy_bit_for_bit_and_nothing_moves_between(lora, steps):
  policy, reference, _ = steps(HARD, lora)
  for n in range(STEPS + 1):
    for a, b in zip(leaves(reference[n]), leaves(policy[n - n % 2]), strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "layout",
  [(False,), (True,), (False, 2, 2, 2)],
  ids=["whole", "LoRA", "four devices, two microbatches"],
)
def test_the_logit_is_exactly_0_in_the_step_after_a_copy_and_in_no_other(layout, steps):
  metrics = steps(HARD, *layout).metrics
  assert [m["logit"] == 0 for m in metrics] == [True, False, True, False, True]
  assert [m["loss"] == np.float32(np.log(2)) for m in metrics] == [True, False, True, False, True]


@pytest.mark.parametrize("update", [EMA, HARD], ids=["ema", "hard"])
def test_the_reference_is_the_same_on_every_layout(update, steps):
  one, other = steps(update), steps(update, False, 2, 2, 2)
  for a, b in zip(one.reference, other.reference, strict=True):
    np.testing.assert_allclose(leaves(b)[0], leaves(a)[0], rtol=1e-5, atol=1e-6)
  for a, b in zip(one.metrics, other.metrics, strict=True):
    np.testing.assert_allclose(b["reference_w"], a["reference_w"], rtol=1e-6)


def test_a_frozen_reference_is_no_part_of_the_state(setting):
  _, unet, _, _ = setting
  state = initial_state({"unet": unet}, optax.sgd(1.0), ema=False)
  assert state.reference is None
  assert "reference" not in to_saved(state)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Folder of a random pipeline that denoises pixels."""
  folder = tmp_path_factory.mktemp("base") / "pipeline"
  interop.save_pipeline(folder, setup.load_pipeline(smallest_config(), ["the digit seven"]))
  return folder


def run_config(base, rank, steps=4):
  config = pairs_config(base)
  config.lora.rank, config.lora.alpha = rank, float(rank)
  config.reference.kind, config.reference.decay = "ema", 0.9
  config.num_steps, config.optimizer.learning_rate = steps, 1e-2
  return config


def reference_of(workdir, folder):
  """The reference in the last checkpoint of a run, as a flat tree of the whole network."""
  assert export(workdir, folder, weights="reference") == 4
  return trees.flatten(interop.load_pipeline(folder).params["unet"])


@pytest.mark.parametrize(
  "rank", [2, pytest.param(0, marks=pytest.mark.slow)], ids=["LoRA", "whole"]
)
def test_a_resumed_run_has_the_metrics_and_the_reference_of_an_uninterrupted_one(
  rank, base, tmp_path, capsys
):
  train(run_config(base, rank), tmp_path / "whole", show_progress=False)
  for steps in (2, 4):
    train(run_config(base, rank, steps), tmp_path / "resumed", show_progress=False)
  assert computed(tmp_path / "resumed") == computed(tmp_path / "whole")
  whole, resumed = (
    reference_of(tmp_path / name, tmp_path / f"{name}-reference") for name in ("whole", "resumed")
  )
  start = trees.flatten(interop.load_pipeline(base).params["unet"])
  for name, array in whole.items():
    np.testing.assert_array_equal(resumed[name], array)
  assert any(np.any(whole[name] != start[name]) for name in start)
  assert main(["inspect", str(tmp_path / "whole"), "--weights", "reference"]) == 0
  assert "moving reference" in capsys.readouterr().out


def refused(message, **keys):
  config = digits_dpo.get_config()
  reference_dtype = keys.pop("reference_dtype", "float32")
  if name := keys.pop("loss", None):
    config.loss = {"name": name}
  config.reference_dtype = config.dtype = reference_dtype
  config.reference.update(keys)
  with pytest.raises(InputError, match=message):
    check(config)


@pytest.mark.parametrize(
  ("message", "keys"),
  [
    (r"reference\.kind must be one of", {"kind": "moving"}),
    (r"reference\.decay must be positive.*published: 0\.995", {"kind": "ema"}),
    (r"reference\.decay must be a number in \[0, 0\.999999\]", {"kind": "ema", "decay": 1.0}),
    (r"reference\.every must be at least 1", {"kind": "hard"}),
    (
      r"reference\.decay must be 0 where .* is not 'ema'",
      {"kind": "hard", "every": 2, "decay": 0.5},
    ),
    (
      r"reference\.every must be 0 where .* is not 'hard'",
      {"kind": "ema", "decay": 0.5, "every": 2},
    ),
    (r"reference\.start must be 0 where .* is 'frozen'", {"start": 2}),
    (
      r"reference\.kind must be 'frozen' for loss 'sft', which uses no reference",
      {"kind": "ema", "decay": 0.5, "loss": "sft"},
    ),
    (
      r"reference_dtype must be 'float32' where config\.reference\.kind moves",
      {"kind": "ema", "decay": 0.5, "reference_dtype": "bfloat16"},
    ),
  ],
)
def test_a_key_without_effect_or_out_of_range_is_refused_by_name(message, keys):
  refused(message, **keys)
