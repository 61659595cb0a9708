"""Data sets in memory and their fingerprints."""

import dataclasses

import numpy as np
import pytest

from dmpo_jax.data import Examples
from dmpo_jax.errors import InputError


def examples(**changes):
  images = np.linspace(-1, 1, 3 * 2 * 4, dtype=np.float32).reshape(3, 2, 2, 2, 1)
  fields = {"images": images, "captions": ["a", "b", "c"], "ids": np.arange(3, dtype=np.uint32)}
  return Examples(**(fields | changes))


def changed_pixel():
  images = examples().images.copy()
  images[1, 0, 0, 0, 0] += 1e-6
  return {"images": images}


def test_equal_content_has_an_equal_fingerprint():
  assert examples().fingerprint() == examples(images=examples().images.copy()).fingerprint()


def test_the_fingerprint_is_the_same_on_every_machine():
  fingerprint = examples(images=np.zeros((3, 1, 1, 1, 1), np.float32)).fingerprint()
  assert fingerprint == "9ad63193de0eeb5312577c921eddf20a31ffb9de63fc566677b0f79f9c21dfaf"


def test_the_fingerprint_does_not_depend_on_memory_layout():
  transposed = np.asfortranarray(examples().images)
  assert examples(images=transposed).fingerprint() == examples().fingerprint()


@pytest.mark.parametrize(
  "change",
  [
    changed_pixel(),
    {"images": examples().images.reshape(3, 2, 4, 1, 1)},
    {"captions": ["a", "b", "d"]},
    {"captions": ["ab", "", "c"]},
    {"ids": np.array([0, 1, 3], np.uint32)},
  ],
  ids=["pixel", "shape", "caption", "caption border", "id"],
)
def test_any_change_of_content_changes_the_fingerprint(change):
  assert examples(**change).fingerprint() != examples().fingerprint()


def test_the_length_is_the_number_of_examples():
  assert len(examples()) == 3


def test_examples_cannot_be_reassigned():
  with pytest.raises(dataclasses.FrozenInstanceError):
    examples().ids = np.zeros(3, np.uint32)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"images": examples().images[:2]}, r"\[3, 1 or 2, H, W, C\] for 3 captions"),
    ({"images": np.zeros((3, 3, 2, 2, 1), np.float32)}, r"got shape \(3, 3, 2, 2, 1\)"),
    ({"images": np.zeros((3, 2, 2, 2, 1))}, "must be float32 in .* got float64"),
    ({"images": np.full((3, 2, 2, 2, 1), np.nan, np.float32)}, "first at row 0 .'a'"),
    ({"ids": np.arange(3)}, r"ids must be uint32 \[3\], got int64"),
    ({"ids": np.array([0, 1, 1], np.uint32)}, "id 1 occurs more than once"),
    ({"captions": ["a", 7, "c"]}, "captions must be strings, got 7"),
  ],
)
def test_invalid_examples_are_refused(change, message):
  with pytest.raises(InputError, match=message):
    examples(**change)


ROWS = np.array([0, 0.5, 1], np.float32)


@pytest.mark.parametrize("name", ["labels", "weights"])
def test_labels_and_weights_belong_to_the_fingerprint(name):
  other = ROWS[::-1].copy()
  prints = {examples(**change).fingerprint() for change in ({}, {name: ROWS}, {name: other})}
  assert len(prints) == 3


def test_equal_labels_and_weights_have_different_fingerprints():
  assert examples(labels=ROWS).fingerprint() != examples(weights=ROWS).fingerprint()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"labels": ROWS * 2}, r"labels must be in \[0, 1\], got 2.0 at row 2"),
    ({"labels": ROWS[:2]}, r"labels must be float32 \[3\]"),
    ({"labels": ROWS.astype(np.float64)}, r"labels must be float32 \[3\], got float64"),
    ({"weights": -ROWS}, r"weights must be finite and at least 0, got -0\.5 at row 1"),
    ({"weights": np.full(3, np.inf, np.float32)}, r"finite.*row 0"),
    ({"weights": np.full(3, np.nan, np.float32)}, r"finite.*row 0"),
  ],
)
def test_invalid_labels_and_weights_are_named(change, message):
  with pytest.raises(InputError, match=message):
    examples(**change)


def test_single_images_with_labels_are_refused():
  with pytest.raises(InputError, match="single images"):
    examples(images=np.zeros((3, 1, 2, 2, 1), np.float32), labels=ROWS)


def test_captions_are_tokenized_once_and_stay_with_their_rows():
  calls = []

  def tokenize(captions):
    calls.append(captions)
    return {"ids": np.array([[len(c)] for c in captions], np.int32)}, 1

  data = examples(captions=["a", "bb", "ccc"], weights=ROWS)
  loader = data.loader(tokenize, channels=data.images.shape[-1], batch_size=3, seed=0)
  batch = [loader[step] for step in range(3)][-1]
  assert (len(calls), loader.truncated) == (1, 1)
  rows = [data.ids.tolist().index(i) for i in batch["example_id"]]
  np.testing.assert_array_equal(batch["text"]["ids"][:, 0], np.array(rows) + 1)
  np.testing.assert_array_equal(batch["weight"], data.weights[rows])


def test_images_of_other_channels_than_the_pipeline_are_refused():
  data = examples()
  with pytest.raises(InputError, match="takes images of 7 channels"):
    data.loader(lambda captions: ({}, 0), channels=7, batch_size=1, seed=0)
