"""Patterns of peft's configs match as peft's regular expressions do, and never hang."""

import random
import re

import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.interop.lora_patterns import Patterns

NAMES = ["down_blocks.0.attentions.1.attn1.to_q", "conv_in", "mid_block.to_out.0", "a.b.c", "to_q"]
PARTS = [
  "to_q",
  "attn1",
  "down_blocks",
  ".",
  r"\.",
  "0",
  r"\d",
  ".*",
  ".+",
  "a",
  "b",
  "c",
  "conv_in",
]
PARTS += [".?", "_", r"\w+", "1*", "0?", "to.q", "out", "conv-in"]


def test_the_first_pattern_that_matches_is_peft_s():
  generator = random.Random(0)
  for _ in range(3000):
    patterns = [
      ("^" if generator.random() < 0.1 else "")
      + "".join(generator.choice(PARTS) for _ in range(generator.randint(1, 5)))
      + ("$" if generator.random() < 0.1 else "")
      for _ in range(generator.randint(1, 3))
    ]
    table = Patterns(patterns)
    for name in NAMES:
      matches = (p for p in patterns if re.match(rf"(.*\.)?({p})$", name))
      assert table.first([name]) == next(matches, None), (patterns, name)


def test_a_pattern_that_would_take_exponential_time_ends_at_once():
  assert Patterns(["a*" * 100 + "b"]).first(["a" * 150]) is None


@pytest.mark.parametrize(
  "pattern", ["", "^", "^$", "(a)", "a|b", "[ab]", "a{2}", "*", "a**", "\\", r"\s"]
)
def test_other_expressions_are_refused_by_name(pattern):
  with pytest.raises(InputError, match="is a regular expression"):
    Patterns([pattern])


def test_many_patterns_with_wildcards_are_refused():
  with pytest.raises(InputError, match="at most 64"):
    Patterns([f"a.*{i}" for i in range(100)])


def test_thousands_of_plain_names_are_read():
  names = [f"down_blocks.{i}.to_q" for i in range(5000)]
  assert Patterns(names).first(["unet.down_blocks.4999.to_q"]) == names[-1]
