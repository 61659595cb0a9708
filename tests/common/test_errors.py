"""Messages of errors are clean and short."""

import errno

import pytest

from dmpo_jax.common.atomic_files import writing
from dmpo_jax.errors import SYSTEM_ERROR, InputError, exit_status, short


def test_control_characters_are_escaped():
  message = str(InputError("a \x1b]0;owned\x07 \x9b31m \u202e \u2028 \udcff ä\u00a0日本"))
  assert message == "a \\x1b]0;owned\\x07 \\x9b31m \\u202e \\u2028 \\udcff ä\u00a0日本"


def test_a_long_line_loses_its_middle():
  message = str(InputError("start " + "x" * 5000 + " end"))
  assert len(message) == 600
  assert message.startswith("start x")
  assert message.endswith("x end")


def test_a_list_keeps_its_first_lines():
  lines = str(InputError("\n".join(str(i) for i in range(1000)))).split("\n")
  assert lines[:39] == [str(i) for i in range(39)]
  assert lines[39:] == ["... and 961 more lines"]


def test_a_system_error_is_escaped_too():
  status, message = exit_status(OSError(errno.ENOSPC, "full", "a\x1bb"))
  assert status == SYSTEM_ERROR
  assert "\x1b" not in message


def test_short_cuts_the_repr():
  assert short("ab") == "'ab'"
  assert len(short("x" * 10_000_000)) == 80
  assert len(short(list(range(1000)), 50)) == 50


def test_a_full_disk_in_any_class_is_an_os_error_with_the_file(tmp_path):
  with pytest.raises(OSError, match="No space left") as error, writing(tmp_path / "t.json"):
    raise Exception("No space left on device (os error 28)")
  assert error.value.errno == errno.ENOSPC
  assert error.value.filename == str(tmp_path / "t.json")
  assert "free space" in str(error.value)


def test_an_os_error_without_a_file_gets_one(tmp_path):
  with pytest.raises(OSError) as error, writing(tmp_path / "a.png"):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")
  assert error.value.filename == str(tmp_path / "a.png")


def test_a_defect_stays_what_it_is(tmp_path):
  with pytest.raises(ZeroDivisionError), writing(tmp_path / "a"):
    raise ZeroDivisionError
