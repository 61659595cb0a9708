"""Losses are tested under strict dtype promotion: an implicit conversion is an error."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_dtype_promotion():
  with jax.numpy_dtype_promotion("strict"):
    yield
