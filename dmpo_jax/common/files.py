"""Files that a user or a stranger wrote: every failure to read one is one line with file and place.

Readers of text, JSON, arrays, tables and tokenizers go through this module. A damaged file raises
`InputError`; what the system refuses (permissions, a failing disk) stays an `OSError`.
"""

import codecs
import contextlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Any

from dmpo_jax.common import paths
from dmpo_jax.errors import InputError, cut, short

# Largest text file that is read, in bytes, and deepest nesting of JSON.
MAX_BYTES, MAX_DEPTH = 1 << 28, 100

_MARKS = (
  (codecs.BOM_UTF8, "utf-8"),
  (codecs.BOM_UTF32_LE, "utf-32-le"),
  (codecs.BOM_UTF32_BE, "utf-32-be"),
  (codecs.BOM_UTF16_LE, "utf-16-le"),
  (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_KINDS = {dict: "object", list: "list", str: "text", int: "number", float: "number"}
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def located(where: object) -> Iterator[None]:
  """Puts the place in front of the message of an InputError."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{where}: {error}") from error


@contextlib.contextmanager
def reading(path: object, what: str, *, advice: str = "") -> Iterator[None]:
  """Turns any failure of a library that reads a file into one line.

  Args:
    path: The file, or another name of the place.
    what: Kind of the file, in words ("numpy array", "tokenizer").
    advice: What the user can do about it.

  Raises:
    InputError: The file is damaged: "PATH is a damaged WHAT: reason; ADVICE".
    OSError: The system refused the read; it has a number (`errno`), which the errors of libraries
      for damaged files lack.
  """
  try:
    yield
  except InputError:
    raise
  except FileNotFoundError as error:
    raise InputError(f"{path} is missing{_then(advice)}") from error
  except BaseException as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise
    # Panics of libraries in Rust derive from BaseException.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    raise InputError(f"{path} is a damaged {what}: {reason(error)}{_then(advice)}") from error


def reason(error: BaseException) -> str:
  """The first line of an error's message, shortened; with its type where that says more."""
  lines = [line for line in str(error).split("\n") if line.strip()]
  if isinstance(error, RecursionError):
    return "it is nested too deep"
  if isinstance(error, MemoryError) or not lines:
    return type(error).__name__
  text = cut(lines[0].strip(), 200)
  return f"{type(error).__name__}: {text}" if isinstance(error, KeyError | IndexError) else text


def is_file(path: str | os.PathLike | paths.Path) -> bool:
  """Whether there is a file; False for a name that no file can have, such as one too long."""
  try:
    return paths.parse(path).is_file()
  except InputError:
    raise
  except (OSError, ValueError):
    return False


def read_text(
  path: str | os.PathLike | paths.Path,
  *,
  advice: str = "save it as UTF-8",
  pipes: bool = False,
  max_bytes: int = MAX_BYTES,
) -> str:
  """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

  The mark is no part of the text.

  Args:
    path: The file.
    advice: What the user can do about a file that is damaged or missing.
    pipes: Whether a pipe is read too, as for a file that a user names on the command line.
    max_bytes: Largest size.

  Returns:
    The text, with its line ends as they are.

  Raises:
    InputError: The file is missing, is no file, is too large, or is no such text; the message names
      the line of the first wrong byte.
  """
  return decode(read_bytes(path, advice=advice, pipes=pipes, max_bytes=max_bytes), path, advice)


def read_bytes(
  path: str | os.PathLike | paths.Path,
  *,
  advice: str = "",
  pipes: bool = False,
  max_bytes: int = MAX_BYTES,
) -> bytes:
  """The bytes of a regular file of at most `max_bytes`; arguments and errors of `read_text`."""
  path = paths.parse(path)
  try:
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or (pipes and not stat.S_ISDIR(mode))):
      raise InputError(f"{path} is no file{_then(advice)}")
    with path.open("rb") as stream:
      content = stream.read(max_bytes + 1)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(f"{path} is missing{_then(advice)}") from error
  except ValueError as error:  # InputError, or a NUL in the name
    if isinstance(error, InputError):
      raise
    raise InputError(f"the path {short(str(path))} names no file") from error
  if len(content) > max_bytes:
    raise InputError(f"{path} has more than {max_bytes} bytes{_then(advice)}")
  return content


def decode(content: bytes, where: object, advice: str = "save it as UTF-8") -> str:
  """Text of bytes in UTF-8, or in UTF-16 or UTF-32 with a mark; see `read_text`."""
  mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b"", "utf-8"))
  content = content[len(mark) :]
  try:
    return content.decode(encoding)
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise InputError(
      f"{where}, line {line}: byte {error.start} is no {encoding.upper()} text{_then(advice)}"
    ) from error


def split_lines(text: str) -> list[str]:
  """The lines of a text, which end at LF, CRLF or CR alone; an empty last line is left out.

  `str.splitlines` would also cut at U+2028, U+0085, form feeds and other characters of a line.
  """
  lines = re.split("\r\n|\n|\r", text)
  return lines[:-1] if not lines[-1] else lines


def read_json(
  path: str | os.PathLike | paths.Path,
  *,
  kind: type = dict,
  advice: str = "",
  max_bytes: int = MAX_BYTES,
) -> Any:
  """The value in a JSON file.

  Args:
    path: The file.
    kind: Type of the value: dict, list, str, int, float; object: any.
    advice: What the user can do about a file that is damaged or missing.
    max_bytes: Largest size.

  Returns:
    The value.

  Raises:
    InputError: See `parse_json` and `read_text`.
  """
  return parse_json(read_text(path, advice=advice, max_bytes=max_bytes), path, kind, advice)


def parse_json(text: str | bytes, where: object, kind: type = dict, advice: str = "") -> Any:
  """The value of a JSON text.

  Args:
    text: JSON; bytes are decoded by `decode`.
    where: Place of the text for messages: a file, or a file and a line.
    kind: Type of the value; object: any.
    advice: What the user can do about it.

  Returns:
    The value.

  Raises:
    InputError: The text is no JSON, is nested deeper than `MAX_DEPTH`, holds half a surrogate pair,
      or its value has another type.
  """
  if isinstance(text, bytes):
    text = decode(text, where, advice or "save it as UTF-8")
  try:
    value = json.loads(text.removeprefix("\ufeff"))
  except RecursionError as error:
    raise InputError(f"{where} is nested deeper than {MAX_DEPTH}{_then(advice)}") from error
  except ValueError as error:
    raise InputError(f"{where} is no valid JSON: {reason(error)}{_then(advice)}") from error
  if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, float)):
    raise InputError(
      f"{where} holds {short(value)}, expected a JSON {_KINDS.get(kind, kind.__name__)}"
      f"{_then(advice)}"
    )
  deep = text.count("[") + text.count("{") > MAX_DEPTH
  if deep or "\\ud" in text or "\\uD" in text:
    _check_values(value, where, advice)
  return value


def read_json_lines(
  path: str | os.PathLike | paths.Path, *, kind: type = dict, advice: str = ""
) -> list[Any]:
  """The values of a file with a JSON value per line; empty lines are passed over.

  Args:
    path: The file.
    kind: Type of each value.
    advice: What the user can do about a file that is damaged or missing.

  Returns:
    The values.

  Raises:
    InputError: The message names the line.
  """
  lines = enumerate(split_lines(read_text(path, advice=advice)), 1)
  return [parse_json(t, f"{path}, line {i}", kind, advice) for i, t in lines if t.strip()]


def check_name(name: object, what: str) -> str:
  """A name from a stranger's file that may become the name of a file.

  Args:
    name: The name.
    what: Its meaning in words ("component of model_index.json").

  Returns:
    The name.

  Raises:
    InputError: It is no text of letters, digits and underscores, or is longer than 100.
  """
  if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9_]{1,100}", name):
    raise InputError(
      f"{what} {short(name)} is no name; expected letters, digits and underscores alone"
    )
  return name


def inside(root: str | os.PathLike | paths.Path, name: object, what: str = "path") -> paths.Path:
  """The path of a file or folder that must lie in a folder.

  Links may lead elsewhere in the folder, and from a snapshot of the hub's cache to its blobs.

  Args:
    root: The folder.
    name: Path relative to the folder, with slashes.
    what: Its meaning in words, for messages.

  Returns:
    The resolved path, which need not exist.

  Raises:
    InputError: The name is no text, is absolute, contains "..", or is a link out of the folder.
  """
  if not isinstance(name, str) or not name or "\0" in name:
    raise InputError(f"the {what} {short(name)} names no file")
  parts = pathlib.PurePosixPath(name)
  if parts.is_absolute() or ".." in parts.parts:
    raise InputError(f"the {what} {short(name)} leaves the folder {root}; paths are relative to it")
  base = paths.parse(root).resolve()
  if not isinstance(base, pathlib.Path):
    return base / parts
  allowed = [base]
  if "snapshots" in base.parts:  # the hub's cache: snapshots/REVISION/file -> blobs/HASH
    allowed.append(pathlib.Path(*base.parts[: base.parts.index("snapshots")], "blobs"))
  try:
    path = (base / parts).resolve()
    with contextlib.suppress(FileNotFoundError):
      path.lstat()
  except (OSError, ValueError, RuntimeError) as error:  # too long, not encodable, a ring of links
    raise InputError(f"the {what} {short(name)} cannot be opened: {reason(error)}") from error
  if not any(path.is_relative_to(folder) for folder in allowed):
    raise InputError(f"the {what} {short(name)} is a link that leaves the folder {root}")
  return path


def _then(advice: str) -> str:
  return f"; {advice}" if advice else ""


def _check_values(value: Any, where: object, advice: str) -> None:
  """Raises InputError for values that are nested too deep or hold half a surrogate pair."""
  level, depth = [value], 0
  while level:
    depth += 1
    if depth > MAX_DEPTH:
      raise InputError(f"{where} is nested deeper than {MAX_DEPTH}{_then(advice)}")
    following: list[Any] = []
    for item in level:
      if isinstance(item, dict):
        following += [*item.keys(), *item.values()]
      elif isinstance(item, list):
        following += item
      elif isinstance(item, str) and _SURROGATE.search(item):
        raise InputError(f"{where} holds half a surrogate pair in {short(item)}{_then(advice)}")
    level = following
