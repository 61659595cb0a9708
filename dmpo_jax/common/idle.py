"""Fields of a stranger's config that are not known here and are switched off."""

import functools
import logging
from collections.abc import Collection
from typing import Any

from dmpo_jax.errors import printable

LOGGER = logging.getLogger(__name__)


def is_off(value: Any) -> bool:
  """Whether a field, whatever its meaning, is switched off.

  Args:
    value: From JSON: null, false, and lists and objects of nothing else are off.
  """
  if isinstance(value, list | tuple):
    return all(map(is_off, value))
  return value is None or value is False or value == {}


def tell(what: str, names: Collection[str]) -> None:
  """Lists unknown fields that are passed over in a warning, once in a process.

  Args:
    what: The config in words ("scheduler config").
    names: The fields.
  """
  if names:
    _tell(what, ", ".join(sorted(names)))


@functools.cache
def _tell(what: str, names: str) -> None:
  LOGGER.warning(
    "%s: unknown fields that are null or false are passed over: %s", what, printable(names)
  )
