"""How policy and reference do on fixed held-out pairs, by timestep: errors, margin, accuracy.

The pairs, their noise and their timesteps are the same at every look, so that two looks differ by
what was learned between them alone, and policy and reference are compared pair by pair.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dmpo_jax import losses
from dmpo_jax.parallel import sharding
from dmpo_jax.training.batch import Batch, Draws
from dmpo_jax.training.objective import (
  ROUNDING,
  Loss,
  Objective,
  Params,
  encode_images,
  image_errors,
)

# The draws derive from it and from the examples' ids: the same ones in all runs, whatever their
# seed.
SEED = 20_231_121
# Standard errors beyond which a rise of the winner's error is not taken for noise. Without a rise
# the mean of 64 pairs lies beyond three about once in 500 looks.
RISE = 3.0


class Look(NamedTuple):
  """What both networks found on the held-out examples.

  Attributes:
    policy: float32 `[bins, examples, images]`, the policy's errors.
    reference: The same of the starting pipeline.
    weights: float32 `[bins, examples]`, what the run's loss multiplies errors by at the timesteps
      that were drawn.
  """

  policy: np.ndarray
  reference: np.ndarray
  weights: np.ndarray


def edges(num_timesteps: int, bins: int) -> list[int]:
  """Where timestep bins begin, and the end of the last: bins + 1 numbers from 0."""
  return [num_timesteps * i // bins for i in range(bins + 1)]


def make_errors(
  objective: Objective, mesh: Mesh, bins: int
) -> Callable[[Params, Params, Batch], tuple[jax.Array, jax.Array]]:
  """The compiled function that measures a batch of held-out examples.

  One timestep of each bin and noise of its own are drawn for each example, from its id alone;
  captions are never dropped.

  Args:
    objective: The run's.
    mesh: The run's, on which the work is shared as the arguments lie.
    bins: Number of bins of equal length.

  Returns:
    `(trained, frozen, batch) -> (errors, weights)`, float32 `[bins, examples, images]` and
    `[bins, examples]` as in `Look`, whole on every device. Policy and reference are both measured
    by it, so that equal parameters give equal numbers.
  """
  schedule = objective.schedule
  bounds = jnp.asarray(edges(len(schedule.alphas_cumprod), bins), jnp.int32)

  def errors(trained: Params, frozen: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    step = jnp.zeros((), jnp.int32)
    batch = objective._replace(label_noise=0.0).prepare(batch, step)
    batch = encode_images(objective.networks, frozen, batch, SEED, step)
    params = objective.combine(frozen, trained)
    shape = batch.images.shape[2:]

    def draw(identity: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), identity), i)
      one, other = jax.random.split(key)
      timestep = jax.random.randint(one, (), bounds[i], bounds[i + 1])
      return timestep, jax.random.normal(other, shape)

    def in_bin(i: jax.Array) -> tuple[jax.Array, jax.Array]:
      timesteps, noise = jax.vmap(draw, in_axes=(0, None))(batch.example_id, i)
      draws = Draws(timesteps, noise, jnp.zeros(timesteps.shape, bool))
      nulls = (objective.null_ids, objective.null_text)
      found, _ = image_errors(objective.networks, schedule, params, batch, draws, *nulls)
      weights = objective.weights or (lambda t: jnp.ones(t.shape, jnp.float32))
      return found, weights(timesteps)  # [examples, images], [examples]

    return jax.lax.map(in_bin, jnp.arange(bins))

  everywhere = sharding.replicated(mesh)
  return jax.jit(errors, out_shardings=everywhere, compiler_options=ROUNDING)


def measure(
  errors: Callable, trained: Params, frozen: Params, batches: Sequence[Batch]
) -> tuple[np.ndarray, np.ndarray]:
  """The errors of all held-out examples, and the weights of them in the loss, as in `Look`.

  Args:
    errors: From `make_errors`.
    trained: Parameters, as for `Objective`.
    frozen: Those that are not trained.
    batches: The examples, laid out on the devices.

  Returns:
    float32 `[bins, examples, images]` and `[bins, examples]`.
  """
  found = [jax.device_get(errors(trained, frozen, batch)) for batch in batches]
  return tuple(np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))


def row(look: Look, loss: Loss, num_timesteps: int) -> dict[str, Any]:
  """What a look says, over all timesteps and bin by bin.

      change_w = mean(e_w - r_w),   change_l = mean(e_l - r_l),
      margin = mean((e_l - r_l) - (e_w - r_w)),   accuracy = share of pairs with a margin > 0
      gradient factor = mean(-d loss/d z),   z the objective's logit

  Args:
    look: From pairs or from single images, of which there are winners alone.
    loss: The objective, for its logit and gradient factor.
    num_timesteps: Of the noise schedule.

  Returns:
    winner, winner_reference, winner_change and its standard error winner_change_se, the same of
    the loser; margin, accuracy (a tie counts 1/2); logit and gradient_factor where the objective
    has them; winner_rises, 1 where `rises` says so; and "bins", a list of the same (without the
    last) with "from" and "to", the first and last timestep.
  """
  bins, images = look.policy.shape[0], look.policy.shape[2]
  seen = {"w": look.policy[..., 0] - look.reference[..., 0]}  # [bins, examples]
  if images == 2:
    seen["l"] = look.policy[..., 1] - look.reference[..., 1]
  judged = _judge(loss, look) if images == 2 else {}

  def describe(part: slice) -> dict[str, float]:
    found = {}
    for i, (name, side) in enumerate((("winner", "w"), ("loser", "l"))[:images]):
      change = seen[side][part].mean(0)  # [examples], over timesteps: pairs are what is independent
      found[name] = look.policy[part, :, i].mean()
      found[f"{name}_reference"] = look.reference[part, :, i].mean()
      found[f"{name}_change"] = change.mean()
      found[f"{name}_change_se"] = _standard_error(change)
    if images == 2:
      margin = seen["l"][part] - seen["w"][part]
      found["margin"] = margin.mean()
      found["accuracy"] = np.where(margin == 0, 0.5, margin > 0).mean()
    found |= {name: value[part].mean() for name, value in judged.items()}
    return {name: float(value) for name, value in found.items()}

  bounds = edges(num_timesteps, bins)
  result = describe(slice(None))
  result["winner_rises"] = float(rises(result["winner_change"], result["winner_change_se"]))
  result["bins"] = [
    {"from": bounds[i], "to": bounds[i + 1] - 1, **describe(slice(i, i + 1))} for i in range(bins)
  ]
  return result


def rises(change: float, standard_error: float) -> bool:
  """Whether the winner's error lies above the reference's by more than noise.

      mean(e_w - r_w) > 3 · std(e_w - r_w) / sqrt(pairs)

  What is no number counts as a rise.
  """
  return not change <= RISE * standard_error


def warning(step: int, found: dict[str, Any]) -> str:
  """What is said where `rises`.

  Args:
    step: Steps done.
    found: From `row`.

  Returns:
    A paragraph for a person.
  """
  change, error = found["winner_change"], found["winner_change_se"]
  worst = max(found["bins"], key=lambda part: part["winner_change"])
  more = 100 * change / found["winner_reference"]
  return (
    f"step {step}: on held-out pairs the policy denoises the preferred images worse than the "
    f"reference, by {change:.3g} ({more:.2g}%, {change / max(error, 1e-12):.0f} standard errors), "
    f"most at timesteps {worst['from']} to {worst['to']}: the margin is bought by unlearning. "
    "Lower the learning rate or raise beta, or take the checkpoint before; see docs/monitoring.md"
  )


def _standard_error(values: np.ndarray) -> float:
  return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _judge(loss: Loss, look: Look) -> dict[str, np.ndarray]:
  """Logit and gradient factor of each pair at each bin, `[bins, examples]`.

  d loss/dz = (d loss/de_l) / (dz/de_l): of an objective whose loss is not a function of the logit
  alone (`kto`, `mapo`) it is the part that reaches the loser. Of a wrapper (`sdpo`) it is the
  base's. An objective without losers has neither, nor has `dspo`, which takes more than the errors.
  """
  facts = losses.facts(loss)
  while facts.residuals and "base" in loss.keywords:
    loss = loss.keywords["base"]
    facts = losses.facts(loss)
  if facts.residuals or not facts.losers:
    return {}

  def flat(errors: np.ndarray) -> jax.Array:
    return jnp.asarray((look.weights * errors).reshape(-1))

  pairs = losses.PairErrors(
    policy_w=flat(look.policy[..., 0]),
    policy_l=flat(look.policy[..., 1]),
    reference_w=flat(look.reference[..., 0]),
    reference_l=flat(look.reference[..., 1]),
  )

  # One device of this process is enough for so few numbers, and no other process is asked.
  with jax.default_device(jax.local_devices()[0]):
    found = _logit_and_factor(loss, pairs)
  shape = look.policy.shape[:2]
  return {name: np.asarray(value).reshape(shape) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _logit_and_factor(loss: Loss, pairs: losses.PairErrors) -> dict[str, jax.Array]:
  def total(policy_l: jax.Array) -> tuple[jax.Array, jax.Array]:
    lost, diagnostics = loss(pairs._replace(policy_l=policy_l))
    return jnp.stack([jnp.sum(lost), jnp.sum(diagnostics.logit)]), diagnostics.logit

  # The sums couple no pairs: batch statistics stop the gradient.
  (of_loss, of_logit), logit = jax.jacrev(total, has_aux=True)(pairs.policy_l)
  return {"logit": logit, "gradient_factor": -of_loss / of_logit}
