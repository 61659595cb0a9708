"""The harness finds what a reader must not do."""

import time

import pytest

from dmpo_jax.errors import InputError
from tests.fuzz import harness


def reader(tmp_path, misbehave):
  """A reader of a.json that misbehaves on every content but the valid one."""
  root = tmp_path / "valid files"
  root.mkdir()
  (root / "a.json").write_text('{"a": 1}')

  def read(folder):
    if (folder / "a.json").read_bytes() != b'{"a": 1}':
      misbehave()

  return harness.Reader(root, {"a.json": "json"}, read)


def raises(error):
  def misbehave():
    raise error

  return misbehave


@pytest.mark.parametrize(
  ("error", "problem"),
  [
    (KeyError("a"), "KeyError"),
    (RecursionError("deep"), "RecursionError"),
    (OSError(28, "no space left"), "OSError"),
  ],
)
def test_another_error_than_input_error_is_found(tmp_path, error, problem):
  with pytest.raises(AssertionError, match=problem):
    harness.check("x", reader(tmp_path, raises(error)), tmp_path, cases=3)


def test_a_reader_that_does_not_end_is_found(tmp_path, monkeypatch):
  monkeypatch.setattr(harness, "SECONDS", 0.05)
  with pytest.raises(AssertionError, match="HangError"):
    harness.check("x", reader(tmp_path, lambda: time.sleep(5)), tmp_path, cases=1)


@pytest.mark.parametrize(
  ("message", "problem"),
  [("a\x1b[2J", "control character"), ("a" * 601, "601 characters"), ("a\n" * 41, "42 lines")],
)
def test_a_message_that_is_not_fit_to_print_is_found(message, problem):
  assert problem in harness.message_problem(message)


def test_refusals_and_harmless_damage_are_counted(tmp_path):
  outcomes = harness.check("x", reader(tmp_path, raises(InputError("no"))), tmp_path, cases=20)
  assert outcomes["refused"] + outcomes["read"] == 20
  assert outcomes["refused"] > 15


def test_a_case_is_the_same_damage_every_time(tmp_path):
  contents = []
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    target = reader(tmp_path / name, lambda: None)
    seen = []
    read = lambda folder, seen=seen: seen.append((folder / "a.json").read_bytes())  # noqa: E731
    harness.check("x", harness.Reader(target.root, target.files, read), tmp_path, cases=5)
    contents.append(seen)
  assert contents[0] == contents[1]
