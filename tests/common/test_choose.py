"""Config sections that choose a function: what is returned, and what is refused."""

from collections.abc import Callable, Sequence

import pytest

from dmpo_jax.common.choose import select
from dmpo_jax.errors import InputError


def circle(image, *, radius, color="red"):
  """Positional parameters are the caller's and no keys of a section."""


def blank(image):
  """A function without keyword arguments."""


SHAPES = {"circle": circle, "blank": blank}


def test_a_section_gives_its_function_and_the_keyword_arguments():
  assert select("shape", {"name": "circle", "radius": 2}, SHAPES) == (circle, {"radius": 2})
  assert select("shape", {"name": "blank"}, SHAPES) == (blank, {})


def test_the_section_stays_as_it_is():
  section = {"name": "circle", "radius": 2}
  select("shape", section, SHAPES)
  assert section == {"name": "circle", "radius": 2}


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({}, r"unknown shape None .*known: blank, circle"),
    ({"name": "cirle"}, "unknown shape 'cirle'; did you mean 'circle'"),
    ({"name": "circle"}, "shape 'circle' needs the key 'radius'; it has no default"),
    ({"name": "circle", "raduis": 2}, "key of shape 'circle': 'raduis'; did you mean 'radius'"),
    ({"name": "blank", "image": 2}, "unknown key of shape 'blank': 'image'"),
  ],
)
def test_a_section_that_cannot_be_used_is_refused(section, message):
  with pytest.raises(InputError, match=message):
    select("shape", section, SHAPES)


def _typed(
  *,
  count: int = 1,
  rate: float = 1.0,
  limit: float | None = None,
  flag: bool = False,
  name: str = "",
  sizes: Sequence[int] = (),
  base: Callable = print,
):
  pass


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("count", 3),
    ("rate", 3),
    ("limit", None),
    ("limit", 0.5),
    ("flag", True),
    ("sizes", (1, 2)),
    ("sizes", [1, 2]),
    ("base", {"name": "dpo"}),
  ],
)
def test_a_value_of_the_parameters_type_is_passed_on(key, value):
  assert select("thing", {"name": "typed", key: value}, {"typed": _typed})[1] == {key: value}


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("count", 3.0, "an integer, got 3.0"),
    ("count", True, "an integer, got True"),
    ("rate", "fast", "a number, got 'fast'"),
    ("rate", None, "a number, got None"),
    ("limit", "none", "a number or None, got 'none'"),
    ("flag", "no", "True or False, got 'no'"),
    ("flag", 0, "True or False, got 0"),
    ("sizes", 3, "a tuple, each of its elements an integer, got 3"),
    ("sizes", (1, 2.5), "a tuple, each of its elements an integer"),
  ],
)
def test_a_value_of_another_type_is_refused_by_name(key, value, expected):
  with pytest.raises(InputError, match=f"^thing 'typed': {key} must be {expected}"):
    select("thing", {"name": "typed", key: value}, {"typed": _typed})
