"""The shared readers of files: right values, and one line for every damaged file."""

import errno
import json
import os

import numpy as np
import pytest

from dmpo_jax.common import files
from dmpo_jax.errors import InputError

TEXT = "the digit\u2028 seven\nä"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
  (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
  assert files.read_text(tmp_path / "a.txt") == TEXT


def test_a_wrong_byte_is_named_with_its_line(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xff")
  with pytest.raises(InputError, match=r"a.txt, line 3: byte 8 is no UTF-8 text; save it as UTF-8"):
    files.read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
  ("text", "lines"),
  [
    ("a\u2028b\x0bc\x0cd\x1ce\x85f\u2029g\nh", ["a\u2028b\x0bc\x0cd\x1ce\x85f\u2029g", "h"]),
    ("a\r\nb\rc\nd\n", ["a", "b", "c", "d"]),
    ("a\n\nb", ["a", "", "b"]),
    ("", []),
  ],
)
def test_lines_end_at_carriage_returns_and_line_feeds_alone(text, lines):
  assert files.split_lines(text) == lines


def test_a_missing_file_and_a_folder_are_named(tmp_path):
  with pytest.raises(InputError, match=r"no.json is missing; make it"):
    files.read_json(tmp_path / "no.json", advice="make it")
  with pytest.raises(InputError, match="is no file"):
    files.read_text(tmp_path)


def test_a_pipe_is_read_on_request_alone(tmp_path):
  read, write = os.pipe()
  os.write(write, b"one")
  os.close(write)
  path = f"/dev/fd/{read}"
  with pytest.raises(InputError, match="is no file"):
    files.read_text(path)
  assert files.read_text(path, pipes=True) == "one"
  os.close(read)


def test_an_endless_file_ends_at_the_limit():
  with pytest.raises(InputError, match="has more than 1000 bytes"):
    files.read_text("/dev/zero", pipes=True, max_bytes=1000)


def test_json_is_read_with_its_mark(tmp_path):
  (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, "\\ud83d\\ude00"]}')
  assert files.read_json(tmp_path / "a.json") == {"a": [1, "\U0001f600"]}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "is no valid JSON: Expecting"),
    ("[1]", r"holds \[1\], expected a JSON object"),
    ("null", "holds None, expected a JSON object"),
    ('{"a": ' * 101 + "1" + "}" * 101, "nested deeper than 100"),
    ("[" * 100_000, "nested deeper than 100"),
    ('{"a": "\\udcc8"}', "half a surrogate pair"),
    ('{"\\uD800": 1}', "half a surrogate pair"),
    ('{"a": ' + "1" * 5000 + "}", "is no valid JSON"),
    ("", "is no valid JSON"),
  ],
)
def test_damaged_json_is_one_line_with_file_and_advice(tmp_path, text, message):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(InputError, match=message) as error:
    files.read_json(tmp_path / "a.json", advice="export it again")
  line = str(error.value)
  assert "\n" not in line
  assert len(line) <= 600
  assert "a.json" in line
  assert line.endswith("; export it again")


def test_nesting_below_the_limit_is_read():
  text = '{"a": ' * 98 + "[1]" + "}" * 98
  assert files.parse_json(text, "x") == json.loads(text)


def test_a_truth_value_is_no_number():
  with pytest.raises(InputError, match="expected a JSON number"):
    files.parse_json("true", "x", int)


def test_a_line_of_json_lines_is_named(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"a": "\u2028"}\n\n{"a"')
  with pytest.raises(InputError, match=r"a.jsonl, line 3 is no valid JSON"):
    files.read_json_lines(tmp_path / "a.jsonl")
  (tmp_path / "a.jsonl").write_text('{"a": "\u2028"}\r\n{"a": 2}\n')
  assert files.read_json_lines(tmp_path / "a.jsonl") == [{"a": "\u2028"}, {"a": 2}]


def test_a_failure_of_a_library_is_one_line(tmp_path):
  (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr")
  with (
    pytest.raises(InputError, match=r"a.npy is a damaged array: .*; delete it"),
    files.reading(tmp_path / "a.npy", "array", advice="delete it"),
  ):
    np.load(tmp_path / "a.npy")


class PanicException(BaseException):
  """As libraries in Rust raise it."""


@pytest.mark.parametrize(
  "error", [KeyError("a"), MemoryError(), OSError("no parquet"), Exception()]
)
def test_any_exception_of_a_library_means_a_damaged_file(error):
  with pytest.raises(InputError, match="x is a damaged table: "), files.reading("x", "table"):
    raise error


def test_a_panic_of_a_library_means_a_damaged_file():
  with pytest.raises(InputError, match="x is a damaged table: "), files.reading("x", "table"):
    raise PanicException("index out of range")


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), KeyboardInterrupt()])
def test_a_refusal_of_the_system_and_an_interrupt_stay(error):
  with pytest.raises(type(error)), files.reading("x", "table"):
    raise error


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".", "a b", "ä", 3, None, "a\n", "x" * 101])
def test_a_name_with_other_characters_is_refused(name):
  with pytest.raises(InputError, match=r"component .* is no name"):
    files.check_name(name, "component")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b", 3, "x" * 5000])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
  with pytest.raises(InputError):
    files.inside(tmp_path, name)


def test_links_out_of_the_folder_are_refused_and_others_followed(tmp_path):
  root = tmp_path / "root"
  root.mkdir()
  (root / "in").write_text("1")
  (root / "good").symlink_to("in")
  (root / "bad").symlink_to(tmp_path)
  (root / "ring").symlink_to("ring")
  assert files.inside(root, "good").read_text() == "1"
  for name in ("bad", "bad/x"):
    with pytest.raises(InputError, match="is a link that leaves the folder"):
      files.inside(root, name)


def test_links_of_a_hub_snapshot_to_its_blobs_are_followed(tmp_path):
  snapshot, blobs = tmp_path / "models--a" / "snapshots" / "main", tmp_path / "models--a" / "blobs"
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  (blobs / "hash").write_text("1")
  (snapshot / "a.json").symlink_to("../../blobs/hash")
  assert files.inside(snapshot, "a.json").read_text() == "1"


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "gone"])
def test_a_name_that_no_file_can_have_is_no_file(tmp_path, name):
  assert not files.is_file(tmp_path / name)
