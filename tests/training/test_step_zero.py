"""A tiny SDXL at beta 5000 in several layouts: exact zeros at step 0, and the bound after it."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dmpo_jax import pipelines
from dmpo_jax.parallel import sharding
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.step import compile_step, make_step, sharded_initial_state
from tests.training import latents

BETA, STEPS = 5000.0, 2
# (data, fsdp, microbatches)
ONE, OTHER = (1, 1, 1), (2, 2, 2)
# Relative difference of errors between layouts; a float32 number has 6e-8.
ERRORS = 1e-6


class Step(NamedTuple):
  """Metrics, loss of each example, and parameters after a step."""

  metrics: dict
  losses: np.ndarray
  params: dict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  result = tmp_path_factory.mktemp("step_zero") / "sdxl"
  latents.write("sdxl", result)
  return result


@pytest.fixture(scope="module")
def batch(folder):
  """Eight pairs with geometry of their own; half of the captions are dropped."""
  rng = np.random.default_rng(0)
  pipeline = setup.load_pipeline(latents.config(folder), [])
  pixels = rng.uniform(-1, 1, (8, 2, 16, 16, 3)).astype(np.float32)
  text, _ = pipelines.build(pipeline).tokenize([*latents.CAPTIONS, *latents.CAPTIONS[:2]])
  geometry = rng.integers(0, 2000, (8, 6)).astype(np.float32)
  ids = np.arange(40, 48, dtype=np.uint32)
  return Batch(text, ids, pixels=pixels, geometry=geometry)


@pytest.fixture(scope="module")
def steps(folder, batch):
  """(LoRA rank, layout, dtype) -> the first `Step`s of a run, as `run.train` takes them."""
  smallest, sharding.SMALLEST = sharding.SMALLEST, 8

  @functools.cache
  def run(rank, layout, dtype="float32"):
    config = latents.config(folder)
    config.trained = ("unet",)
    config.loss.beta = BETA
    config.dtype = config.reference_dtype = dtype
    config.lora.rank, config.lora.alpha = rank, float(rank)
    size, fsdp, microbatches = layout
    mesh = sharding.make_mesh(size * fsdp, fsdp=fsdp)
    pipeline = setup.load_pipeline(config, [])
    objective = setup.make_objective(config, pipeline, mesh=mesh)
    objective = objective._replace(starts_at_reference=True)
    trained, *others = setup.split_params(config, pipeline)
    optimizer = make_optimizer(config.optimizer)
    step = make_step(
      objective,
      optimizer,
      ema_decay=0.0,
      grad_accumulation_steps=microbatches,
      constrain=functools.partial(sharding.constrain, mesh),
    )
    results = []
    with jax.set_mesh(mesh):
      state = sharded_initial_state(trained, optimizer, mesh, ema=False)
      others = [jax.device_put(x, sharding.shardings(mesh, x)) for x in others]
      step = compile_step(step, mesh, state, *others)
      for _ in range(STEPS):
        state, *outputs = step(state, *others, batch)
        results.append(Step(*jax.device_get((*outputs, state.params))))
    return results

  yield run
  sharding.SMALLEST = smallest


pytestmark = pytest.mark.slow
kinds = pytest.mark.parametrize("rank", [4, 0], ids=["LoRA", "whole"])


def check_zero(step):
  for name in ("logit", "reward_w", "reward_l"):
    assert step.metrics[name] == 0
  assert step.metrics["accuracy"] == 0.5
  np.testing.assert_array_equal(step.losses, np.full(8, np.log(2), np.float32))


@kinds
@pytest.mark.parametrize("layout", [ONE, OTHER], ids=str)
def test_every_logit_of_the_first_step_is_exactly_0(rank, layout, steps):
  check_zero(steps(rank, layout)[0])


def test_every_logit_of_the_first_step_is_exactly_0_in_bfloat16(steps):
  check_zero(steps(4, ONE, "bfloat16")[0])


@kinds
def test_the_first_gradient_agrees_between_layouts_to_1e_5(rank, steps):
  one, other = (steps(rank, layout)[0].metrics["gradient_norm"] for layout in (ONE, OTHER))
  np.testing.assert_allclose(other, one, rtol=1e-5)


@kinds
def test_errors_agree_between_layouts_and_logits_to_beta_times_that(rank, steps):
  for one, other in zip(steps(rank, ONE), steps(rank, OTHER), strict=True):
    for name in ("policy_w", "policy_l", "reference_w", "reference_l"):
      np.testing.assert_allclose(other.metrics[name], one.metrics[name], rtol=ERRORS)
    # z = -beta/2 of four errors, and no loss of DPO is steeper than 1.
    largest = 2 * max(one.metrics["policy_w"], one.metrics["policy_l"])
    bound = BETA / 2 * 4 * ERRORS * largest
    np.testing.assert_allclose(other.losses, one.losses, rtol=0, atol=bound)
    np.testing.assert_allclose(other.metrics["logit"], one.metrics["logit"], rtol=0, atol=bound)


@kinds
def test_parameters_agree_between_layouts_after_the_first_step(rank, steps):
  one, other = (steps(rank, layout)[0].params for layout in (ONE, OTHER))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
