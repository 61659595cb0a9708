"""Captions to ids: a CLIP tokenizer built from words, and tokenizers of T5."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from dmpo_jax.interop.tokenizer import read_tokenizer, write_tokenizer

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def tokenizer():
  return interop.build_tokenizer(["the", "digit", *DIGITS], 8)


def inner(tokenizer, text):
  """Ids between begin and end."""
  ids = interop.tokenize(tokenizer, [text]).ids[0].tolist()
  return ids[1 : ids.index(tokenizer.eos_token_id)]


def test_each_word_of_the_vocabulary_is_one_token(tokenizer):
  lengths = {word: len(inner(tokenizer, word)) for word in ["the", "digit", *DIGITS]}
  assert set(lengths.values()) == {1}


def test_different_words_have_different_tokens(tokenizer):
  assert len({inner(tokenizer, word)[0] for word in DIGITS}) == 10


def test_words_inside_words_are_whole_too():
  words = ["".join(w) for n in (1, 2, 3, 4) for w in itertools.product("ab", repeat=n)]
  tokenizer = interop.build_tokenizer(words, 8)
  assert [word for word in words if len(inner(tokenizer, word)) != 1] == []


def test_a_caption_is_begin_words_end_and_padding(tokenizer):
  tokens = interop.tokenize(tokenizer, ["the digit seven"])
  words = [tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("the", "digit", "seven")]
  end = tokenizer.eos_token_id
  assert tokens.ids.tolist() == [[tokenizer.bos_token_id, *words, end, end, end, end]]


def test_ids_are_int32(tokenizer):
  assert interop.tokenize(tokenizer, ["the"]).ids.dtype == np.int32


def test_the_end_has_the_highest_id_as_in_the_published_vocabulary(tokenizer):
  assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_case_does_not_matter(tokenizer):
  assert inner(tokenizer, "The DIGIT Seven") == inner(tokenizer, "the digit seven")


def test_words_given_in_capitals_are_found_in_lower_case():
  assert len(inner(interop.build_tokenizer(["Straße"], 4), "straße")) == 1


def test_captions_can_stand_for_their_words():
  tokenizer = interop.build_tokenizer(["the digit seven", "the digit one"], 8)
  assert len(inner(tokenizer, "seven digit one")) == 3


def test_a_word_that_is_not_in_the_vocabulary_falls_into_bytes(tokenizer):
  assert tokenizer.convert_ids_to_tokens(inner(tokenizer, "cab")) == ["c", "a", "b</w>"]


def test_no_text_is_unknown(tokenizer):
  text = "ж🙂"
  assert tokenizer.decode(inner(tokenizer, text)).replace(" ", "") == text


def test_the_order_of_the_words_does_not_matter(tokenizer):
  other = interop.build_tokenizer([*reversed(DIGITS), "digit", "the", "the"], 8)
  assert other.get_vocab() == tokenizer.get_vocab()


def test_a_caption_that_just_fits_is_not_counted_as_truncated(tokenizer):
  assert interop.tokenize(tokenizer, ["one " * 6]).truncated == 0


def test_captions_longer_than_the_context_are_counted(tokenizer):
  tokens = interop.tokenize(tokenizer, ["one " * 7, "one", "one " * 70])
  assert tokens.truncated == 2


def test_a_truncated_caption_keeps_its_end(tokenizer):
  assert interop.tokenize(tokenizer, ["one " * 7]).ids[0, -1] == tokenizer.eos_token_id


def test_the_null_caption_has_no_words(tokenizer):
  assert inner(tokenizer, "") == []


def test_no_captions_give_no_rows(tokenizer):
  assert interop.tokenize(tokenizer, []).ids.shape == (0, 8)


def test_transformers_loads_the_saved_tokenizer(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path)
  loaded = CLIPTokenizer.from_pretrained(tmp_path)
  text = "The digit seven, unheard of"
  assert loaded.model_max_length == 8
  assert loaded(text).input_ids == tokenizer(text).input_ids


def test_tokenizing_imports_no_torch(tmp_path):
  program = (
    "import sys; from dmpo_jax import interop; from transformers import CLIPTokenizer\n"
    "interop.build_tokenizer(['one'], 4).save_pretrained(sys.argv[1])\n"
    "interop.tokenize(CLIPTokenizer.from_pretrained(sys.argv[1]), ['one'])\n"
    "print('torch' in sys.modules, 'diffusers' in sys.modules)"
  )
  command = [sys.executable, "-c", program, str(tmp_path)]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
  assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("length", [2, True, 8.0, None])
def test_a_context_too_short_for_a_word_is_refused(length):
  with pytest.raises(InputError, match="max_length is"):
    interop.build_tokenizer(["one"], length)


def test_a_single_string_of_words_is_refused():
  with pytest.raises(InputError, match="single string 'one'"):
    interop.build_tokenizer("one", 8)


@pytest.mark.parametrize("word", ["", "  ", 7])
def test_what_is_not_a_word_is_refused(word):
  with pytest.raises(InputError, match="is not a word"):
    interop.build_tokenizer(["one", word], 8)


def test_a_single_string_of_captions_is_refused(tokenizer):
  with pytest.raises(InputError, match="single string 'one'"):
    interop.tokenize(tokenizer, "one")


def test_a_caption_that_is_no_string_is_named(tokenizer):
  with pytest.raises(InputError, match="caption 1 is None"):
    interop.tokenize(tokenizer, ["one", None])


def test_a_tokenizer_that_states_no_length_is_refused(tokenizer):
  endless = CLIPTokenizer(vocab=tokenizer.get_vocab(), merges=[])
  with pytest.raises(InputError, match="model_max_length"):
    interop.tokenize(endless, ["one"])


@pytest.fixture(scope="module")
def t5_tokenizer():
  pieces = ["<pad>", "</s>", "<unk>", "▁a", "▁b", "a", "b", "▁"]
  return T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])


def test_a_tokenizer_of_t5_is_written_and_read(t5_tokenizer, tmp_path):
  folder = tmp_path / "tokenizer_3"
  write_tokenizer(folder, t5_tokenizer)
  captions = ["a b", "", "b b b"]
  actual = interop.tokenize(read_tokenizer(folder, "T5TokenizerFast"), captions, length=4)
  np.testing.assert_array_equal(actual.ids, interop.tokenize(t5_tokenizer, captions, length=4).ids)
  assert actual.ids.tolist()[:2] == [[3, 4, 1, 0], [1, 0, 0, 0]]


def test_captions_are_truncated_to_the_length(t5_tokenizer):
  tokens = interop.tokenize(t5_tokenizer, ["a a a a a", "a"], length=3)
  assert tokens.ids.tolist() == [[3, 3, 1], [3, 1, 0]]
  assert tokens.truncated == 1
