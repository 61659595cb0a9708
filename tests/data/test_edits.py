"""Pairs of edits: their source images from disk and from cached latents, and sets that mix kinds.

Pixels hold their position, as in test_folder_pairs; blue tells source and edits apart.
"""

import numpy as np
import pytest

from dmpo_jax.data import CachedLatents, Examples, FolderPairs
from dmpo_jax.data.latents import cache, records
from dmpo_jax.errors import InputError
from tests.data import test_folder_pairs as folder_pairs
from tests.data.latents.caches import SIZE, VIEWS, encoders
from tests.data.latents.caches import load as load_cached
from tests.data.test_crops import encode, positions

SOURCE = 200  # blue of the sources
RANDOM = {"crop": "random", "flip": True}


def image(blue: int, *, height: int = 16, width: int = 24, scale: int = 1) -> bytes:
  """An image of positions; `scale` repeats each pixel, so that it shows the same in more pixels."""
  pixels = positions(height, width).repeat(scale, axis=0).repeat(scale, axis=1)
  pixels[..., 2] = blue
  return encode(pixels)


def rows(count: int = 6, **changes) -> list[dict]:
  return [
    {
      "prompt": f"caption {i}",
      "image_0": image(2 * i),
      "image_1": image(2 * i + 1),
      "label_0": [1, 0][i % 2],
      "condition": image(SOURCE + i),
    }
    | changes
    for i in range(count)
  ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return folder_pairs.write_custom(tmp_path_factory.mktemp("edits"), rows())


@pytest.fixture(scope="module")
def cached(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("cached") / "latents"
  cache.cache_latents(folder, path, encoders(), VIEWS)
  return path


def test_a_source_has_the_crop_and_the_flip_of_both_edits(folder):
  batch = folder_pairs.gather(folder_pairs.load(folder, **RANDOM), range(6))
  assert batch["source"].dtype == np.uint8
  for side in (0, 1):
    np.testing.assert_array_equal(batch["source"][..., :2], batch["pixels"][:, side, ..., :2])
  np.testing.assert_array_equal(
    batch["source"][:, 0, 0, 2] - SOURCE, batch["pixels"][:, 0, 0, 0, 2] // 2
  )
  columns = batch["source"][:, 0, :, 1].astype(int)
  assert len({tuple(row) for row in columns}) > 6  # crops and flips differ


@pytest.mark.parametrize(
  ("source", "scale"),
  [
    (image(SOURCE, scale=3), 1.0),
    # 24 rows are scaled to the 16 of the edits: row r of the result is about row 1.5 r.
    (image(SOURCE, height=24, width=24), 1.5),
  ],
)
def test_a_source_of_another_size_shows_the_same_region(tmp_path, source, scale):
  path = folder_pairs.write_custom(tmp_path, rows(4, condition=source))
  batch = folder_pairs.gather(folder_pairs.load(path, **RANDOM), range(4))
  ours, edit = (x[..., :2].astype(int) for x in (batch["source"], batch["pixels"][:, 0]))
  np.testing.assert_allclose(ours[..., 0], scale * edit[..., 0] + (scale - 1) / 2, atol=1.01)
  np.testing.assert_allclose(ours[..., 1], edit[..., 1], atol=1.01)


def test_cached_sources_are_the_means_of_the_views_of_training_on_images(folder, cached):
  images = FolderPairs(folder=folder, size=SIZE, **RANDOM)
  images = images.loader(folder_pairs.tokenize, channels=3, batch_size=4, seed=0)
  latents = load_cached(cached, embeddings=False)
  for step in range(4):
    batch, expected = latents[step], images[step]
    np.testing.assert_array_equal(batch["source_latents"], expected["source"])
    np.testing.assert_array_equal(batch["latents"][:, :, records.MEAN], expected["pixels"])
  assert records.read_manifest(cached)["errors"]["source"]["max"] == 0


def test_sources_that_a_run_does_not_read_can_be_left_out(folder, cached):
  pairs = FolderPairs(folder=folder, size=SIZE, views="separate", drop_sources=True)
  latents = CachedLatents(folder=str(cached), drop_sources=True)
  assert not pairs.has_sources
  assert not latents.has_sources
  assert "source" not in folder_pairs.load(folder, drop_sources=True)[0]
  assert "source_latents" not in load_cached(cached, drop_sources=True)[0]


def test_a_source_and_its_edits_have_one_crop(folder):
  with pytest.raises(InputError, match="choose views='joint'"):
    FolderPairs(folder=folder, size=SIZE, views="separate")


def test_a_pair_without_a_source_in_a_set_that_has_them_is_named(tmp_path):
  with pytest.raises(InputError, match=r"row 2: condition is empty"):
    folder_pairs.write_custom(tmp_path, [*rows(2), *rows(1, condition=None)])


def test_folders_with_and_without_sources_do_not_mix(folder, tmp_path):
  plain = [{k: v for k, v in row.items() if k != "condition"} for row in rows()]
  other = folder_pairs.write_custom(tmp_path, plain)
  with pytest.raises(InputError, match="holds edits of source images"):
    FolderPairs(folders=(folder, other), weights=(1.0, 1.0), size=SIZE)


def test_sources_in_memory_are_as_large_as_their_images():
  images, ids = np.zeros((2, 2, 4, 4, 1), np.float32), np.arange(2, dtype=np.uint32)
  sources = np.ones((2, 4, 4, 1), np.float32)
  examples = Examples(images, ["a 1", "a 2"], ids, sources=sources)
  loader = examples.loader(folder_pairs.tokenize, channels=1, batch_size=2, seed=0)
  np.testing.assert_array_equal(loader[0]["source"], sources)
  assert examples.fingerprint() != Examples(images, ["a 1", "a 2"], ids).fingerprint()
  with pytest.raises(InputError, match=r"sources must be float32 \[2, 4, 4, 1\]"):
    Examples(images, ["a", "b"], ids, sources=sources[:, :2])
