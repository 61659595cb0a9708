"""Counting the tokens of captions."""

import json
import shutil

import pytest
from hypothesis import example, given, settings
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
@example("A\U00013460")  # assigned in Unicode 15, which Python 3.11 does not know
def test_no_text_has_fewer_tokens_than_its_count(words, text):
  assert captions.least_tokens(text) <= 2 + len(words(text))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(InputError, match="holds no CLIP tokenizer"):
    captions.tokens("a", str(tmp_path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """The folder of a tokenizer of whole words."""
  folder = tmp_path_factory.mktemp("tokenizer")
  vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
  CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
  return folder


def test_a_tokenizer_counts_the_tokens_of_a_caption(saved):
  assert captions.tokens("a a", str(saved)) == 4


def test_a_class_that_the_folder_brings_along_is_neither_run_nor_offered(
  saved, tmp_path, monkeypatch
):
  folder = shutil.copytree(saved, tmp_path / "evil")
  config = json.loads((folder / "tokenizer_config.json").read_text())
  config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tok.Evil", None]}}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  (folder / "tok.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
  monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
  monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
  assert captions.tokens("a", str(folder)) == 3
  assert not (tmp_path / "ran").exists()


def test_the_config_of_a_tokenizer_names_no_file_elsewhere(saved, tmp_path):
  other = tmp_path / "other"
  CLIPTokenizer(
    vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b</w>": 3, "ab</w>": 4},
    merges=[("a", "b</w>")],
  ).save_pretrained(other)
  folder = shutil.copytree(saved, tmp_path / "evil")
  config = json.loads((folder / "tokenizer_config.json").read_text())
  config["tokenizer_file"] = str(other / "tokenizer.json")
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  assert captions.tokenizer(str(folder)).get_vocab().keys() >= {"a</w>"}


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("tokenizer.json", b"{"),
    ("tokenizer.json", b"{}"),
    ("tokenizer.json", b"\xff"),
    ("tokenizer.json", b"[" * 3000 + b"]" * 3000),
    ("tokenizer_config.json", b"[]"),
    ("tokenizer_config.json", b'{"pad_token": [1], "added_tokens_decoder": 3}'),
  ],
)
def test_a_damaged_tokenizer_is_one_message_that_names_it(saved, tmp_path, name, content):
  folder = shutil.copytree(saved, tmp_path / "other")
  (folder / name).write_bytes(content)
  with pytest.raises(
    InputError, match=r"/other.* (damaged|no valid JSON|expected|nested|no UTF-8)"
  ) as error:
    captions.tokens("a", str(folder))
  assert "\n" not in str(error.value)
