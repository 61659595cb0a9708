"""A run that learns a potential: from a config to a folder that samplers follow."""

import functools
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from dmpo_jax import ddo, pipelines
from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError, PreemptedError
from dmpo_jax.models import potential as networks
from dmpo_jax.parallel import sharding
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.parallel.to_host import on_host
from dmpo_jax.pipelines import TextToImage
from dmpo_jax.pipelines.fingerprints import pipeline_fingerprint
from dmpo_jax.pipelines.potential_folder import save_potential
from dmpo_jax.pipelines.steering import Potential
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.monitor.metrics import MetricsWriter
from dmpo_jax.training.potential import config as configs
from dmpo_jax.training.potential import samples
from dmpo_jax.training.potential import step as steps
from dmpo_jax.training.run_directory import check_base_pipeline, run_lock, write_fingerprint

LOGGER = logging.getLogger(__name__)
FOLDER, LOOPS = "potential", "loops.json"


class Result(NamedTuple):
  """Summary of a run.

  Attributes:
    potential: Folder of the potential.
    loops: A record of each loop, the reference first: loss, its standard error over captions, KL
      divergence, effective sample size and largest |f|, on held-out samples.
  """

  potential: paths.Path
  loops: list[dict[str, float]]


def learn(
  config: ConfigDict,
  workdir: paths.Path,
  score: samples.Score | None,
  *,
  show_progress: bool = True,
) -> Result:
  """Learns a potential as a config says, from the last checkpoint in `workdir` if there is one.

  Killed at any moment and started again, a run ends with the potential of an uninterrupted one, bit
  for bit on the same devices. After SIGTERM it saves and raises PreemptedError.

  Args:
    config: See `dmpo_jax.training.potential.config.default`.
    workdir: Directory of this run alone: run.json, reference_samples.npz, checkpoints/,
      metrics/, loops.json, and at the end potential/.
    score: The score of images that the config names; None for pairs.
    show_progress: Whether to show progress bars.

  Returns:
    `Result`.

  Raises:
    InputError: The config, the pipeline or the work directory cannot be used; the loss rises, or
      the effective sample size collapses (the message says what to change).
    OSError: A file could not be written.
    PreemptedError: The process received SIGTERM.
  """
  config, workdir = configs.check(config), paths.parse(workdir)
  processes = Processes()
  with processes.preemption_handler(), run_lock(workdir, processes) as check_lock:
    check_base_pipeline(config.pipeline, workdir)
    mesh = sharding.make_mesh(config.num_devices, **config.mesh)
    if config.groups % mesh.size:
      raise InputError(
        f"config.groups {config.groups} does not divide over {mesh.size} devices; make it a "
        "multiple, or change config.num_devices"
      )
    pipeline = pipelines.load(
      config.pipeline, revision=config.revision or None, variant=config.variant or None
    )
    functions = pipelines.build(pipeline)
    ddo.levels(functions.process, functions.process.bins(1)[1:], np.zeros((1, 1)))  # has a score
    fingerprint = {
      "config": {k: v for k, v in config.to_dict().items() if k not in configs.MUTABLE_KEYS},
      "base_weights": pipeline_fingerprint(pipeline),
    }
    fingerprint = {"kind": FOLDER, **fingerprint}
    write_fingerprint(workdir, fingerprint)
    if config.data.name:
      pool, _ = samples.pairs_pool(config, pipeline, functions)
    else:
      pool = samples.reference_pool(
        config,
        pipeline,
        functions,
        score,
        workdir,
        list(mesh.devices.flat),
        progress=functools.partial(
          tqdm, desc="sampling the reference", unit="batch", disable=not show_progress
        ),
      )
    network = networks.PotentialConfig(
      channels=pool.x.shape[-1],
      text=pool.text.shape[-1],
      **{**config.network, "widths": tuple(config.network.widths)},
    )
    with jax.set_mesh(mesh):
      run = _Run(config, workdir, mesh, pipeline, functions, pool, network, processes)
      run.check_lock = check_lock
      return run.learn(show_progress)


class _Run:
  """A run with its parts."""

  def __init__(self, config, workdir, mesh, pipeline, functions, pool, network, processes):
    self.config, self.workdir, self.mesh, self.pool = config, workdir, mesh, pool
    self.pipeline, self.processes, self.network_config = pipeline, processes, network
    self.check_lock: Callable[[], None] = lambda: None
    self.functions: TextToImage = functions
    self.network = networks.build(network)
    self.loop_steps = config.num_loops * config.steps_per_loop
    self.total = configs.total_steps(config)
    # Both optimizers have the same state; only their schedules differ.
    self.optimizer = steps.optimizer_of(config, config.steps_per_loop)
    self.initial = self.network.init(jax.random.key(config.seed))
    like = steps.abstract_state(self.initial, self.optimizer, mesh)
    self.like, self.state_sharding = like, jax.tree.map(lambda x: x.sharding, like)
    examples = sharding.batch(mesh)
    options = {"out_shardings": (self.state_sharding, None), "donate_argnums": 0}
    self.loop_step = jax.jit(
      steps.make_loop_step(config, self.network, pool.is_pairs),
      in_shardings=(self.state_sharding, examples, None),
      **options,
    )
    self.evaluate_group = jax.jit(self._evaluate_group)
    self.folder = workdir / FOLDER

  def learn(self, show_progress: bool) -> Result:
    config = self.config
    checkpoints = Checkpoints(self.workdir / "checkpoints", keep=config.checkpoint.keep)
    with self.processes.closing(checkpoints):
      first = checkpoints.latest() or 0
      if first:
        LOGGER.info("resuming from step %d of %d", first, self.total)
        state, saved = checkpoints.restore(first, self.like)
        state, self.loops = steps.State(*state), saved["loops"]
      else:
        state, self.loops = self._state(0, self.initial, self.initial), []
        self.loops = [self._record(0, self.initial)]
      writer = MetricsWriter(self.workdir, step=first)
      bar = tqdm(total=self.total, initial=first, desc=self.workdir.name, disable=not show_progress)
      try:
        for done in range(first, self.total):
          state = self._begin(done, state)
          state, metrics = self._step(done, state)
          done += 1
          if done % config.log_every == 0 or done == self.total:
            values = {name: float(value) for name, value in metrics.items()}
            self._check(done, values)
            writer.write(done, values)
            bar.set_postfix({"loss": f"{values['loss']:.4g}"}, refresh=False)
          if done <= self.loop_steps and done % config.steps_per_loop == 0:
            self._end_loop(done // config.steps_per_loop, state)
          stop = self.processes.should_stop(done) and done < self.total
          if done % config.checkpoint.every == 0 or done == self.total or stop:
            self.check_lock()
            writer.flush()
            checkpoints.save(done, state, self._position(done))
          bar.update()
          if stop:
            checkpoints.wait()
            raise PreemptedError(
              f"preempted (SIGTERM) after step {done} of {self.total}, which is saved; the same "
              "command resumes there"
            )
        checkpoints.wait()
      finally:
        bar.close()
        writer.close()
    self._save(state)
    return Result(self.folder, self.loops)

  def _state(self, done: int, params: Any, previous: Any) -> steps.State:
    """The state at the start of a loop; its arrays are copies."""
    make = jax.jit(
      lambda params, previous: steps.State(
        jnp.asarray(done, jnp.int32), params, previous, self.optimizer.init(params)
      ),
      out_shardings=self.state_sharding,
    )
    return make(jax.tree.map(jnp.array, params), jax.tree.map(jnp.array, previous))

  def _begin(self, done: int, state: steps.State) -> steps.State:
    """The state before a step; at the start of a loop the last potential becomes the previous."""
    if done and done == self.loop_steps:
      key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
      return self._state(done, self.network.init(key), state.params)
    if done and done < self.loop_steps and done % self.config.steps_per_loop == 0:
      return self._state(done, state.params, state.params)
    return state

  def _step(self, done: int, state: steps.State) -> tuple[steps.State, dict[str, jax.Array]]:
    config = self.config
    batch = self.pool.batch(config.seed, done, config.groups, config.group_size)
    batch = jax.device_put(batch, sharding.batch(self.mesh))
    if done < self.loop_steps:
      weights = steps.loop_weights(config, done // config.steps_per_loop + 1)
      return self.loop_step(state, batch, jnp.asarray(weights, jnp.float32))
    return self.drift_step(state, batch, self.reference)

  @functools.cached_property
  def drift_step(self):
    potential = Potential(self.network_config, None, None, self.config.drift.name, {}, {})
    step = steps.make_drift_step(self.config, self.network, self.functions, potential)
    return jax.jit(
      step,
      in_shardings=(self.state_sharding, sharding.batch(self.mesh), None),
      out_shardings=(self.state_sharding, None),
      donate_argnums=0,
    )

  @functools.cached_property
  def reference(self) -> steps.Reference | None:
    """The reference's network with the captions, for the drift that needs its score."""
    if self.config.drift.name != "denoising":
      return None
    functions, prompts = self.functions, list(self.config.prompts)
    inputs, _ = pipelines.sampling_inputs(functions, prompts, np.arange(len(prompts)))
    text, null = (
      functions.condition(
        functions.encode_text(self.pipeline.params, tokens), inputs.geometry, None
      )
      for tokens in (inputs.text, inputs.negative_text)
    )
    if functions.zero_null_text:
      null = jax.tree.map(jnp.zeros_like, null)
    params = {functions.denoiser: self.pipeline.params[functions.denoiser]}
    return jax.device_put(steps.Reference(params, text, null), sharding.replicated(self.mesh))

  def _evaluate_group(self, params: Any, batch: samples.Batch) -> dict[str, jax.Array]:
    f = steps.apply_groups(self.network, params, batch)[0]
    reward, label = batch.reward[0], batch.label[0]
    return {
      "loss": steps.objective(self.config, f, reward, label, self.pool.is_pairs),
      "kl": ddo.kl_divergence(f),
      "effective_sample_size": ddo.effective_sample_size(f),
      "max_potential": jnp.max(jnp.abs(f - jnp.mean(f))),
    }

  def _record(self, k: int, params: Any) -> dict[str, Any]:
    """Losses and statistics of q after k loops, on the held-out samples of each caption."""
    size = self.config.samples.held_out
    size -= size % 2
    rows = [
      jax.device_get(self.evaluate_group(params, batch)) for batch in self.pool.evaluation(size)
    ]
    values = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    record = {name: float(value.mean()) for name, value in values.items()}
    record["max_potential"] = float(values["max_potential"].max())
    return {"loop": k, **record, "losses": values["loss"].tolist()}

  def _end_loop(self, k: int, state: steps.State) -> None:
    """Measures the potential of a loop, and stops where its loss rises or its ESS collapses."""
    record = self._record(k, state.params)
    LOGGER.info(
      "loop %d: loss %.4f (reference %.4f), KL %.3f, effective sample size %.1f%%, max |f| %.2f",
      k,
      record["loss"],
      self.loops[0]["loss"],
      record["kl"],
      100 * record["effective_sample_size"],
      record["max_potential"],
    )
    self.loops = [*self.loops, record]
    write_atomically(self.workdir / LOOPS, json.dumps(self.loops, indent=1) + "\n")
    self._check_ess(f"after loop {k}", record["effective_sample_size"])
    losses = np.array([loop["losses"] for loop in self.loops])  # [k + 1, C]
    change = losses[-1] - losses[-2]
    error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else abs(change[0])
    noise = float(3 * error + 1e-4 * np.abs(losses).mean())
    ddo.check_descent(losses.mean(axis=1), tolerance=noise)

  def _check(self, done: int, values: dict[str, float]) -> None:
    if not all(np.isfinite(value) for value in values.values()):
      raise InputError(
        f"step {done}: the loss is not finite. Nothing of this step was saved; lower the learning "
        "rate, or raise beta or beta_prime"
      )
    self._check_ess(f"in step {done}", values["effective_sample_size"])

  def _check_ess(self, when: str, fraction: float) -> None:
    if fraction < self.config.min_ess:
      raise InputError(
        f"the effective sample size is {fraction:.2%} of the samples {when}, below config.min_ess "
        f"{self.config.min_ess:.2%}: a few samples of the reference carry the whole distribution, "
        "and the potential is noise. Raise beta or config.score.temperature, "
        "take fewer loops, or lower config.network.bound; more samples help little"
      )

  def _position(self, done: int) -> dict[str, Any]:
    return {"next_batch": done, "loops": self.loops}

  def _save(self, state: steps.State) -> None:
    has_drift = self.total > self.loop_steps
    params = on_host(state.previous if has_drift else state.params)
    record = {
      "pipeline": self.config.pipeline,
      "guidance": self.config.samples.guidance,
      "loss": self.config.loss.to_dict(),
      "beta": self.config.beta,
      "weights": self.config.weights.to_dict(),
      "score": self.config.score.to_dict(),
      "loops": [{k: v for k, v in loop.items() if k != "losses"} for loop in self.loops],
    }
    save_potential(
      self.folder,
      Potential(
        config=self.network_config,
        params=params,
        learned=on_host(state.params) if has_drift else None,
        drift=self.config.drift.name if has_drift else "",
        pipeline=pipeline_fingerprint(self.pipeline),
        record=record,
      ),
    )
