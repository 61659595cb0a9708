"""Patterns of layers in peft's configs, matched without a regular expression of a stranger's file.

peft reads the keys of rank_pattern and alpha_pattern as regular expressions that match the end of
a layer's name from a dot on. Its files hold names and few wildcards; these are read, in time linear
in the name, and everything else is refused.
"""

from collections.abc import Iterable
from typing import NamedTuple

from dmpo_jax.errors import InputError, short

# Longest pattern, and most patterns that are no plain name, of a file.
MAX_LENGTH, MAX_WILDCARDS = 500, 64

_CLASSES = {"\\d": str.isdigit, "\\w": lambda c: c.isalnum() or c == "_"}


class _Token(NamedTuple):
  """One character of a name: a literal, "" for any, or a class; and how often it occurs."""

  symbol: str
  optional: bool
  repeated: bool

  def accepts(self, character: str) -> bool:
    if self.symbol in _CLASSES:
      return _CLASSES[self.symbol](character)
    return self.symbol in ("", character)


class Patterns:
  """The patterns of a file, in its order.

  Args:
    patterns: Names of layers or of their ends, with `.` and `\\d`, `\\w`, `*`, `+`, `?` as in
      regular expressions, `^` at the start, `$` at the end.

  Raises:
    InputError: A pattern is too long or is another regular expression, or there are too many.
  """

  def __init__(self, patterns: Iterable[str]):
    self._plain: dict[str, list[int]] = {}
    self._others: list[tuple[int, str, bool, list[_Token]]] = []
    self._names = list(patterns)
    for place, pattern in enumerate(self._names):
      if len(pattern) > MAX_LENGTH:
        raise InputError(f"the pattern {short(pattern)} has more than {MAX_LENGTH} characters")
      if pattern.replace(".", "").replace("_", "").isalnum():
        self._plain.setdefault(pattern.replace(".", "_"), []).append(place)
      else:
        self._others.append((place, pattern, pattern.startswith("^"), _parse(pattern)))
    if len(self._others) > MAX_WILDCARDS:
      raise InputError(
        f"{len(self._others)} patterns with wildcards; at most {MAX_WILDCARDS} are read, write the "
        "names of the layers"
      )

  def first(self, names: Iterable[str]) -> str | None:
    """The first pattern that matches one of a layer's names to its end, or None."""
    found = []
    for name in names:
      starts = [0, *(i + 1 for i, character in enumerate(name) if character == ".")]
      for end in (name[i:] for i in starts):
        places = self._plain.get(end.replace(".", "_"), ())
        found += [i for i in places if _names(self._names[i], end)]
      for place, _, anchored, tokens in self._others:
        if (not found or place < min(found)) and _matches(
          tokens, name, starts[:1] if anchored else starts
        ):
          found.append(place)
          break
    return self._names[min(found)] if found else None


def _names(pattern: str, name: str) -> bool:
  """Whether a plain pattern is a name, where a dot also stands for an underscore."""
  return all(p in (c, ".") for p, c in zip(pattern, name, strict=True))


def _parse(pattern: str) -> list[_Token]:
  """The tokens of a pattern."""
  text = pattern.removeprefix("^").removesuffix("$")
  tokens, i = [], 0
  while i < len(text):
    symbol, i = text[i], i + 1
    if symbol == "\\":
      symbol, i = text[i - 1 : i + 1], i + 1
      if symbol == "\\.":
        symbol = "."
      elif symbol not in _CLASSES:
        raise _unread(pattern)
    elif symbol == ".":
      symbol = ""
    elif not symbol.isalnum() and symbol not in "_-":
      raise _unread(pattern)
    often = text[i] if i < len(text) and text[i] in "*+?" else "1"
    i += often != "1"
    tokens.append(_Token(symbol, often in ("*", "?"), often in ("*", "+")))
  if not tokens:
    raise _unread(pattern)
  return tokens


def _unread(pattern: str) -> InputError:
  return InputError(
    f"the pattern {short(pattern)} is a regular expression; read are names of layers with ., \\., "
    "\\d, \\w, *, + and ?"
  )


def _matches(tokens: list[_Token], name: str, starts: list[int]) -> bool:
  """Whether the tokens match a name from one of some places to its end."""

  def closed(states: set[int]) -> set[int]:
    """The states and those behind optional tokens."""
    reached = set()
    for state in states:
      reached.add(state)
      while state < len(tokens) and tokens[state].optional:
        state += 1
        reached.add(state)
    return reached

  states: set[int] = set()
  for i, character in enumerate(name):
    if i in starts:
      states.add(0)
    following = set()
    for state in closed(states):
      if state < len(tokens) and tokens[state].accepts(character):
        following.add(state + 1)
        if tokens[state].repeated:
          following.add(state)
    states = following
  return len(tokens) in closed(states)
