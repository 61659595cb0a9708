"""ImageReward against its network in torch, on Pillow's pixels and BERT's tokens."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

from dmpo_jax.evaluation.scorers import parse_scorer
from dmpo_jax.evaluation.scorers.preprocess import MEAN, STD
from tests.models import blips

WORDS = [
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  "a",
  "red",
  "fox",
  "blue",
  "house",
  ",",
  "##es",
]
PROMPTS = ["a red fox", "a Blue house, foxes", "fox", " ".join(["red"] * 50), "a red fox"]
IMAGES = [
  np.random.default_rng(i).integers(0, 256, (16 + i, 16, 3), np.uint8) for i in (0, 1, 4, 6, 9)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bert")
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  return folder


def test_scores_are_those_of_the_network_in_torch(folder, tmp_path):
  network = blips.make()
  torch.save(network.named_state(), tmp_path / "ImageReward.pt")
  scorer = parse_scorer(f"imagereward={tmp_path},tokenizer={folder},batch_size=4")
  tokenizer = BertTokenizer.from_pretrained(folder)
  batch = tokenizer(
    PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
  )
  assert batch["attention_mask"].sum(1).tolist() == [5, 8, 3, 35, 5]
  crops = []
  for image in IMAGES:
    top = round((image.shape[0] - 16) / 2)
    crops.append(np.asarray(Image.fromarray(image))[top : top + 16] / 255)
  pixels = (np.moveaxis(np.stack(crops), -1, 1) - np.reshape(MEAN, (3, 1, 1))) / np.reshape(
    STD, (3, 1, 1)
  )
  with torch.no_grad():
    head = network(torch.from_numpy(pixels).float(), batch["input_ids"], batch["attention_mask"])
  expected = (head.numpy() - 0.16717362830052426) / 1.0333394966054072
  actual = scorer.score(IMAGES, PROMPTS)
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
  assert scorer.embed(IMAGES) is None
