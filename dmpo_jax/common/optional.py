"""Packages that the base install leaves out."""

import importlib
from types import ModuleType

from dmpo_jax.errors import InputError


def import_optional(module: str, *, extra: str = "quickstart") -> ModuleType:
  """Imports a module of an optional dependency.

  Args:
    module: Dotted name ("sklearn.datasets").
    extra: The extra of dmpo-jax that installs it.

  Returns:
    The imported module.

  Raises:
    InputError: The package is not installed; the message says how to install it.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    package = module.split(".")[0]
    if (error.name or "").split(".")[0] != package:
      raise  # the package is installed, a dependency of it is not
    raise InputError(
      f"{package} is not installed; it comes with pip install 'dmpo-jax[{extra}]'"
    ) from error
