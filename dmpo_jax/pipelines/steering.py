"""Potentials beside a pipeline, and the drift by which samplers follow them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import ddo
from dmpo_jax.common.ranges import check_integer
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.models import potential as networks
from dmpo_jax.models import trees
from dmpo_jax.pipelines.interface import Conditioning, Params, TextToImage

NESTED = {"nested": "covariance", "reinforce": "reinforce"}
LEARNED_DRIFTS = ("log_h", "denoising")
DRIFTS = (*NESTED, *LEARNED_DRIFTS)


class Potential(NamedTuple):
  """A learned potential, and what it belongs to.

  Attributes:
    config: Of its network.
    params: f's parameters.
    learned: Parameters of a learned drift's network, of the same config; None without one.
    drift: "log_h" or "denoising", the loss that `learned` minimises; "" without one.
    pipeline: Fingerprint of the reference's pipeline.
    record: How it was learned, in JSON.
  """

  config: networks.PotentialConfig
  params: trees.Tree
  learned: trees.Tree | None
  drift: str
  pipeline: Mapping[str, str]
  record: Mapping[str, Any]


class Steering(NamedTuple):
  """How a sampler follows a potential.

  Attributes:
    potential: The potential.
    drift: A name in `DRIFTS`.
    particles: Particles of nested simulations; without effect on learned drifts.
    inner_steps: Steps of each nested simulation.
  """

  potential: Potential
  drift: str
  particles: int = 64
  inner_steps: int = 15

  @property
  def params(self) -> trees.Tree:
    """Parameters that the sampler takes beside the pipeline's."""
    return self.potential.learned if self.drift in LEARNED_DRIFTS else self.potential.params

  def settings(self) -> dict[str, Any]:
    """All that images depend on, in JSON."""
    nested = {"particles": self.particles, "inner_steps": self.inner_steps}
    return {"drift": self.drift, **(nested if self.drift in NESTED else {})}

  def evaluations(self, steps: int, guided: bool) -> int:
    """Network evaluations of an image in so many steps of a solver."""
    inner = self.particles * self.inner_steps + (self.drift == "reinforce")
    return steps * (1 + inner * (self.drift in NESTED)) * (1 + guided)


def check_drift(steering: Steering) -> None:
  """Raises InputError where the potential lacks the drift, or a number is out of range."""
  potential, drift = steering.potential, steering.drift
  if drift not in DRIFTS:
    raise unknown("drift", drift, DRIFTS)
  if drift in LEARNED_DRIFTS and drift != potential.drift:
    has = f"has learned {potential.drift!r}" if potential.drift else "has learned no drift"
    raise InputError(
      f"drift {drift!r} is not in this potential, which {has}: set config.drift.name={drift} when "
      f"it is learned, or choose one of {[*NESTED, *filter(None, [potential.drift])]}"
    )
  check_integer("particles", steering.particles, ddo.drift.COUNTS)
  check_integer("inner_steps", steering.inner_steps, ddo.drift.COUNTS)


def pooled_text(conditioning: Conditioning) -> jax.Array:
  """The caption as a potential sees it: encodings averaged over tokens, side by side.

  Args:
    conditioning: From the pipeline's `encode_text`, arrays `[B, ..., D]`.

  Returns:
    float32 `[B, text]`.
  """
  parts = [
    jnp.mean(x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1]), axis=1)
    for _, x in sorted(conditioning.items())
  ]
  return jnp.concatenate(parts, axis=-1)


def noise_level(process: Any, t: jax.Array, like: jax.Array) -> jax.Array:
  """The noise level as a potential's network sees it, (2/π) arctan(s_t/a_t); `[B]`."""
  a, s = ddo.levels(process, jnp.broadcast_to(t, like.shape[:1]), like)
  return (2 / jnp.pi) * jnp.arctan2(s, a).reshape(-1)


def learned_drift(
  config: networks.PotentialConfig, process: Any
) -> Callable[[trees.Tree, jax.Array, jax.Array, jax.Array], jax.Array]:
  """The drift of a learned network, ∇ A(x, t): `(params, x_t [B, ...], t [B], text) -> [B, ...]`.

  `denoising` learns the field by the gradient of a scalar network too: the exact one is a gradient.
  """
  apply = networks.build(config).apply

  def drift(params: trees.Tree, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    level = noise_level(process, t, x)
    return ddo.drift_log_h(lambda x, t: apply(params, x, text, level))(x, t, None)

  return drift


def steered(
  pipeline: TextToImage,
  steering: Steering,
  predict: Callable[[jax.Array, jax.Array], jax.Array],
  params: trees.Tree,
  text: jax.Array,
  keys: jax.Array,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The prediction of a network whose score has Doob's drift added.

  Args:
    pipeline: The pipeline.
    steering: The potential and its drift.
    predict: The reference's (x `[B, ...]`, t `[B]`) -> prediction, guided or not.
    params: `steering.params`, on the devices.
    text: From `pooled_text`, `[B, text]`.
    keys: A key for each image, `[B]`.

  Returns:
    (x, t) -> prediction, of the same type as `predict`'s.
  """
  process, config = pipeline.process, steering.potential.config
  if steering.drift in NESTED:
    apply = networks.build(config).apply
    drift = ddo.drift_nested(
      process,
      predict,
      lambda x0: apply(params, x0, text, jnp.zeros(len(x0))),
      particles=steering.particles,
      num_steps=steering.inner_steps,
      form=NESTED[steering.drift],
    )
  else:
    learned = learned_drift(config, process)

    def drift(x: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
      return learned(params, x, t, text)

  def at_step(key: jax.Array, t: jax.Array) -> jax.Array:
    # By the bits of the time: solvers pass it as float32, and no two steps share it.
    bits = jax.lax.bitcast_convert_type(t.astype(jnp.float32), jnp.uint32)
    return jax.random.fold_in(jax.random.fold_in(key, jnp.uint32(2**32 - 1)), bits)

  def steered_predict(x: jax.Array, t: jax.Array) -> jax.Array:
    u = drift(x, t, jax.vmap(at_step)(keys, t))
    return ddo.shifted(process, predict(x, t), u, x, t)

  return steered_predict


def prompts_text(pipeline: TextToImage, params: Params, prompts: list[str]) -> np.ndarray:
  """`pooled_text` of prompts, float32 `[N, text]`."""
  tokens, _ = pipeline.tokenize(prompts)
  encode = jax.jit(lambda params, tokens: pooled_text(pipeline.encode_text(params, tokens)))
  encoders = {name: params[name] for name in pipeline.text_encoders}
  return np.asarray(encode(encoders, tokens))
