"""The parts of benchmarks/emoji.py that dmpo-jax evaluate does not have."""

import numpy as np

from benchmarks import emoji
from dmpo_jax.data import prompt_sets
from dmpo_jax.data.in_memory import Examples


def examples(captions):
  images = np.zeros((len(captions), 1, 2, 2, 3), np.float32)
  return Examples(images=images, captions=captions, ids=np.arange(len(captions), dtype=np.uint32))


def test_the_prompt_set_has_the_kinds_of_captions_as_categories(tmp_path):
  parts = {"train": examples(["a fox", 'an "owl", red']), "test": examples(["a cat"])}
  file = tmp_path / "prompts.csv"
  file.write_text(emoji.prompt_set(parts, {"train": [1], "test": [0]}))
  prompts = prompt_sets.read(file)
  assert prompts.prompts == ['an "owl", red', "a cat"]
  assert prompts.categories == ["training captions", "held-out captions"]


def test_a_sample_is_right_if_its_nearest_drawing_is_that_of_its_caption():
  drawings = np.stack([np.full((2, 2, 3), level) for level in (-1.0, 0.0, 1.0)])
  samples = np.stack([np.full((2, 2, 3), level) for level in (0.9, 0.1)])
  captions = np.array(["night", "dusk", "day"])
  right = emoji.right_drawing(samples, np.array(["day", "day"]), drawings, captions)
  assert right.tolist() == [True, False]
