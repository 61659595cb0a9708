"""Cached latents as a data set: the order of the examples, mixtures, and damaged files."""

import json

import numpy as np
import pytest

from dmpo_jax.data import CachedLatents, FolderPairs
from dmpo_jax.data.latents import cache, records
from dmpo_jax.errors import InputError
from tests.data import test_folder_pairs as folder_pairs
from tests.data.latents.caches import SIZE, VIEWS, encoders, load, text


def from_images(pairs, *, seed=0, batch_size=4, **options):
  examples = FolderPairs(folder=pairs, size=SIZE, crop="random", flip=True, **options)
  return examples.loader(folder_pairs.tokenize, channels=3, batch_size=batch_size, seed=seed)


@pytest.mark.parametrize("ties", ["soft", "drop"])
def test_the_first_epochs_are_those_of_training_on_images(pairs, folder, ties):
  options = {"micro_conditioning": True}
  ours, theirs = load(folder, embeddings=False, **options), from_images(pairs, **options)
  if ties == "drop":  # ids, on which crops depend, are then counted among fewer pairs
    ours = load(folder, embeddings=False, ties=ties)
    theirs = from_images(pairs, ties=ties)
  for step in range(6 if ties == "drop" else 7):  # 28 of 30 views
    batch, expected = ours[step], theirs[step]
    if ties == "soft":
      np.testing.assert_array_equal(batch["latents"][:, :, records.MEAN], expected["pixels"])
      np.testing.assert_array_equal(batch["geometry"], expected["geometry"])
    for name in {"example_id", "label", "weight"} & set(expected):
      np.testing.assert_array_equal(batch[name], expected[name])
    folder_pairs.assert_same(batch["text"], expected["text"])
    assert ("label" in batch) == ("label" in expected)


def test_swapped_labels_exchange_the_images_and_keep_the_labels(folder):
  plain, swapped = (load(folder, swap_labels=swap)[0] for swap in (False, True))
  np.testing.assert_array_equal(swapped.pop("latents"), plain.pop("latents")[:, ::-1])
  folder_pairs.assert_same(swapped, plain)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
  """Folders of the pairs of a generated set, as images and as latents, with seeds and scores."""
  root = tmp_path_factory.mktemp("sampled")
  rows = [
    {
      "prompt": f"caption {i}",
      "label_0": [1, 0][i % 2],
      **{f"image_{j}": folder_pairs.square(i, j) for j in (0, 1)},
      **{f"seed_{j}": 2**32 - 1 - 2 * i - j for j in (0, 1)},
      **{f"score_{j}": 0.5 * i + 0.1 * j for j in (0, 1)},
    }
    for i in range(5)
  ]
  path = folder_pairs.write_custom(root, rows)
  options = VIEWS._replace(crop="center", flip=False, augmentations=1)
  cache.cache_latents(path, root / "latents", encoders(), options)
  return path, root / "latents"


def test_seeds_and_score_gaps_follow_the_order_of_the_images(sampled):
  for swap in (False, True):
    options = {"prior_noise": True, "score_gaps": True, "swap_labels": swap}
    images = folder_pairs.load(sampled[0], batch_size=5, **options)[0]
    latents = load(sampled[1], batch_size=5, **options)[0]
    i = images["example_id"].astype(np.int64)
    first = (i % 2 == 1) != swap  # the image of the record that comes first
    seeds = 2**32 - 1 - 2 * i[:, None] - np.stack([first, ~first], axis=1)
    assert images["seeds"].dtype == np.uint32
    for batch in (images, latents):
      np.testing.assert_array_equal(batch["seeds"], seeds)
      np.testing.assert_allclose(batch["score_gap"], np.where(first, 0.1, -0.1), rtol=1e-5)
    np.testing.assert_array_equal(
      latents["latents"][:, :, records.MEAN], images["pixels"].astype(np.float32)
    )


def test_records_without_seeds_or_scores_are_named(pairs, folder, tmp_path):
  options = VIEWS._replace(crop="center", flip=False, augmentations=1)
  cache.cache_latents(pairs, tmp_path / "plain", encoders(), options)
  for option, name in (("prior_noise", "seeds"), ("score_gaps", "scores")):
    with pytest.raises(InputError, match=f"record [0-9]+ of split 'train' in .* has no {name}"):
      folder_pairs.load(pairs, **{option: True})[0]
    with pytest.raises(InputError, match=f"record [0-9]+ of split 'train' in .* has no {name}"):
      load(tmp_path / "plain", **{option: True})[0]
  with pytest.raises(InputError, match="cached with random crops or flips"):
    load(folder, prior_noise=True)
  with pytest.raises(InputError, match="a random crop or a flip would move"):
    folder_pairs.load(pairs, prior_noise=True, flip=True)


def test_after_as_many_epochs_as_views_the_first_view_repeats(folder):
  def epoch(number):
    batches = [load(folder, batch_size=5)[2 * number + i] for i in range(2)]
    order = np.argsort(np.concatenate([b["example_id"] for b in batches]))
    return np.concatenate([b["latents"] for b in batches])[order]

  first, second, fourth = epoch(0), epoch(1), epoch(3)
  np.testing.assert_array_equal(first, fourth)
  assert not np.array_equal(first, second)


def test_both_images_of_a_pair_have_the_same_crop(folder):
  mean = np.concatenate([load(folder)[i]["latents"][:, :, records.MEAN] for i in range(7)])
  np.testing.assert_array_equal(mean[:, 0, ..., :2], mean[:, 1, ..., :2])


def test_embeddings_are_those_of_the_captions_stored_once_per_shard(folder):
  for step in range(3):
    tokens = load(folder, embeddings=False)[step]["text"]
    folder_pairs.assert_same(load(folder)[step]["text"], text(tokens))
  manifest = records.read_manifest(folder)
  assert manifest["captions"] == 10  # caption 1 in the first shard and in the last
  counts = [file["records"] for file in manifest["files"].values()]
  assert sorted(counts) == [3, 5, 5, 6, 12, 12]  # with the empty caption of each
  null = CachedLatents(folder=str(folder)).null()
  np.testing.assert_array_equal(null["hidden"], text(folder_pairs.tokenize([""])[0])["hidden"][0])


def test_without_embeddings_batches_hold_token_ids(pairs, folder, tmp_path):
  cache.cache_latents(pairs, tmp_path / "out", encoders(), VIEWS._replace(embeddings=False))
  for loader in (load(folder, embeddings=False), load(tmp_path / "out", embeddings=False)):
    assert set(loader[0]) == {"latents", "text", "example_id", "label", "weight", "geometry"}
    assert set(loader[0]["text"]) == {"input_ids"}
  assert not list((tmp_path / "out").glob("captions*"))
  with pytest.raises(InputError, match=r"holds no text embeddings.*embeddings=False"):
    load(tmp_path / "out")


def test_the_parts_of_processes_and_batches_read_ahead_are_those_of_the_steps(folder):
  whole = load(folder)
  parts = [load(folder, processes=(i, 2)) for i in range(2)]
  ahead = whole.iterate(5)
  for step in (5, 6):
    pieces = [part[step] for part in parts]
    following = next(ahead)
    folder_pairs.assert_same(folder_pairs.join(pieces), whole[step])
    folder_pairs.assert_same(following, whole[step])
  ahead.close()


@pytest.mark.parametrize("kind", records.KINDS)
def test_a_truncated_file_is_named_before_training(copy, kind):
  path = copy / records.file_name(kind, "train", 1, 3)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(
    InputError, match=rf"{path} has \d+ bytes, \d+ were written.*cache the latents again"
  ):
    load(copy)


def test_a_damaged_record_is_named(copy):
  path = copy / records.file_name("pairs", "train", 0, 3)
  content = bytearray(path.read_bytes())
  content[200:260] = bytes(60)
  path.write_bytes(content)
  with pytest.raises(InputError, match=rf"record 0 of split 'train' in {copy} is damaged"):
    [load(copy)[i] for i in range(8)]


@pytest.mark.parametrize("damage", [None, 3, 200])
def test_a_missing_or_damaged_index_is_named(copy, damage):
  path = copy / "index-train.npy"
  content = bytearray(path.read_bytes())
  path.unlink()
  if damage:
    content[damage] ^= 1
    path.write_bytes(content)
  with pytest.raises(
    InputError, match=r"index-train\.npy is missing or damaged.*cache the latents again"
  ):
    load(copy)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: "{", "manifest.json is no valid JSON"),
    (lambda m: "[]", r"manifest.json holds \[\]"),
    (lambda m: "[" * 5000, "manifest.json is nested deeper"),
    (lambda m: json.dumps({**m, "layout": {}}), "manifest.json is damaged"),
    (
      lambda m: json.dumps({**m, "version": "0.9"}),
      "version '0.9', this version of dmpo-jax reads 2.*cache the latents again",
    ),
  ],
)
def test_an_unusable_manifest_is_named(copy, change, message):
  path = copy / records.MANIFEST
  path.write_text(change(json.loads(path.read_text())))
  with pytest.raises(InputError, match=message):
    load(copy)


def test_cached_latents_have_no_captions_for_a_new_pipeline(folder):
  with pytest.raises(InputError, match=r"set config\.pipeline"):
    CachedLatents(folder=str(folder)).captions  # noqa: B018


def test_folders_are_mixed_by_their_weights(folder):
  examples = CachedLatents(folders=(str(folder),) * 2, weights=(3, 1))
  loader = examples.loader(batch_size=4, seed=0)
  ids = np.concatenate([loader[i]["example_id"] for i in range(20)])
  assert abs(np.cumsum(ids < 10) - 0.75 * np.arange(1, 81)).max() <= 1


def test_folders_of_different_options_are_not_mixed(pairs, folder, tmp_path):
  cache.cache_latents(pairs, tmp_path / "out", encoders(), VIEWS._replace(dtype="float16"))
  with pytest.raises(InputError, match=r"(?s)were cached differently.*layout"):
    CachedLatents(folders=(str(folder), str(tmp_path / "out")), weights=(1, 1))


def test_the_fingerprint_depends_on_the_stored_bytes(pairs, folder, copy, tmp_path):
  cache.cache_latents(pairs, tmp_path / "out", encoders(), VIEWS._replace(seed=1))
  prints = [
    CachedLatents(folder=str(path)).fingerprint() for path in (folder, copy, tmp_path / "out")
  ]
  prints.append(CachedLatents(folder=str(folder), ties="drop").fingerprint())
  assert prints[0] == prints[1]
  assert len(set(prints)) == 3
