"""Config sections that choose a function: what is returned, and what is refused."""

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
