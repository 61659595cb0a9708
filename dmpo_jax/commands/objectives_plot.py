"""The picture of `dmpo-jax objectives plot`."""

import importlib
from collections.abc import Callable, Iterable

# The reference's error on winner and loser. Only mapo, dspo and sdpo look at it: of the others, all
# that counts is how far the policy's errors are from there.
LEVEL = 0.1


def configured(names: Iterable[str] = ()) -> dict[str, Callable]:
  """Objectives with the hyperparameters of their own configs, configs/digits_NAME.py.

  Args:
    names: Of `losses.LOSSES`; empty: all of them, in alphabetical order.

  Returns:
    Losses by name, as `training.start.make_loss` binds them.

  Raises:
    InputError: A name is not known.
  """
  from dmpo_jax import losses
  from dmpo_jax.errors import unknown
  from dmpo_jax.training.setup import make_loss

  chosen = list(dict.fromkeys(names)) or sorted(losses.LOSSES)
  for name in chosen:
    if name not in losses.LOSSES:
      raise unknown("objective", name, losses.LOSSES)
  return {name: make_loss(_section(name)) for name in chosen}


def axis_beta() -> float:
  """The beta of the logit on the horizontal axis: that of the configured DPO."""
  return float(_section("dpo")["beta"])


def draw(names: Iterable[str], out: str) -> None:
  """Writes the picture of the objectives and prints where it is.

  Raises:
    InputError: A name is not known, or matplotlib is not installed.
    OSError: `out` cannot be written.
  """
  from dmpo_jax.evaluation import objective_plots

  objective_plots.picture(configured(names), beta=axis_beta(), level=LEVEL, path=out)
  print(out)


def _section(name: str):
  return importlib.import_module(f"dmpo_jax.configs.digits_{name}").get_config().loss
