"""PickScore, HPS, CLIP and aesthetic scores against transformers' model on Pillow's pixels."""

import itertools
import json
import logging
import os
import pathlib

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers import load_scorer, parse_scorer
from dmpo_jax.evaluation.scorers.aesthetic import read_head
from dmpo_jax.evaluation.scorers.preprocess import Preprocessing
from dmpo_jax.interop import open_clip
from dmpo_jax.interop.tokenizer import write_tokenizer
from tests.evaluation.scorers import clips
from tests.interop.test_clip import to_open_clip

PROMPTS = ["a red fox", "a blue house", "a red fox", "fox", "a photo"]
IMAGES = [
  np.random.default_rng(i).integers(0, 256, (16 + 5 * i, 29 - i, 3), np.uint8) for i in range(5)
]
# LAION's published heads, beside the repository; they are not part of it.
SHARED = pathlib.Path(__file__).parents[4] / "shared"
REAL = pathlib.Path(os.environ.get("DMPO_JAX_SHARED", SHARED)) / "data" / "aesthetic"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def model(folder):
  return clips.make(folder)


@pytest.fixture(scope="module")
def pickscore(model, folder):
  return load_scorer("pickscore", str(folder), batch_size=4)


def processed():
  """The images as transformers prepares them, float32 `[N, 3, 16, 16]`."""
  settings = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
  processor = CLIPImageProcessorPil(**settings)
  return processor([Image.fromarray(i) for i in IMAGES], return_tensors="np")["pixel_values"]


@pytest.fixture(scope="module")
def expected(model):
  """Features of the images and the prompts."""
  return clips.features(*model, processed(), PROMPTS)


def test_pickscore_is_the_scaled_cosine_of_transformers(pickscore, model, expected):
  image, text = expected
  scale = model[0].logit_scale.exp().item()
  actual = pickscore.score(IMAGES, PROMPTS)
  np.testing.assert_allclose(actual, scale * (image * text).sum(-1), rtol=1e-5, atol=1e-5)


def test_features_are_those_of_transformers(pickscore, expected):
  actual = pickscore.embed(IMAGES)
  np.testing.assert_allclose(actual, expected[0], atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(actual, axis=-1), 1, atol=1e-6)


def test_a_score_depends_on_neither_the_batch_nor_the_devices(pickscore, model, folder):
  alone = load_scorer("pickscore", str(folder), batch_size=3, devices=jax.devices()[:1])
  np.testing.assert_allclose(
    alone.score(IMAGES, PROMPTS), pickscore.score(IMAGES, PROMPTS), atol=2e-6
  )


def test_one_program_is_compiled_for_all_batches(pickscore, caplog):
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    pickscore.score(IMAGES, PROMPTS)
    pickscore.score(IMAGES[:3], PROMPTS[:3])
  assert "embed" not in caplog.text


def test_bfloat16_agrees_to_its_precision(folder, pickscore):
  narrow = load_scorer("pickscore", str(folder), dtype="bfloat16", batch_size=4)
  a, b = narrow.embed(IMAGES), pickscore.embed(IMAGES)
  assert a.dtype == np.float32
  assert 1e-4 < np.abs(a - b).max() < 0.05


def test_clip_score_names_its_model_and_variant(folder, expected):
  image, text = expected
  cosine = load_scorer("clip_score", str(folder), batch_size=8)
  assert cosine.name == "clip_score (ViT-30/4, cosine)"
  np.testing.assert_allclose(cosine.score(IMAGES, PROMPTS), (image * text).sum(-1), atol=1e-5)


def test_the_variant_of_hessel_has_a_prefix_and_no_negative_score(folder, model):
  scorer = load_scorer("clip_score", str(folder), variant="hessel", batch_size=8)
  prompts = [f"A photo depicts {prompt}" for prompt in PROMPTS]
  image, text = clips.features(*model, processed(), prompts)
  cosine = (image * text).sum(-1)
  assert cosine.min() < 0 < cosine.max()
  actual = scorer.score(IMAGES, PROMPTS)
  np.testing.assert_allclose(actual, 2.5 * np.maximum(cosine, 0), atol=1e-5)


@pytest.mark.parametrize("antialias", ["true", "false"])
def test_hps_is_the_cosine_of_open_clip_on_torchs_pixels(
  antialias, model, folder, tmp_path, monkeypatch
):
  monkeypatch.setitem(open_clip.HEAD_WIDTHS, 30, 15)
  monkeypatch.setattr(open_clip, "TEXT_HEAD_WIDTH", 8)
  state = to_open_clip(model[0].state_dict())
  file = tmp_path / "HPS_v2.1_compressed.pt"
  torch.save({"epoch": 1, "state_dict": state}, file)
  scorer = parse_scorer(f"hpsv2.1={file},antialias={antialias},tokenizer={folder},batch_size=8")
  prepared = Preprocessing(16, True, antialias == "true", "torchvision")
  pixels = np.stack([prepared.normalise(prepared.crop_of(image)) for image in IMAGES])
  pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
  image, text = clips.features(*model, pixels, PROMPTS)
  np.testing.assert_allclose(scorer.score(IMAGES, PROMPTS), (image * text).sum(-1), atol=1e-5)
  assert scorer.name == ("hpsv2.1" if antialias == "true" else "hpsv2.1 (no antialiasing)")


def test_hps_may_be_named_by_its_folder(model, folder, tmp_path):
  with pytest.raises(InputError, match=r"has no HPS_v2_compressed\.pt; give the file itself"):
    load_scorer("hpsv2", str(tmp_path))


# Aesthetic heads


def relu_head(width):
  """LAION's head with ReLU, as torch."""
  sizes, layers = (width, 1024, 128, 64, 16, 1), []
  for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
    layers.append(torch.nn.Linear(inputs, outputs))
    layers += [torch.nn.ReLU(), torch.nn.Dropout()] if i < 3 else [torch.nn.ReLU()] * (i < 4)
  return torch.nn.ModuleDict({"layers": torch.nn.Sequential(*layers)}).eval()


def test_the_head_with_relu_is_that_of_torch(tmp_path):
  head = relu_head(12)
  torch.save(head.state_dict(), tmp_path / "head.pth")
  x = np.random.default_rng(0).standard_normal((5, 12))
  ours = read_head(tmp_path / "head.pth")
  with torch.no_grad():
    expected = head["layers"](torch.from_numpy(x).float())[:, 0]
  assert ours.version == "relu"
  np.testing.assert_allclose(ours.scores(x), expected, rtol=1e-5, atol=1e-5)


GOLDEN = {
  "v1": (
    "sa_0_4_vit_l_14_linear.pth",
    [-2.45791, -0.13786, 1.89511, 3.58493, 5.09973, 6.47010, 7.78699, 9.04800, 10.22641, 11.30443],
  ),
  "v2": (
    "sac+logos+ava1-l14-linearMSE.pth",
    [1.65548, 2.35927, 3.06982, 3.67245, 4.23801, 4.70102, 5.07305, 5.36536, 5.57666, 5.74676],
  ),
}


@pytest.mark.parametrize("version", GOLDEN)
def test_published_heads_give_their_golden_values(version):
  file, expected = GOLDEN[version]
  if not (REAL / file).is_file():
    pytest.skip(f"LAION's published heads are not in {REAL}")
  head = read_head(REAL / file)
  assert head.version == version
  np.testing.assert_allclose(
    head.scores(np.load(REAL / "rating_embeddings.npy")), expected, atol=1e-5
  )


def test_an_aesthetic_score_is_the_head_of_the_features_and_needs_no_prompt(
  folder, expected, tmp_path
):
  head = torch.nn.Linear(clips.WIDTH, 1)
  torch.save(head.state_dict(), tmp_path / "v1.pth")
  scorer = parse_scorer(f"aesthetic={tmp_path / 'v1.pth'},clip={folder},batch_size=8")
  square = [image[:13, :13] for image in IMAGES]
  with torch.no_grad():
    expected = head(torch.from_numpy(scorer.embed(square)))[:, 0]
  np.testing.assert_allclose(scorer.score(square, []), expected, atol=1e-5)
  assert (scorer.name, scorer.needs_prompts) == ("aesthetic (v1)", False)


# What is refused


@pytest.mark.parametrize(
  ("state", "message"),
  [
    ({"weight": torch.ones(1, 7), "bias": torch.ones(1)}, "features of 7 numbers, and .* has 20"),
    ({"weight": torch.ones(2, 7), "bias": torch.ones(2)}, r"weight is \[2, 7\]"),
    ({"weights": torch.ones(2, 7)}, "is no aesthetic head: it has weights"),
  ],
)
def test_a_head_that_does_not_fit_is_refused(state, message, model, folder, tmp_path):
  torch.save(state, tmp_path / "x.pth")
  with pytest.raises(InputError, match=message):
    load_scorer("aesthetic", str(tmp_path / "x.pth"), clip=str(folder))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("pickscore", "pickscore needs weights, .*published one is yuvalkirstain/PickScore_v1"),
    ("hpsv2.1", "HPS_v2.1_compressed.pt, .*published in xswu/HPSv2"),
    ("aesthetic", "published in LAION-AI/aesthetic-predictor"),
    ("clip_score=x,variant=max", "unknown variant of clip_score 'max'"),
    ("pickscore=/absent", "'/absent' is neither a folder nor the name of a repository"),
  ],
)
def test_missing_weights_are_named_with_the_repository_that_holds_them(text, message):
  with pytest.raises(InputError, match=message):
    parse_scorer(text)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
  write_tokenizer(tmp_path, interop.build_tokenizer([*clips.WORDS, "zebra", "yellow"], 8))
  scorer = load_scorer("clip_score", str(folder), tokenizer=str(tmp_path), batch_size=4)
  with pytest.raises(InputError, match="give the tokenizer of this model"):
    scorer.score(IMAGES, PROMPTS)


def test_long_prompts_lose_their_end_with_a_warning(pickscore, caplog):
  with caplog.at_level(logging.WARNING):
    pickscore.score(IMAGES[:1], ["a red fox a red fox a red fox"])
  assert "1 of 1 prompts are longer than 8 tokens" in caplog.text


def test_the_mean_and_deviation_of_a_folder_are_used(model, folder, tmp_path):
  clips.make(tmp_path)
  stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
  square = [image[:16, :16] for image in IMAGES]
  pixels = np.stack([np.moveaxis(image, -1, 0).astype(np.float32) / 127.5 - 1 for image in square])
  expected, _ = clips.features(*model, pixels, PROMPTS)
  scorer = load_scorer("pickscore", str(tmp_path), batch_size=8)
  np.testing.assert_allclose(scorer.embed(square), expected, atol=1e-5)


@pytest.mark.parametrize(
  ("stated", "message"),
  [
    ({"image_mean": [0.5, 0.5]}, "image_mean is .*, expected three numbers"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std has a zero"),
    ({"resample": 2}, "resample is 2; only 3, bicubic, is known"),
  ],
)
def test_a_preprocessing_that_is_not_known_is_refused(stated, message, tmp_path):
  clips.make(tmp_path)
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
  with pytest.raises(InputError, match=message):
    load_scorer("pickscore", str(tmp_path))
