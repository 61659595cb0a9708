"""Captions to token ids with transformers' tokenizers, read from a folder or built from words.

Importing the tokenizer class takes about a second and does not import torch, even where torch is
installed.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dmpo_jax.common import files as common_files
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError, short
from dmpo_jax.interop import files, hub

if TYPE_CHECKING:
  from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# Class -> files of which one must exist.
CLASSES = {
  "CLIPTokenizer": ("tokenizer.json", "vocab.json"),
  "CLIPTokenizerFast": ("tokenizer.json", "vocab.json"),
  "BertTokenizer": ("tokenizer.json", "vocab.txt"),
  "BertTokenizerFast": ("tokenizer.json", "vocab.txt"),
  "T5Tokenizer": ("tokenizer.json",),
  "T5TokenizerFast": ("tokenizer.json",),
}

# Files that transformers may read beside the vocabulary.
JSON_FILES = (
  "tokenizer.json",
  "vocab.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
)

# transformers sets an astronomically large length where a tokenizer's files state none.
LONGEST_CONTEXT = 1 << 20


class Tokens(NamedTuple):
  """Token ids of captions, and the number of truncated captions.

  Attributes:
    ids: int32 `[N, L]`, L the tokenizer's context length; begin, words, end, padding.
    truncated: The number of captions that lost words at their end.
  """

  ids: np.ndarray
  truncated: int


def build_tokenizer(words: Iterable[str], max_length: int) -> CLIPTokenizer:
  """A CLIP tokenizer with one token for each of the words.

  The vocabulary has the layout of the published one, only shorter: 256 bytes, the same bytes at a
  word's end, merges, begin, end (also the padding and the highest id). So no text is unknown: a
  word that is not in `words` is split into shorter known pieces, in the end into its bytes. Case is
  folded. The result depends on the set of words, not on their order.

  Args:
    words: Words, or whole captions, whose words get a token each. As in CLIP, a run of letters, a
      single digit and a run of other signs are words of their own.
    max_length: The context length L with begin and end, >= 3.

  Returns:
    A tokenizer that `tokenize`, `save_pretrained` and torch programs can use.

  Raises:
    InputError: `words` is a single string or contains something that is not a word, or
      `max_length` is not a whole number >= 3.
  """
  from transformers import CLIPTokenizer

  if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 3:
    raise InputError(
      f"max_length is {max_length!r}; expected a whole number >= 3 (begin, word, end)"
    )
  if isinstance(words, str):
    raise InputError(f"words is the single string {words!r}; expected a list of words")
  alphabet = _byte_alphabet()
  letters = [*alphabet, *(sign + WORD_END for sign in alphabet)]
  plain = CLIPTokenizer(vocab=_numbered([*letters, BEGIN, END]), merges=[]).backend_tokenizer
  pieces = set()
  for word in words:
    if not isinstance(word, str) or not word.strip():
      raise InputError(f"{word!r} is not a word; expected strings that are not blank")
    text = plain.normalizer.normalize_str(word)
    pieces.update(piece for piece, _ in plain.pre_tokenizer.pre_tokenize_str(text))
  merges = _merges(sorted(pieces))
  merged = dict.fromkeys(a + b for a, b in merges)
  return CLIPTokenizer(
    vocab=_numbered([*letters, *merged, BEGIN, END]), merges=merges, model_max_length=max_length
  )


def tokenize(tokenizer: Any, captions: Sequence[str], *, length: int | None = None) -> Tokens:
  """Padded token ids of captions; captions longer than the context are truncated and counted.

  Args:
    tokenizer: A tokenizer of transformers.
    captions: N strings; the empty string is the null caption.
    length: Context length L; None: the tokenizer's `model_max_length`.

  Returns:
    `Tokens` with ids `[N, L]`.

  Raises:
    InputError: `captions` is a single string or contains something else than strings, or the
      tokenizer states no context length.
  """
  length = length or tokenizer.model_max_length
  if length > LONGEST_CONTEXT:
    raise InputError(
      "the tokenizer states no context length; set model_max_length in its tokenizer_config.json "
      "to the text encoder's max_position_embeddings"
    )
  if isinstance(captions, str):
    raise InputError(f"captions is the single string {captions!r}; expected a list of strings")
  captions = list(captions)
  for position, caption in enumerate(captions):
    if not isinstance(caption, str):
      raise InputError(f"caption {position} is {caption!r}; expected a string")
  if not captions:
    return Tokens(np.zeros((0, length), np.int32), 0)
  batch = tokenizer(captions, truncation=True, max_length=length, padding="max_length")
  truncated = sum(bool(encoding.overflowing) for encoding in batch.encodings)
  return Tokens(np.asarray(batch["input_ids"], np.int32), truncated)


def read_tokenizer(folder: paths.Path, class_name: str = "CLIPTokenizer") -> Any:
  """Reads the tokenizer in a folder: tokenizer.json or, of CLIP, vocab.json and merges.txt.

  Args:
    folder: The folder.
    class_name: Class of the tokenizer in transformers, one of `CLASSES`.

  Returns:
    The tokenizer.

  Raises:
    InputError: The class is not supported, or the folder has no tokenizer or a damaged one.
  """
  import transformers

  if class_name not in CLASSES:
    raise InputError(f"{folder.name} is a {class_name}; expected one of {', '.join(CLASSES)}")
  names = CLASSES[class_name]
  existing = [file for name in names if (file := folder / name).is_file()]
  if not existing:
    raise InputError(f"{folder} holds no tokenizer: expected {' or '.join(names)}")
  for name in JSON_FILES:
    if (folder / name).is_file():
      files.read_json(folder / name)
  kind = getattr(transformers, class_name)
  # tokenizer_config.json may name files anywhere, which these arguments replace.
  own = {
    argument: str(folder / name) if (folder / name).is_file() else None
    for argument, name in kind.vocab_files_names.items()
  }
  advice = "take the files of the published pipeline"
  with common_files.reading(folder, "tokenizer", advice=advice):
    tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **own)
    _check(tokenizer)
  return tokenizer


def load_tokenizer(
  source: str | os.PathLike, class_name: str = "CLIPTokenizer", *, revision: str | None = None
) -> Any:
  """Reads the tokenizer of a folder or of a repository on the hub.

  Args:
    source: A folder with tokenizer.json, or of CLIP vocab.json, or of BERT vocab.txt; or the
      "owner/name" of a repository that has one of them at its top.
    class_name: Class of the tokenizer in transformers, one of `CLASSES`.
    revision: Branch, tag or commit of the repository.

  Returns:
    The tokenizer.

  Raises:
    InputError: The source cannot be had, or holds no such tokenizer.
  """
  beside = ("merges.txt", *JSON_FILES, *CLASSES.get(class_name, ()))
  folder = hub.locate(
    source,
    "tokenizer_config.json",
    lambda folder, names: [name for name in dict.fromkeys(beside) if name in names],
    revision=revision,
  )
  return read_tokenizer(folder, class_name)


def _check(tokenizer: Any) -> None:
  """Raises an error unless a tokenizer can be used: files state its length and special tokens."""
  length = tokenizer.model_max_length
  if isinstance(length, bool) or not isinstance(length, int) or length < 3:
    raise ValueError(f"model_max_length is {short(length)}, expected a whole number >= 3")
  ids = copy.deepcopy(tokenizer)(["a", ""], truncation=True, max_length=8, padding="max_length")
  rows = np.asarray(ids["input_ids"])
  if rows.shape != (2, 8) or rows.dtype.kind != "i" or rows.min() < 0:
    raise ValueError("it gives no rows of token ids")


def write_tokenizer(folder: paths.Path, tokenizer: Any) -> None:
  """Writes a tokenizer in the current form and, of CLIP, in that of transformers before 5."""
  # A call sets padding and truncation of the tokenizer, which would be saved.
  tokenizer = copy.deepcopy(tokenizer)
  tokenizer.backend_tokenizer.no_padding()
  tokenizer.backend_tokenizer.no_truncation()
  tokenizer.save_pretrained(folder)
  if type(tokenizer).__name__.startswith("CLIP"):
    tokenizer.backend_tokenizer.model.save(str(folder))


def _byte_alphabet() -> list[str]:
  from tokenizers.pre_tokenizers import ByteLevel

  return sorted(ByteLevel.alphabet())


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
  return {token: i for i, token in enumerate(tokens)}


def _merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
  """Merges, in order of precedence, by which byte-pair encoding joins each piece to one token.

  A merge added for one word also acts inside the next ("on" of "one" in "none"), so each word is
  encoded with the merges so far and only the remaining signs are joined. Later merges have lower
  precedence, so earlier words stay one token.
  """
  ranks: dict[tuple[str, str], int] = {}
  for piece in pieces:
    signs = [*piece[:-1], piece[-1] + WORD_END]
    while len(signs := _encode(signs, ranks)) > 1:
      ranks[signs[0], signs[1]] = len(ranks)
  return list(ranks)


def _encode(signs: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
  """Byte-pair encoding: the leftmost pair of the lowest rank is joined until no pair has a rank."""
  while True:
    pairs = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(signs)) if pair in ranks]
    if not pairs:
      return signs
    _, i = min(pairs)
    signs = [*signs[:i], signs[i] + signs[i + 1], *signs[i + 2 :]]
