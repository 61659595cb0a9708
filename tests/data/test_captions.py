"""Counting the tokens of captions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from dmpo_jax.data import captions
from dmpo_jax.errors import InputError


@pytest.fixture(scope="module")
def words():
  """transformers' own division of a text into words, before byte-pair encoding."""
  vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
  backend = CLIPTokenizer(vocab=vocab, merges=[]).backend_tokenizer
  return lambda text: backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))


@pytest.mark.parametrize(
  "text", ["a red fox, it's 1999!!", "snake_case", "", "don't  stop", "日本 3d"]
)
def test_words_are_those_of_transformers(words, text):
  assert captions.least_tokens(text) == 2 + len(words(text))


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_no_text_has_fewer_tokens_than_its_count(words, text):
  assert captions.least_tokens(text) <= 2 + len(words(text))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(InputError, match="cannot load a tokenizer"):
    captions.tokens("a", str(tmp_path))
