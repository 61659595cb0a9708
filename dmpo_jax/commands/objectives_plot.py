"""Plot of `dmpo-jax objectives plot`."""

import importlib
from collections.abc import Callable, Iterable

# Error of the reference on both images. Only contrastive, dspo, mapo and sdpo depend on it; the
# others depend on the differences of errors alone.
LEVEL = 0.1


def configured(names: Iterable[str] = ()) -> dict[str, Callable]:
  """Losses with the hyperparameters of configs/digits_NAME.py.

  Args:
    names: Keys of `losses.LOSSES`; empty: all, in alphabetical order.

  Returns:
    Losses by name, bound as by `training.setup.make_loss`.

  Raises:
    InputError: A name is unknown.
  """
  from dmpo_jax import losses
  from dmpo_jax.errors import unknown
  from dmpo_jax.training.setup import make_loss

  chosen = list(dict.fromkeys(names)) or sorted(losses.LOSSES)
  for name in chosen:
    if name not in losses.LOSSES:
      raise unknown("loss", name, losses.LOSSES)
  return {name: make_loss(_section(name)) for name in chosen}


def axis_beta() -> float:
  """Beta of the logit on the horizontal axis, from the config of DPO."""
  return float(_section("dpo")["beta"])


def write(names: Iterable[str], out: str) -> None:
  """Writes the plot of the losses and prints its path.

  Raises:
    InputError: A name is unknown, or matplotlib is not installed.
    OSError: `out` cannot be written.
  """
  from dmpo_jax.evaluation import objective_plots

  objective_plots.picture(configured(names), beta=axis_beta(), level=LEVEL, path=out)
  print(out)


def _section(name: str):
  return importlib.import_module(f"dmpo_jax.configs.digits_{name}").get_config().loss
