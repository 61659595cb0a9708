"""Preprocessing, pixel by pixel, against Pillow, transformers and torch."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers.preprocess import MEAN, STD, Preprocessing

SIZE = 24
# Height and width: smaller and larger than the result, wide, tall, with odd and even margins.
SHAPES = [(24, 24), (24, 31), (17, 50), (96, 61), (61, 96), (25, 24), (300, 301), (13, 13)]


def image(shape, seed=0):
  """Smooth and noisy parts, with values at both ends, where bicubic filters overshoot."""
  r = np.random.default_rng(seed)
  noise = r.integers(0, 256, (*shape, 3), np.uint8)
  noise[: shape[0] // 2, : shape[1] // 2] = 255 * (np.arange(shape[1] // 2) % 7 > 3)[None, :, None]
  return noise


def torchvision_crop(x):
  """torchvision's centre crop of `[..., H, W]`, whose margins Python rounds to even numbers."""
  top, left = (round((n - SIZE) / 2.0) for n in x.shape[-2:])
  return x[..., top : top + SIZE, left : left + SIZE]


def sides(shape):
  """Height and width after torchvision's resize of the shorter side."""
  return [SIZE if n == min(shape) else int(SIZE * n / min(shape)) for n in shape]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_those_of_transformers_processor_of_clip(shape):
  settings = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
  processor = CLIPImageProcessorPil(**settings)
  expected = processor(Image.fromarray(image(shape)), return_tensors="np")["pixel_values"][0]
  prepared = Preprocessing(SIZE)
  actual = np.asarray(prepared.normalise(prepared.crop_of(image(shape))))
  np.testing.assert_allclose(np.moveaxis(actual, -1, 0), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_those_of_openais_transform_by_pillow(shape):
  height, width = sides(shape)
  resized = Image.fromarray(image(shape)).resize((width, height), Image.Resampling.BICUBIC)
  expected = torchvision_crop(np.moveaxis(np.asarray(resized), -1, 0))
  actual = Preprocessing(SIZE, crop="torchvision").crop_of(image(shape))
  assert actual.dtype == np.uint8
  np.testing.assert_array_equal(np.moveaxis(actual, -1, 0), expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_of_hps_are_those_of_torch(shape, antialias):
  x = torch.from_numpy(np.moveaxis(image(shape), -1, 0).astype(np.float32) / 255)[None]
  if shape != (SIZE, SIZE):
    options = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    x = torch.nn.functional.interpolate(x, size=sides(shape), **options)
  prepared = Preprocessing(SIZE, tensor=True, antialias=antialias, crop="torchvision")
  actual = prepared.crop_of(image(shape))
  np.testing.assert_allclose(np.moveaxis(actual, -1, 0), torchvision_crop(x[0].numpy()), atol=3e-6)
  mean, std = (np.float32(v).reshape(3, 1, 1) for v in (MEAN, STD))
  expected = (torchvision_crop(x[0].numpy()) - mean) / std
  np.testing.assert_allclose(np.moveaxis(prepared.normalise(actual), -1, 0), expected, atol=2e-5)


def test_antialiasing_changes_the_pixels_of_large_images_alone():
  with_filter, without = (Preprocessing(SIZE, True, antialias) for antialias in (True, False))
  large = image((300, 301))
  assert np.abs(with_filter.crop_of(large) - without.crop_of(large)).max() > 0.1


def test_the_two_crops_differ_where_three_rows_are_cut_off():
  wide = image((SIZE, SIZE + 3))
  ours, theirs = (
    Preprocessing(SIZE, crop=c).crop_of(wide) for c in ("transformers", "torchvision")
  )
  np.testing.assert_array_equal(ours, wide[:, 1:-2])
  np.testing.assert_array_equal(theirs, wide[:, 2:-1])


def test_transforms_of_torchvision_itself_agree():
  try:
    from torchvision import transforms
  except (ImportError, RuntimeError) as error:
    pytest.skip(f"torchvision cannot be imported: {error}")
  bicubic = transforms.InterpolationMode.BICUBIC
  for antialias in (True, False):
    hps = transforms.Compose(
      [
        transforms.ToTensor(),
        transforms.Resize(SIZE, interpolation=bicubic, antialias=antialias),
        transforms.CenterCrop(SIZE),
        transforms.Normalize(MEAN, STD),
      ]
    )
    openai = transforms.Compose(
      [
        transforms.Resize(SIZE, interpolation=bicubic),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
      ]
    )
    for transform, tensor in ((hps, True), (openai, False)):
      prepared = Preprocessing(SIZE, tensor, antialias, "torchvision")
      for shape in SHAPES:
        expected = transform(Image.fromarray(image(shape))).numpy()
        actual = np.moveaxis(prepared.normalise(prepared.crop_of(image(shape))), -1, 0)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_a_crop_that_does_not_exist_is_refused():
  with pytest.raises(InputError, match="crop is 'left'; expected transformers or torchvision"):
    Preprocessing(SIZE, crop="left").crop_of(image((30, 30)))
