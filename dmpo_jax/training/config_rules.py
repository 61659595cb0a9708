"""Rules of a config that several keys, or a loss, decide together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dmpo_jax import losses
from dmpo_jax.errors import InputError, unknown
from dmpo_jax.training import reference as references
from dmpo_jax.training import setup
from dmpo_jax.training.monitor import alarms

# (condition, key, what the key must be): raises InputError unless the condition holds
Require = Callable[[bool, str, str], None]


def check_reference(config: ConfigDict, require: Require) -> None:
  """The keys of config.reference against each other, the loss and config.reference_dtype."""
  section, kinds = config.reference, references.KINDS
  require(section.kind in kinds, "reference.kind", f"one of {kinds}")
  moves = section.kind != "frozen"
  if section.kind == "ema":
    expected = "positive where config.reference.kind is 'ema'; published: 0.995"
    require(section.decay > 0, "reference.decay", expected)
  if section.kind == "hard":
    expected = "at least 1 where config.reference.kind is 'hard'"
    require(section.every > 0, "reference.every", expected)
  for key, kind in (("decay", "ema"), ("every", "hard")):
    if section.kind != kind:
      expected = f"0 where config.reference.kind is not {kind!r}, for it has no effect"
      require(section[key] == 0, f"reference.{key}", expected)
  if not moves:
    expected = "0 where config.reference.kind is 'frozen', for it has no effect"
    require(section.start == 0, "reference.start", expected)
    return
  expected = f"'frozen' for loss {config.loss.name!r}, which uses no reference"
  require(setup.uses_reference(config), "reference.kind", expected)
  require(
    config.reference_dtype == "float32" or config.lora.rank > 0,
    "reference_dtype",
    "'float32' where config.reference.kind moves the reference: rounded to bfloat16 it would "
    "stand still",
  )


def check_editing(config: ConfigDict, require: Require) -> None:
  """The keys for editing pipelines against each other and config.lora."""
  probabilities = [config.editing[f"{name}_dropout"] for name in ("caption", "source", "both")]
  expected = f"at most 1 in sum with the other two of its section, which is {sum(probabilities):g}"
  require(sum(probabilities) <= 1 + 1e-9, "editing.both_dropout", expected)
  expected = (
    "0 beside config.widen: a LoRA leaves out the weights by which the denoiser reads the source "
    "image, which would stay zero; widen and train whole networks first"
  )
  require(not config.widen or config.lora.rank == 0, "lora.rank", expected)


def check_alarms(config: ConfigDict) -> None:
  """The names in config.health.stop."""
  for name in config.health.stop:
    if name not in alarms.ADVICE:
      raise unknown("alarm in config.health.stop", name, alarms.ADVICE)
    if name in alarms.HELD_OUT and not config.held_out.every:
      raise InputError(
        f"config.health.stop names {name!r}, which the held-out evaluation measures; set "
        "config.held_out.every, or leave the alarm out"
      )


def check_loss(section: ConfigDict) -> None:
  """Evaluates the loss on the shapes of one pair, which checks its hyperparameters."""
  loss = setup.make_loss(section)
  number = jax.ShapeDtypeStruct((1,), jnp.float32)
  errors = losses.PairErrors(number, number, number, number)
  inputs = [errors]
  if losses.requirements(loss).residuals:
    inputs.append(losses.Residuals(*[jax.ShapeDtypeStruct((1, 1), jnp.float32)] * 4))
  try:
    jax.eval_shape(lambda *inputs: loss(*inputs), *inputs)
  except InputError as error:
    raise InputError(f"config.loss: {error}") from error
