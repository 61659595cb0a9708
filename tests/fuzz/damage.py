"""Damage to files: bytes at random places, and values of JSON that are valid but wrong."""

import json
import random
from collections.abc import Callable
from typing import Any

NESTED = 3000
VALUES: tuple[Any, ...] = (
  None,
  True,
  False,
  0,
  1,
  -1,
  2**31,
  2**63,
  10**400,
  0.5,
  1e308,
  float("nan"),
  float("inf"),
  "",
  "x",
  "0",
  "\x1b]0;owned\x07",
  "line\nline",
  "../../secret",
  "/etc/passwd",
  "a" * 5000,
  "\ud800",
  "\u2028",
  "(a+)+!",
  "__import__('os').system('true')",
  [],
  [[]],
  [None],
  {},
  {"a": 1},
  {"../a": []},
)
INSERTS = (
  b"\x00",
  b"\xff" * 8,
  b"\xef\xbb\xbf",
  b"[" * NESTED,
  b'{"a":' * NESTED,
  b"\n",
  b"\r",
  b"9" * 400,
)


def damaged(content: bytes, kind: str, generator: random.Random) -> bytes:
  """The content of a file, damaged.

  Args:
    content: The whole content.
    kind: "json", "jsonl", "safetensors" (JSON in its header), "text" or "binary".
    generator: Source of all choices.
  """
  change = {"json": damaged_json, "jsonl": _damaged_lines, "safetensors": _damaged_header}.get(kind)
  if change is None or generator.random() < 0.35:
    return _damaged_bytes(content, generator)
  return change(content, generator)


def damaged_json(content: bytes, generator: random.Random) -> bytes:
  """JSON with one to three of its values replaced, left out, added or nested."""
  value = json.loads(content)
  for _ in range(generator.randint(1, 3)):
    value = _changed(value, generator)
  text = json.dumps(value)
  if generator.random() < 0.05:
    text = "[" * NESTED + text + "]" * NESTED
  return text.encode()


def sealed(seal: Callable[[dict], dict]) -> Callable[[bytes, random.Random], bytes]:
  """A kind of damage: JSON whose checksum is made anew, as by someone who means harm."""

  def change(content: bytes, generator: random.Random) -> bytes:
    value = _changed(json.loads(content), generator)
    return json.dumps(seal(value) if isinstance(value, dict) else value).encode()

  return change


def _changed(value: Any, generator: random.Random) -> Any:
  """The value with one change, somewhere within."""
  if isinstance(value, dict | list) and value and generator.random() < 0.85:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = generator.choice(keys)
    result = value.copy()
    choice = generator.random()
    if choice < 0.6:
      result[key] = _changed(value[key], generator)
    elif choice < 0.75:
      result.pop(key)
    elif isinstance(result, dict):
      name = generator.choice(["x", "", "../x", "\x1b[2J", "a" * 3000, "format", str(key) + " "])
      result[name] = generator.choice((value[key], *VALUES))
    else:
      result.insert(key, generator.choice((value[key], *VALUES)))
    return result
  return generator.choice((*VALUES, [value], {"x": value}, str(value)[:100]))


def _damaged_lines(content: bytes, generator: random.Random) -> bytes:
  lines = content.split(b"\n")
  place = generator.randrange(len(lines))
  if lines[place].strip():
    lines[place] = damaged(lines[place], "json", generator)
  else:
    lines.insert(place, generator.choice((b"{", b"[]", b"null", b"{}", b"\xff")))
  return b"\n".join(lines)


def _damaged_header(content: bytes, generator: random.Random) -> bytes:
  """A safetensors file with another header of the right length."""
  size = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + size])
  metadata = header.get("__metadata__", {})
  inner = [key for key, text in metadata.items() if text.startswith("{")]
  if inner and generator.random() < 0.6:
    key = generator.choice(inner)
    metadata[key] = damaged_json(metadata[key].encode(), generator).decode()
    text = json.dumps(header).encode()
  else:
    text = damaged_json(json.dumps(header).encode(), generator)
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _damaged_bytes(content: bytes, generator: random.Random) -> bytes:
  """Bytes changed, cut, inserted, doubled, or another file altogether."""
  place = generator.randrange(len(content) + 1)
  choice = generator.random()
  if choice < 0.35 and content:
    result = bytearray(content)
    for _ in range(generator.randint(1, 6)):
      # Half of them at the start, where headers are.
      end = len(content) if generator.random() < 0.5 else min(len(content), 200)
      result[generator.randrange(end)] = generator.randrange(256)
    return bytes(result)
  if choice < 0.6:
    return content[:place]
  if choice < 0.8:
    return content[:place] + generator.choice(INSERTS) + content[place:]
  if choice < 0.9:
    return content[:place] + content[place + generator.randint(1, 50) :]
  return generator.choice(
    (b"", b"\x00" * 100, b"null", b"[]", b"{}", b"\xff\xfe{\x00}\x00", b"[" * NESTED, content * 2)
  )
