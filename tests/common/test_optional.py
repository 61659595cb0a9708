"""Imports of optional dependencies: the module, or an error that says how to install it."""

import json.decoder

import pytest

from dmpo_jax.common.optional import import_optional
from dmpo_jax.errors import InputError


def test_an_installed_module_is_imported():
  assert import_optional("json.decoder") is json.decoder


def test_a_missing_package_is_an_error_with_the_command_that_installs_it():
  with pytest.raises(InputError, match=r"nosuch is not .*pip install 'dmpo-jax\[monitor\]'"):
    import_optional("nosuch.module", extra="monitor")


def test_a_missing_dependency_of_an_installed_package_is_not_hidden(tmp_path, monkeypatch):
  (tmp_path / "half_installed.py").write_text("import nosuch")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match="nosuch"):
    import_optional("half_installed")
