"""Packages that the base install does without."""

import importlib
from types import ModuleType

from dmpo_jax.errors import InputError


def require(module: str, *, extra: str = "quickstart") -> ModuleType:
  """The module of that name, from a package of an extra.

  Args:
    module: Dotted name ("sklearn.datasets").
    extra: The extra of this package that brings it.

  Returns:
    The imported module.

  Raises:
    InputError: Its package is not installed; the message says how to install it.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    package = module.split(".")[0]
    if (error.name or "").split(".")[0] != package:
      raise  # the package is there, something that it needs is not
    raise InputError(
      f"{package} is not installed; it comes with pip install 'dmpo-jax[{extra}]'"
    ) from error
