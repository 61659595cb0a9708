"""Trajectories of objectives: parameters at stated movements, and what their samples score.

Seeds are separate calls of one compiled step. On 2 CPU cores five seeds in one program took 1.8
times the processor time of five calls by vmap, whose convolutions become grouped ones, and 4.9
times by lax.map (digits, 32 pairs, 2026-11-27).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from compare_setting import Setting

from dmpo_jax import losses, pipelines
from dmpo_jax.evaluation import statistics
from dmpo_jax.pipelines import Params
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch, flipped_labels
from dmpo_jax.training.objective import EXACT_ROUNDING
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.step import State, initial_state, make_step

HELD_OUT_IMAGES, HELD_OUT_SEED = 64, 20_261_127


class Trainer:
  """Runs of one setting. Objective, seed and flip rate are arguments of one compiled step.

  Args:
    setting: Data and measurements.
    sections: Section `loss` of each objective by name.
    solver_steps: Steps of DPM-Solver++(2M).
    guidance: Guidance scale of the samples.
  """

  def __init__(
    self,
    setting: Setting,
    sections: Mapping[str, Mapping[str, Any]],
    *,
    solver_steps: int,
    guidance: float,
  ):
    self.setting, self.names, config = setting, list(sections), setting.config
    self._examples = setup.load_examples(config)
    pipeline = setup.load_pipeline(config, [])
    self._functions = pipelines.build(pipeline, dtype=pipelines.default_dtype())
    self._loader = functools.partial(
      self._examples.loader,
      self._functions.tokenize,
      channels=self._functions.image_channels,
      batch_size=config.batch_size,
    )
    objective = setup.make_objective(config, pipeline, self._examples)
    trained, self._frozen, self._reference = setup.split_params(config, pipeline, self._examples)
    self.initial = jax.tree.map(jnp.asarray, trained)
    self._optimizer = make_optimizer(config.optimizer)
    one_of = [setup.make_loss(section) for section in sections.values()]

    def step(state, number, seed, flip_rate, frozen, reference, batch):
      flipped = flipped_labels(seed, batch, flip_rate)[:, None, None, None, None]
      batch = batch._replace(pixels=jnp.where(flipped, batch.pixels[:, ::-1], batch.pixels))
      mine = objective._replace(
        loss=switched(one_of, number), seed=seed, starts_at_reference=True, label_flip_rate=0.0
      )
      return make_step(mine, self._optimizer, ema_decay=0.0)(state, frozen, reference, batch)[0]

    def residuals(trained, frozen, batch):
      fixed = objective._replace(
        loss=switched(one_of, 0), seed=HELD_OUT_SEED, caption_dropout=0.0, label_flip_rate=0.0
      )
      batch = fixed.prepare(batch, jnp.zeros((), jnp.int32))
      return fixed.evaluate(trained, frozen, None, batch, jnp.zeros((), jnp.int32))[1].policy_w

    self._step = jax.jit(step, compiler_options=EXACT_ROUNDING)
    self._residuals = jax.jit(residuals, compiler_options=EXACT_ROUNDING)
    self._held_out = self._held_out_batch()
    self._reference_residuals = self._residuals(self.initial, self._frozen, self._held_out)

    solver = self._functions.make_solver(solver_steps, name="dpm_solver_pp_2m")
    self._sampler = pipelines.make_sampler(self._functions, solver, guidance=guidance)
    count = len(setting.prompts)
    self._inputs, _ = pipelines.sampling_inputs(self._functions, setting.prompts, np.arange(count))

  def start(self) -> State:
    """The state before the first step."""
    return initial_state(self.initial, self._optimizer, ema=False)

  def batches(self, seed: int) -> Callable[[int], Batch]:
    """step -> the batch of that step, in the order of the seed."""
    loader = self._loader(seed=seed)
    return lambda step: Batch(**loader[step])

  def step(self, state: State, name: str, seed: int, flip_rate: float, batch: Batch) -> State:
    """The state after one more step of an objective.

    Args:
      state: The state before it.
      name: The objective.
      seed: Seed of noise, timesteps, caption dropout and flips.
      flip_rate: Probability that the images of a pair are swapped, the same ones in every epoch.
      batch: Pairs.
    """
    number, seed = np.int32(self.names.index(name)), np.uint32(seed)
    return self._step(
      state, number, seed, np.float32(flip_rate), self._frozen, self._reference, batch
    )

  def movement(self, trained: Params) -> tuple[float, float]:
    """Distance of the predictions from the reference's, and the change of the error.

        movement = mean ‖f_policy - f_reference‖²/d,   change = mean (e - r)

    Both are means over the same noised held-out images in every call.
    """
    new = self._residuals(trained, self._frozen, self._held_out)
    old = self._reference_residuals
    movement = float(jnp.mean(jnp.square(new - old)))
    return movement, float(jnp.mean(jnp.square(new)) - jnp.mean(jnp.square(old)))

  def sample(self, trained: Params) -> np.ndarray:
    """Samples of all prompts, from the same noise in every call, `[N, H, W, C]`."""
    params = {**self._frozen, **trained}
    return pipelines.sample_all(self._sampler, params, self._inputs, batch_size=100)

  def _held_out_batch(self) -> Batch:
    examples, process = self.setting.held_out, self._functions.process
    count = min(HELD_OUT_IMAGES, len(examples))
    rows = np.random.default_rng(HELD_OUT_SEED).permutation(len(examples))[:count]
    text, _ = self._functions.tokenize([examples.captions[row] for row in rows])
    edges, keys = np.asarray(process.bins(count)), jax.random.split(jax.random.key(0), count)
    timesteps = [process.sample_between(keys[i], edges[i], edges[i + 1]) for i in range(count)]
    return Batch(
      text=text,
      example_id=examples.ids[rows],
      pixels=examples.images[rows],
      timesteps=jnp.stack(timesteps),
    )


def switched(one_of: Sequence[Callable], number: jax.Array | int) -> Callable:
  """The loss of a number that may be traced, without diagnostics, as a loss of residuals."""

  def call(loss: Callable, errors, residuals):
    needs = losses.requirements(loss)
    if not needs.reference:
      errors = errors._replace(reference_w=None, reference_l=None)
    return (loss(errors, residuals) if needs.residuals else loss(errors))[0]

  def loss(errors, residuals):
    branches = [functools.partial(call, each) for each in one_of]
    value = jax.lax.switch(number, branches, errors, residuals)
    return value, losses.Diagnostics(None, None, None, None)

  loss.requirements = losses.Requirements(residuals=True)
  return loss


def scores(setting: Setting, images: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
  """Scores of samples against the reference's from the same noise.

  Args:
    setting: Names the score.
    images: Samples `[N, H, W, C]`.
    baseline: The reference's.

  Returns:
    score, gain (mean difference of the score), win_rate, right and vendi.
  """
  score, before = setting.score(images), setting.score(baseline)
  return {
    "score": float(np.mean(score)),
    "gain": float(np.mean(score - before)),
    "win_rate": float(np.mean(statistics.wins(score, before))),
    "right": float(np.mean(setting.is_right(images))),
    "vendi": statistics.vendi(images, setting.groups),
  }


def run(
  trainer: Trainer,
  name: str,
  seed: int,
  flip_rate: float,
  *,
  levels: Sequence[float],
  max_steps: int,
  every: int,
  baseline: np.ndarray,
) -> dict[str, Any]:
  """Trains one objective until it has moved as far as the last level.

  Movement is measured every few steps. Parameters at a level are interpolated linearly between the
  two measurements around it, by the root of the movement.

  Args:
    trainer: The setting's.
    name: The objective.
    seed: Seed of data order, noise and flips.
    flip_rate: Fraction of labels that are flipped.
    levels: Movements at which the model is measured, ascending.
    max_steps: Steps after which a run that has not moved so far ends.
    every: Steps between two measurements of the movement.
    baseline: Samples of the reference.

  Returns:
    trajectory, a list of (step, movement); and points, at each level that was reached, and at the
    end of a run that did not reach all: step, movement, error_change and `scores`.
  """
  batches, state = trainer.batches(seed), trainer.start()
  before, moved_before, trajectory, points = state.params, 0.0, [(0, 0.0)], []

  def measure(params: Params, step: float, level: float | None) -> None:
    movement, change = trainer.movement(params)
    images = trainer.sample(params)
    point = {"level": level, "step": step, "movement": movement, "error_change": change}
    points.append(point | scores(trainer.setting, images, baseline))

  for done in range(1, max_steps + 1):
    state = trainer.step(state, name, seed, flip_rate, batches(done - 1))
    if done % every and done != max_steps:
      continue
    moved, _ = trainer.movement(state.params)
    trajectory.append((done, moved))
    while len(points) < len(levels) and moved >= levels[len(points)]:
      level = levels[len(points)]
      roots = np.sqrt([moved_before, level, moved])
      share = float((roots[1] - roots[0]) / (roots[2] - roots[0]))
      params = jax.tree.map(lambda a, b, s=share: a + s * (b - a), before, state.params)
      first = trajectory[-2][0]
      measure(params, first + share * (done - first), level)
    if len(points) == len(levels):
      break
    before, moved_before = state.params, moved
  else:
    measure(state.params, max_steps, None)
  return {"trajectory": trajectory, "points": points}
