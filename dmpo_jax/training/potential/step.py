"""The train steps of a potential and of its drift."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmpo_jax import ddo
from dmpo_jax.models.functional import Model
from dmpo_jax.parallel import sharding
from dmpo_jax.pipelines import Conditioning, Params, TextToImage
from dmpo_jax.pipelines.steering import Potential, learned_drift, noise_level
from dmpo_jax.sampling.solve import guided
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.potential.samples import Batch


class State(NamedTuple):
  """The state of a run, which a step changes and a checkpoint saves.

  Attributes:
    step: int32 scalar, optimizer steps taken.
    params: The network in training: f_{k+1}, or the drift's.
    previous: f_k; while the drift is learned, the last potential.
    opt_state: optax's state.
  """

  step: jax.Array
  params: Any
  previous: Any
  opt_state: Any


class Reference(NamedTuple):
  """The reference's network with the captions of a run.

  Attributes:
    params: Parameters by component.
    conditioning: Conditioning on each caption, arrays `[C, ...]`.
    null: The same of the empty caption, `[C, ...]`.
  """

  params: Params
  conditioning: Conditioning
  null: Conditioning


def reference_score(
  pipeline: TextToImage,
  reference: Reference,
  guidance: float,
  x: jax.Array,
  t: jax.Array,
  captions: jax.Array,
) -> jax.Array:
  """∇ log p_t(x) as the guided reference predicts it; captions are rows of its conditioning."""
  text, null = (
    jax.tree.map(lambda v: v[captions], tree) for tree in (reference.conditioning, reference.null)
  )

  def network(x: jax.Array, t: jax.Array, conditioning: Conditioning) -> jax.Array:
    return pipeline.denoise(reference.params, x, t, conditioning)

  prediction = guided(network, text, null, scale=guidance)(x, t)
  _, noise = ddo.processes.clean_and_noise(pipeline.process, prediction, x, t)
  return -noise / ddo.levels(pipeline.process, t, x)[1]


def first_variation(
  config: ConfigDict, f: jax.Array, reward: jax.Array, label: jax.Array, is_pairs: bool
) -> jax.Array:
  """First variation of the config's loss at the images of one caption.

  Preferences follow Bradley and Terry, P(x>y) = σ(r(x) - r(y)); an image is desirable with
  probability σ(r(x) - mean r).

  Args:
    config: A checked config.
    f: f_k, `[n]`.
    reward: Rewards of mean 0 over the caption's samples, `[n]`.
    label: Labels of pairs, `[n/2]`.
    is_pairs: Whether the images are pairs.

  Returns:
    `[n]`.
  """
  log_z = ddo.log_normalizer(f)
  loss = config.loss
  if is_pairs:
    half = len(f) // 2
    targets = ddo.first_variation_dpo_pairs(
      f[:half], f[half:], label, gamma=loss.gamma, log_z=log_z
    )
    return jnp.concatenate(targets)
  if loss.name == "rlhf":
    return ddo.first_variation_rlhf(reward)
  if loss.name == "dpo":
    preference = jax.nn.sigmoid(reward[:, None] - reward[None, :])
    return ddo.first_variation_dpo(f, f, preference, gamma=loss.gamma, log_z=log_z)
  desirable = jax.nn.sigmoid(reward)
  return ddo.first_variation_kto(
    f,
    loss.desirable_weight * desirable,
    loss.undesirable_weight * (1 - desirable),
    gamma=loss.gamma,
    log_z=log_z,
    kl=ddo.kl_divergence(f),
  )


def objective(
  config: ConfigDict, f: jax.Array, reward: jax.Array, label: jax.Array, is_pairs: bool
) -> jax.Array:
  """L(q) = F(q) + beta KL(q || p_ref) of one caption, estimated from its images; `[]`."""
  loss, kl = config.loss, ddo.kl_divergence(f)
  if is_pairs:
    half = len(f) // 2
    logit = loss.gamma * (f[half:] - f[:half])
    value = jnp.mean(label * jax.nn.softplus(-logit) + (1 - label) * jax.nn.softplus(logit))
  elif loss.name == "rlhf":
    value = -jnp.sum(jax.nn.softmax(-f) * reward)
  elif loss.name == "dpo":
    preference = jax.nn.sigmoid(reward[:, None] - reward[None, :])
    value = ddo.dpo_loss(f, f, preference, gamma=loss.gamma)
  else:
    desirable = jax.nn.sigmoid(reward)
    value = ddo.kto_loss(
      f,
      loss.desirable_weight * desirable,
      loss.undesirable_weight * (1 - desirable),
      gamma=loss.gamma,
      log_z=ddo.log_normalizer(f),
      kl=kl,
    )
  return value + config.beta * kl


def loop_weights(config: ConfigDict, k: int) -> tuple[float, float]:
  """(a, b) of the k-th loop."""
  if config.weights.name == "proximal":
    return ddo.proximal_weights(k, beta=config.beta, tau=config.weights.tau)
  return ddo.averaging_weights(k, beta=config.beta, beta_prime=config.weights.beta_prime)


def optimizer_of(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
  """The config's optimizer, its updates falling by a cosine to 0 over so many steps."""
  return optax.chain(
    make_optimizer(config.optimizer),
    optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, num_steps)),
  )


def apply_groups(network: Model, params: Any, batch: Batch) -> jax.Array:
  """Values of a potential on clean images, `[G, n]`."""
  groups, size, *shape = batch.x.shape
  text = jnp.repeat(batch.text, size, axis=0)
  x = batch.x.reshape(-1, *shape)
  return network.apply(params, x, text, jnp.zeros(len(x))).reshape(groups, size)


def make_loop_step(config: ConfigDict, network: Model, is_pairs: bool) -> Callable:
  """A step of a loop: the network is regressed on a f_k + b g_k, whose mean does not matter.

      loss = Var_n(f_{k+1}(x) - (a f_k(x) + b g_k(x))),  over the images of a caption

  Targets are bounded as the network is.

  Returns:
    `(state, batch, weights [2]) -> (state, metrics)`.
  """
  optimizer = optimizer_of(config, config.steps_per_loop)
  bound = config.network.bound

  def target(f, reward, label, weights):
    g = first_variation(config, f, reward, label, is_pairs)
    values = weights[0] * f + weights[1] * g
    values = values - jnp.mean(values)
    return jnp.clip(values, -bound, bound)

  def step(state: State, batch: Batch, weights: jax.Array):
    f = apply_groups(network, state.previous, batch)
    targets = jax.vmap(lambda *args: target(*args, weights))(f, batch.reward, batch.label)

    def loss_fn(params):
      new = apply_groups(network, params, batch)
      losses = jnp.var(new - targets, axis=1)  # [G]
      return jnp.mean(losses), (losses, new)

    grads, (losses, new) = jax.grad(loss_fn, has_aux=True)(state.params)
    centred = new - jnp.mean(new, axis=1, keepdims=True)
    metrics = {
      "loss": jnp.mean(losses),
      "effective_sample_size": jnp.mean(jax.vmap(ddo.effective_sample_size)(new)),
      "max_potential": jnp.max(jnp.abs(centred)),
      "max_target": jnp.max(jnp.abs(targets)),
      "gradient_norm": optax.global_norm(grads),
    }
    return _updated(state, grads, optimizer), metrics

  return step


def make_drift_step(
  config: ConfigDict, network: Model, pipeline: TextToImage, potential: Potential
) -> Callable:
  """A step of the learned drift on forward noised samples of the reference.

  Returns:
    `(state, batch, reference) -> (state, metrics)`; see `Reference`, which "denoising" needs.
  """
  optimizer = optimizer_of(config, config.drift.num_steps)
  process, root = pipeline.process, jax.random.key(config.seed)
  field = learned_drift(potential.config, process)

  def step(state: State, batch: Batch, reference: Reference | None):
    f = apply_groups(network, state.previous, batch)
    weights = jnp.exp(-f - jax.vmap(ddo.log_normalizer)(f)[:, None]).reshape(-1)
    size, shape = batch.x.shape[1], batch.x.shape[2:]
    x0 = batch.x.reshape(-1, *shape)
    text = jnp.repeat(batch.text, size, axis=0)
    time_key, noise_key = jax.random.split(jax.random.fold_in(root, state.step))
    low, high = process.bins(1)
    times = jax.vmap(lambda key: process.sample_between(key, low, high))(
      jax.random.split(time_key, len(x0))
    )
    noise = jax.random.normal(noise_key, x0.shape)
    x_t = process.add_noise(x0, noise, times)
    if reference is not None:
      captions = jnp.repeat(batch.example_id, size)
      score = reference_score(pipeline, reference, config.samples.guidance, x_t, times, captions)

    def loss_fn(params):
      if config.drift.name == "log_h":
        values = network.apply(params, x_t, text, noise_level(process, times, x_t))
        losses = ddo.log_h_loss(values, weights)
      else:
        drift = field(params, x_t, times, text)
        losses = ddo.denoising_loss(process, drift, score, x0, x_t, times, weights)
      return jnp.mean(losses)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    metrics = {
      "loss": loss,
      "effective_sample_size": jnp.mean(jax.vmap(ddo.effective_sample_size)(f)),
      "gradient_norm": optax.global_norm(grads),
    }
    return _updated(state, grads, optimizer), metrics

  return step


def _updated(state: State, grads: Any, optimizer: optax.GradientTransformation) -> State:
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return State(state.step + 1, params, state.previous, opt_state)


def abstract_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> State:
  """Shapes, dtypes and shardings of a run's state."""
  shapes = jax.eval_shape(
    lambda params: State(jnp.zeros((), jnp.int32), params, params, optimizer.init(params)), params
  )
  return sharding.abstract(mesh, shapes)
