"""Scores of edits against transformers' CLIP and numpy."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers import Edits, load_scorer
from tests.evaluation.scorers import clips

RNG = np.random.default_rng(5)
IMAGES, SOURCES = (
  [RNG.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(3)] for _ in range(2)
)
BEFORE, AFTER = ["a red fox", "a house", "fox"], ["a blue fox", "a blue house", "a red fox"]
PROMPTS = ["blue", "blue", "red"]
EDITS = Edits(SOURCES, list(zip(BEFORE, AFTER, strict=True)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def expected(folder):
  """transformers' features of edits, sources and captions."""
  model = clips.make(folder)
  settings = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
  processor = CLIPImageProcessorPil(**settings)

  def of(images, prompts):
    pixels = processor([Image.fromarray(x) for x in images], return_tensors="np")["pixel_values"]
    return [torch.from_numpy(x) for x in clips.features(*model, pixels, prompts)]

  return [*of(IMAGES, AFTER), *of(SOURCES, BEFORE)]


def test_direction_similarity_is_torchs_cosine_of_the_differences(folder, expected):
  image, after, source, before = expected
  scorer = load_scorer("clip_direction", str(folder), batch_size=4)
  cosine = torch.nn.functional.cosine_similarity(image - source, after - before)
  actual = scorer.score(IMAGES, PROMPTS, edits=EDITS)
  np.testing.assert_allclose(actual, cosine, atol=1e-4)
  same = scorer.score(SOURCES, PROMPTS, edits=EDITS)
  np.testing.assert_array_equal(same, 0)


def test_similarity_to_the_source_is_the_cosine_of_the_image_features(folder, expected):
  image, _, source, _ = expected
  scorer = load_scorer("clip_source", str(folder), batch_size=4)
  actual = scorer.score(IMAGES, PROMPTS, edits=EDITS)
  np.testing.assert_allclose(actual, (image * source).sum(-1), atol=1e-5)


def test_similarity_in_pixels_is_one_less_the_mean_difference():
  scorer = load_scorer("source_similarity")
  expected = [1 - np.mean(np.abs(a / 255 - b / 255)) for a, b in zip(IMAGES, SOURCES, strict=True)]
  np.testing.assert_allclose(scorer.score(IMAGES, PROMPTS, edits=EDITS), expected, rtol=1e-6)


def test_scores_of_edits_without_sources_or_captions_are_refused(folder, expected):
  with pytest.raises(InputError, match="these images have no source images; give --source"):
    load_scorer("source_similarity").score(IMAGES, PROMPTS)
  scorer = load_scorer("clip_direction", str(folder), batch_size=4)
  with pytest.raises(InputError, match="columns source_caption and target_caption"):
    scorer.score(IMAGES, PROMPTS, edits=Edits(SOURCES))
