"""Damaged files and hostile JSON values, for tests that read them."""

import copy
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("DMPO_JAX_FUZZ_CASES", "40"))
FUZZ = settings(
  max_examples=CASES,
  deadline=None,
  suppress_health_check=list(HealthCheck),
  derandomize=CASES == 40,
)
# What a stranger's JSON may hold in place of any value.
HOSTILE = st.sampled_from(
  [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 1.5, -0.0, 1e300, float("nan")),
    *("", "x", "..", "../../etc/passwd", "/etc/passwd", "\0", "\x1b]0;owned\x07", "x" * 5000, "1"),
    *([], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["a", "b"], "\ud800", "float64", "O", "int32"),
    [[[[[[[[]]]]]]]],
  ]
).map(copy.deepcopy)


@st.composite
def damaged(draw, data: bytes) -> bytes:
  """Bytes with a few of them changed, inserted or left out, or cut short."""
  data = bytearray(data)
  for place in draw(st.lists(st.integers(0, len(data)), min_size=1, max_size=6)):
    how, byte = draw(st.sampled_from("cid")), draw(st.integers(0, 255))
    data[place : place + (how != "i")] = bytes([byte]) * (how != "d")
  return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


@st.composite
def mutated(draw, value):
  """A JSON value with one to three of the values in it replaced, left out, repeated or renamed."""
  value = copy.deepcopy(value)
  for _ in range(draw(st.integers(1, 3))):
    parent, key = _choose(draw, value)
    if parent is None:
      return draw(HOSTILE)
    how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
    if how == "replace":
      parent[key] = draw(HOSTILE)
    elif how == "remove":
      del parent[key]
    elif isinstance(parent, list):
      parent.append(draw(HOSTILE))
    else:
      name = draw(st.sampled_from(["x", "../x", "\x1b[2J", "pairs-train.array_record-9", ""]))
      parent[name] = parent.pop(key) if how == "rename" else draw(HOSTILE)
  return value


def _choose(draw, value):
  """A container in a value and one of its keys; None where it is empty."""
  parent, key = None, None
  while isinstance(value, dict | list) and value:
    parent = value
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    value = value[key]
    if draw(st.booleans()) and not isinstance(value, dict | list):
      break
    if draw(st.integers(0, 3)) == 0:
      break
  return parent, key
