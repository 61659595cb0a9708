"""Where compiled programs are kept: a folder of the user's cache, unless jax's variables say."""

import os
import pathlib

import pytest

from dmpo_jax.commands import program_cache


@pytest.fixture
def environment(monkeypatch, tmp_path):
  """No choice has been made, and the user's cache is empty."""
  for name in (program_cache.FOLDER, program_cache.LIMIT, program_cache.ENABLED):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  yield tmp_path
  os.environ.pop(program_cache.FOLDER, None)
  os.environ.pop(program_cache.LIMIT, None)


def test_programs_go_to_the_users_cache_with_a_limit(environment):
  program_cache.choose_folder()
  folder = pathlib.Path(os.environ[program_cache.FOLDER])
  assert folder.is_dir()
  assert folder.parent == environment / "dmpo_jax" / "programs"
  assert int(os.environ[program_cache.LIMIT]) == 10**10


def test_another_folder_stands_without_a_limit(environment, monkeypatch):
  monkeypatch.setenv(program_cache.FOLDER, "gs://bucket/programs")
  program_cache.choose_folder()
  assert os.environ[program_cache.FOLDER] == "gs://bucket/programs"
  assert program_cache.LIMIT not in os.environ


def test_a_cache_that_is_switched_off_stays_off(environment, monkeypatch):
  monkeypatch.setenv(program_cache.ENABLED, "false")
  program_cache.choose_folder()
  assert program_cache.FOLDER not in os.environ


def test_nothing_is_kept_where_the_folder_cannot_be_made(environment):
  (environment / "dmpo_jax").write_text("a file where the folder should be")
  program_cache.choose_folder()
  assert program_cache.FOLDER not in os.environ


def test_another_processor_has_another_folder(environment, monkeypatch):
  program_cache.choose_folder()
  first = os.environ.pop(program_cache.FOLDER)
  monkeypatch.setattr(program_cache, "_processor", lambda: "00000000")
  program_cache.choose_folder()
  assert os.environ[program_cache.FOLDER] != first
