"""Crops of images, against Pillow and formulas."""

import io

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.data import crops, images
from dmpo_jax.data.crops import CENTER, Crop
from dmpo_jax.errors import InputError
from tests.data import sets


def encode(pixels, kind: str = "PNG", **settings) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8)).save(out, kind, **settings)
  return out.getvalue()


def positions(height: int, width: int) -> np.ndarray:
  """An image whose pixels hold their row (red) and column (green)."""
  rows, columns = np.mgrid[:height, :width]
  return np.stack([rows, columns, 0 * rows], axis=-1)


@pytest.mark.parametrize(
  ("crop", "columns"),
  [
    (CENTER, range(4, 20)),
    (Crop(0.0, 0.0, False), range(16)),
    (Crop(0.0, 0.999, False), range(8, 24)),
    (Crop(None, None, True), range(19, 3, -1)),
    (Crop(0.0, 0.0, True), range(23, 7, -1)),
  ],
)
def test_a_crop_holds_the_expected_columns(crop, columns):
  pixels, _ = crops.load(encode(positions(16, 24)), crop, size=16, channels=3)
  np.testing.assert_array_equal(pixels[..., 1], [list(columns)] * 16)
  np.testing.assert_array_equal(pixels[..., 0], np.mgrid[:16, :16][0])


def test_a_crop_reports_original_size_and_position():
  image = encode(positions(48, 16))
  _, position = crops.load(image, Crop(0.5, 0.0, True), size=8, channels=3)
  assert position == (48, 16, 8, 0)  # scaled to 24x8: a crop may start at rows 0 to 16
  _, position = crops.load(encode(positions(16, 24)), Crop(0.0, 0.0, True), size=16, channels=3)
  assert position == (16, 24, 0, 0)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 41), (12, 12)])
def test_scaling_is_pillows_lanczos_inside_the_crop(width, height):
  encoded = sets.encoded(1, size=(width, height))
  pixels, _ = crops.load(encoded, CENTER, size=16, channels=3)
  scale = 16 / min(width, height)
  wide, high = round(width * scale), round(height * scale)
  image = Image.open(io.BytesIO(encoded)).resize((wide, high), Image.Resampling.LANCZOS)
  left, top = (wide - 16) // 2, (high - 16) // 2
  expected = np.asarray(image, int)[top : top + 16, left : left + 16]
  np.testing.assert_allclose(pixels[4:-4, 4:-4].astype(int), expected[4:-4, 4:-4], atol=1)


@pytest.mark.parametrize(("width", "height"), [(80, 64), (70, 130), (20, 19), (16, 16)])
def test_draft_decoding_is_exact_to_within_few_levels(width, height):
  rows, columns = np.mgrid[:height, :width]
  waves = np.stack([rows * 2, columns * 2, 99 + 60 * np.sin(rows / 6 + columns / 9)], axis=-1)
  encoded = encode(np.clip(waves, 0, 255), "JPEG", quality=95, subsampling=0)
  for crop in (Crop(0.9, 0.8, True), CENTER):
    exact, position = crops.load(encoded, crop, size=16, channels=3)
    draft, same = crops.load(encoded, crop, size=16, channels=3, decoding="draft")
    assert same == position
    np.testing.assert_allclose(draft.astype(int), exact.astype(int), atol=6)
    np.testing.assert_allclose(draft.mean(), exact.mean(), atol=0.5)
  image, size, factor = images.decode_scaled(encoded, 16)
  assert size == (height, width)
  assert factor == {16: 1, 19: 1, 64: 4, 70: 4}[min(width, height)]
  assert (image.size != (width, height)) == (min(width, height) >= 32)
  assert min(image.size) >= 16


def test_shrinking_averages():
  board = np.indices((64, 64)).sum(axis=0) % 2 * 255
  image = encode(np.repeat(board[..., None], 3, axis=-1))
  pixels, _ = crops.load(image, CENTER, size=16, channels=3)
  np.testing.assert_allclose(pixels, 127.5, atol=3)


def test_a_batch_has_each_pairs_images_in_order():
  pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 4, 3)
  batch = crops.stack([(pixels + i, pixels[:, ::-1] + i) for i in range(3)])
  assert (batch.dtype, batch.shape) == (np.uint8, (3, 2, 2, 4, 3))
  np.testing.assert_array_equal(batch[2, 0], pixels + 2)
  np.testing.assert_array_equal(batch[1, 1], pixels[:, ::-1] + 1)


def test_one_channel_is_luma():
  pixels, _ = crops.load(sets.encoded(2), CENTER, size=12, channels=1)
  colours, _ = crops.load(sets.encoded(2), CENTER, size=12, channels=3)
  assert pixels.shape == (12, 12, 1)
  np.testing.assert_allclose(pixels[..., 0], colours @ [0.299, 0.587, 0.114], atol=1)


def test_an_extreme_aspect_ratio_is_cropped_before_scaling():
  image = encode(np.zeros((8, 60_000, 3)))
  pixels, position = crops.load(image, CENTER, size=1024, channels=3)
  assert pixels.shape == (1024, 1024, 3)
  assert position[:2] == (8, 60_000)


def test_samples_cover_all_crops_and_half_of_them_are_flipped():
  sampled = [crops.sample(0, 0, i, crop="random", flip=True) for i in range(4000)]
  for axis in (0, 1):
    counts = np.histogram([crop[axis] for crop in sampled], bins=8, range=(0, 1))[0]
    np.testing.assert_allclose(counts, 500, atol=110)
  np.testing.assert_allclose(np.mean([crop.flip for crop in sampled]), 0.5, atol=0.04)


def test_seed_epoch_and_example_each_change_the_crop():
  base = crops.sample(1, 2, 3, crop="random", flip=True)
  assert base == crops.sample(1, 2, 3, crop="random", flip=True)
  others = [crops.sample(*k, crop="random", flip=True) for k in ((0, 2, 3), (1, 3, 3), (1, 2, 4))]
  assert len({base.top, *(other.top for other in others)}) == 4


def test_without_augmentation_there_is_one_crop():
  sampled = {crops.sample(0, epoch, 5, crop="center", flip=False) for epoch in range(10)}
  assert sampled == {CENTER}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"size": 0}, "size must be a whole number .* got 0"),
    ({"size": 8.0}, "size must be a whole number .* got 8.0"),
    ({"crop": "centre"}, "unknown crop 'centre'; did you mean 'center'"),
    ({"channels": 4}, "images of 4 channels; pairs can be read as 3"),
  ],
)
def test_invalid_options_are_refused(changes, message):
  with pytest.raises(InputError, match=message):
    crops.check(**{"size": 8, "crop": "center", "channels": 3, **changes})
