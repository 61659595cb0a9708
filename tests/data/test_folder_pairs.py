"""Pairs from disk: order, crops, labels, and damaged records.

Pixels hold their position: red is the row, green the column, blue the pair and side.
"""

import json
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmpo_jax.data import FolderPairs, pair_index, tfds_folder
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.record_writer import RecordWriter
from dmpo_jax.errors import InputError
from tests.data import sets
from tests.data.test_crops import encode, positions

LABELS = [1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 1.0]
SIZE = 16


def image(pair: int, side: int) -> bytes:
  pixels = positions(16, 24)
  pixels[..., 2] = 2 * pair + side
  return encode(pixels)


def row(number: int, **changes) -> dict:
  """A row of Pick-a-Pic with such images; its weight is 1 / (1 + number)."""
  return sets.pickapic_row(number) | {
    "jpg_0": image(number, 0),
    "jpg_1": image(number, 1),
    "label_0": LABELS[number],
    "label_1": 1 - LABELS[number],
    "caption": f"caption {number}",
    "num_example_per_prompt": 1 + number,
  } | changes  # fmt: skip


def write(root, rows: list[dict]) -> str:
  sets.pickapic(root / "source/train-0.parquet", rows)
  source = source_reader.find("pickapic", root / "source")
  convert.convert(source, root / "out", Options(rows_per_shard=4))
  return str(root / "out")


def square(pair: int, side: int) -> bytes:
  """An image of the size that is loaded, which no crop moves."""
  pixels = positions(SIZE, SIZE)
  pixels[..., 2] = 2 * pair + side
  return encode(pixels)


def write_custom(root, rows: list[dict]) -> str:
  """A converted folder of a user's own table."""
  table = root / "custom/pairs.parquet"
  table.parent.mkdir()
  pq.write_table(pa.Table.from_pylist(rows), table)
  source = source_reader.find("custom", table)
  convert.convert(source, root / "out", Options(rows_per_shard=4))
  return str(root / "out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp("pairs"), [row(i) for i in range(10)])


@pytest.fixture(scope="module")
def certain(tmp_path_factory):
  """Four pairs without ties, all of weight 1."""
  rows = [row(i, label_0=1.0, label_1=0.0, num_example_per_prompt=1) for i in range(4)]
  return write(tmp_path_factory.mktemp("certain"), rows)


def tokenize(captions):
  """The length of each caption, padded to a context of 4."""
  ids = np.zeros((len(captions), 4), np.int32)
  ids[:, 0] = [int(c.split()[-1]) if c else 0 for c in captions]
  return {"input_ids": ids}, 0


def load(folder, *, batch_size=4, seed=0, channels=3, processes=(0, 1), **options):
  pairs = FolderPairs(**{"folder": folder, "size": SIZE} | options)
  return pairs.loader(
    tokenize,
    channels=channels,
    batch_size=batch_size,
    seed=seed,
    process_index=processes[0],
    process_count=processes[1],
  )


def gather(loader, steps) -> dict:
  """Batches, concatenated."""
  return join([loader[step] for step in steps])


def join(batches: list[dict]) -> dict:
  """Batches or their parts, concatenated array by array."""
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def assert_same(a: dict, b: dict) -> None:
  jax.tree.map(np.testing.assert_array_equal, a, b)  # raises where the keys differ


RANDOM = {"crop": "random", "flip": True}


def test_a_batch_has_these_arrays(folder):
  batch = load(folder, micro_conditioning=True)[0]
  assert jax.tree.map(lambda x: (x.dtype.name, x.shape), batch) == {
    "pixels": ("uint8", (4, 2, 16, 16, 3)),
    "text": {"input_ids": ("int32", (4, 4))},
    "example_id": ("uint32", (4,)),
    "label": ("float32", (4,)),
    "weight": ("float32", (4,)),
    "geometry": ("float32", (4, 6)),
  }


def test_an_epoch_has_every_pair_once_and_the_next_another_order(folder):
  ids = gather(load(folder), range(10))["example_id"].reshape(4, 10)
  np.testing.assert_array_equal(np.sort(ids, axis=1), [np.arange(10)] * 4)
  assert len({tuple(epoch) for epoch in ids}) == 4


def test_a_batch_does_not_depend_on_earlier_calls(folder):
  loader = load(folder, **RANDOM)
  for step in (7, 0, 100_000, 3, 7):
    assert_same(loader[step], load(folder, **RANDOM)[step])


def test_batches_decoded_ahead_are_those_of_the_steps(folder):
  batches = load(folder, **RANDOM, batch_size=3).iterate(5)
  for step in range(5, 12):
    assert_same(next(batches), load(folder, **RANDOM, batch_size=3)[step])
  batches.close()


def test_the_parts_of_processes_are_the_batch(folder):
  whole = load(folder, **RANDOM)
  parts = [load(folder, **RANDOM, processes=(i, 2)) for i in range(2)]
  ahead = [part.iterate(2) for part in parts]
  for step in (2, 3, 4):
    pieces = [part[step] for part in parts]
    assert_same(join(pieces), whole[step])
    for piece, batches in zip(pieces, ahead, strict=True):
      assert_same(next(batches), piece)


@pytest.mark.parametrize("mix", [False, True])
def test_a_run_resumes_within_an_epoch_on_any_number_of_processes(folder, certain, mix):
  names = (folder, certain) if mix else (folder,)
  pairs = FolderPairs(folders=names, weights=range(1, 1 + len(names)), size=SIZE, **RANDOM)

  def part(index, count):
    return pairs.loader(
      tokenize, channels=3, batch_size=4, seed=5, process_index=index, process_count=count
    )

  whole = part(0, 1)
  for start, count in ((0, 2), (3, 4), (6, 1), (9, 2)):  # an epoch is two batches and a half
    ahead = [part(index, count).iterate(start) for index in range(count)]
    for step in range(start, start + 3):
      pieces = [next(batches) for batches in ahead]
      assert_same(join(pieces), whole[step])
    for batches in ahead:
      batches.close()


def test_both_images_of_a_pair_have_the_same_crop(folder):
  pixels = gather(load(folder, **RANDOM), range(10))["pixels"].astype(int)
  np.testing.assert_array_equal(pixels[:, 0, ..., :2], pixels[:, 1, ..., :2])


def test_separate_crops_differ_within_a_pair_and_the_first_is_the_joint_one(folder):
  joint = gather(load(folder, **RANDOM), range(5))
  apart = gather(load(folder, **RANDOM, views="separate"), range(5))
  stored_first = np.array(LABELS)[joint["example_id"].astype(int)] >= 0.5
  side = np.where(stored_first, 0, 1)  # of image_0 of the record
  rows = np.arange(20)
  np.testing.assert_array_equal(apart["pixels"][rows, side], joint["pixels"][rows, side])
  columns = apart["pixels"][:, :, 0, :, 1].astype(int)  # [N, 2, W]
  assert (columns[:, 0] != columns[:, 1]).any(axis=1).mean() > 0.7
  np.testing.assert_array_equal(apart["example_id"], joint["example_id"])


def test_crops_differ_by_pair_and_epoch_and_stay_in_the_image(folder):
  batch = gather(load(folder, **RANDOM), range(10))
  columns = batch["pixels"].astype(int)[:, 0, 0, :, 1]  # [N, W]
  step = np.unique(np.diff(columns, axis=1), axis=1)[:, 0]
  assert set(step) == {-1, 1}
  assert columns.min() >= 0
  assert columns.max() <= 23
  of_pair_0 = {tuple(c) for c in columns[batch["example_id"] == 0]}
  assert len(of_pair_0) > 1
  assert len({tuple(c) for c in columns[:10]}) > 4


def test_a_crop_does_not_depend_on_the_batch(folder):
  small = gather(load(folder, **RANDOM, batch_size=2), range(10))
  large = gather(load(folder, **RANDOM, batch_size=5), range(4))
  assert_same(small, large)


def test_the_preferred_image_comes_first_and_ties_keep_their_order(folder):
  batch = gather(load(folder), range(5))
  number = batch["example_id"].astype(int)
  p0 = np.array(LABELS)[number]
  np.testing.assert_array_equal(batch["label"], np.maximum(p0, 1 - p0))
  first = batch["pixels"].astype(int)[:, 0, 0, 0, 2]
  np.testing.assert_array_equal(first, 2 * number + (p0 < 0.5))
  second = batch["pixels"].astype(int)[:, 1, 0, 0, 2]
  np.testing.assert_array_equal(second, 2 * number + (p0 >= 0.5))


def test_swapped_labels_exchange_the_images_and_keep_the_labels(folder):
  plain, swapped = (gather(load(folder, swap_labels=swap), range(5)) for swap in (False, True))
  np.testing.assert_array_equal(swapped.pop("pixels"), plain.pop("pixels")[:, ::-1])
  assert_same(swapped, plain)


def test_captions_and_weights_are_those_of_the_pairs(folder):
  batch = gather(load(folder), range(5))
  np.testing.assert_array_equal(batch["text"]["input_ids"][:, 0], batch["example_id"])
  np.testing.assert_allclose(batch["weight"], 1 / (1.0 + batch["example_id"]), rtol=1e-6)


def test_dropped_ties_never_occur_and_certain_pairs_have_no_label(folder):
  batch = gather(load(folder, ties="drop"), range(4))
  assert "label" not in batch
  numbers = batch["text"]["input_ids"][:, 0].reshape(2, 8)
  np.testing.assert_array_equal(np.sort(numbers, axis=1), [[0, 1, 3, 4, 5, 6, 8, 9]] * 2)


def test_equal_weights_of_one_are_left_out(certain):
  assert set(load(certain)[0]) == {"pixels", "text", "example_id"}


def test_the_geometry_is_that_of_the_crop(folder):
  batch = gather(load(folder, **RANDOM, micro_conditioning=True), range(3))
  columns = batch["pixels"].astype(int)[:, 0, 0, :, 1]
  flipped = columns[:, 0] > columns[:, 1]
  left = np.where(flipped, 23 - columns[:, 0], columns[:, 0])
  expected = [[16, 24, 0, column, 16, 16] for column in left]
  np.testing.assert_array_equal(batch["geometry"], expected)


def test_images_have_the_channels_of_the_pipeline(folder):
  assert load(folder, channels=1)[0]["pixels"].shape == (4, 2, 16, 16, 1)


def test_a_vocabulary_can_be_made_of_all_captions(folder):
  pairs = FolderPairs(folder=folder, size=SIZE, ties="drop")
  assert pairs.captions == [f"caption {i}" for i in (0, 1, 3, 4, 5, 6, 8, 9)]


def test_truncated_captions_are_counted_at_the_start(tmp_path):
  captions = ["one", "one two", "one two three", "one two three four"]  # and two tokens each
  path = write(tmp_path, [row(i, caption=c) for i, c in enumerate(captions)])
  assert load(path).truncated == 2


def mixed(folder, certain, weights=(3, 1), seed=0):
  pairs = FolderPairs(folders=(folder, certain), weights=weights, size=SIZE)
  return pairs.loader(tokenize, channels=3, batch_size=4, seed=seed)


@pytest.mark.parametrize("weights", [(1e-300, 1e300), (1, 1e-7), (1e308, 1e308)])
def test_weights_by_which_a_folder_has_no_example_are_refused(folder, certain, weights):
  with pytest.raises(InputError, match="gives it less than 1e-06 of the examples"):
    mixed(folder, certain, weights)


def test_folders_are_mixed_by_their_weights_at_every_position(folder, certain):
  ids = gather(mixed(folder, certain), range(20))["example_id"]
  assert set(ids) == set(range(14))
  excess = np.cumsum(ids < 10) - 0.75 * np.arange(1, 81)
  assert abs(excess).max() <= 1


def test_a_mixture_resumes_at_any_step(folder, certain):
  batches = mixed(folder, certain).iterate(9)
  for step in (9, 10):
    assert_same(next(batches), mixed(folder, certain)[step])


def fingerprint(*folders, **options) -> str:
  weights = [1] * len(folders)
  return FolderPairs(folders=folders, weights=weights, size=SIZE, **options).fingerprint()


def test_a_copy_has_the_same_fingerprint(folder, tmp_path):
  shutil.copytree(folder, tmp_path / "copy")
  assert fingerprint(str(tmp_path / "copy")) == fingerprint(folder)


def test_different_pairs_have_different_fingerprints(folder, certain, tmp_path):
  changes = [{}, {"caption": "x"}, {"jpg_0": image(9, 1)}, {"num_example_per_prompt": 9}]
  prints = [
    fingerprint(write(tmp_path / str(i), [row(0, **change), row(2)]))
    for i, change in enumerate(changes)
  ]
  prints += [fingerprint(folder), fingerprint(folder, ties="drop"), fingerprint(folder, certain)]
  assert len(set(prints)) == 7


@pytest.fixture
def copy(certain, tmp_path):
  return shutil.copytree(certain, tmp_path / "copy")


@pytest.mark.parametrize("read", [lambda a: a[0], lambda a: next(a.iterate(0))])
def test_a_damaged_record_stops_the_run_and_is_named(copy, read):
  (shard,) = copy.glob("*array_record-*")
  data = bytearray(shard.read_bytes())
  data[1000:1050] = bytes(50)  # records of about 430 bytes begin at 64: the third
  shard.write_bytes(data)
  with pytest.raises(InputError, match=rf"record 2 of split 'train' in {copy} is damaged"):
    read(load(str(copy)))


def test_a_damaged_image_is_named_with_its_record(copy):
  pairs = tfds_folder.PairSource(copy, "train")
  (shard,) = copy.glob("*array_record-*")
  changed = [pairs[i] for i in range(4)]
  changed[3] = changed[3]._replace(image_1=changed[3].image_1[:60])
  writer = RecordWriter(shard, copy)
  for pair in changed:
    writer.write(tfds_folder.serialize(pair))
  writer.finish()
  report = json.loads((copy / "report.json").read_text())
  report["files"][shard.name]["bytes"] = shard.stat().st_size
  (copy / "report.json").write_text(json.dumps(report))
  with pytest.raises(InputError, match=r"record 3 of split 'train' .* image cannot be decoded"):
    next(load(str(copy)).iterate(0))


@pytest.mark.parametrize("damage", [None, b"", b"no array", "short", "header"])
def test_a_missing_or_damaged_index_is_named(copy, damage):
  path = copy / "index-train.npy"
  data = path.read_bytes()
  path.unlink()
  if damage == "short":
    np.save(path, np.zeros(3, np.float32))
  elif damage == "header":
    path.write_bytes(data.replace(b"}", b"(", 1))
  elif damage is not None:
    path.write_bytes(damage or data[:-5])
  with pytest.raises(InputError, match=r"index-train\.npy.*convert again"):
    load(str(copy))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"split": "trian"}, "did you mean 'train'"),
    ({"ties": "keep"}, "unknown choice for ties 'keep'"),
    ({"crop": "middle"}, "unknown crop 'middle'"),
    ({"decoding": "fast"}, "unknown choice for decoding 'fast'"),
    ({"views": "apart"}, "unknown choice for views 'apart'"),
    ({"views": "separate", "micro_conditioning": True}, "one crop for both images"),
    ({"size": 0}, "size must be a whole number"),
    ({"batch_size": 11}, "batch_size 11 does not fit a data set of 10 rows"),
    ({"batch_size": 3, "processes": (0, 2)}, "batch_size 3 does not divide over 2 processes"),
    ({"processes": (2, 2)}, "process 2 of 2: processes count from 0"),
    ({"channels": 4}, "images of 4 channels"),
    ({"folder": "absent"}, "absent holds no finished data set"),
  ],
)
def test_invalid_options_are_refused(folder, changes, message):
  with pytest.raises(InputError, match=message):
    load(**{"folder": folder} | changes)


def test_a_split_of_ties_only_is_refused_where_ties_are_dropped(tmp_path):
  with pytest.raises(InputError, match="holds ties only"):
    load(write(tmp_path, [row(2), row(7)]), ties="drop")


@pytest.mark.parametrize(
  "options", [{}, {"folder": "a", "folders": ("a", "b")}, {"folder": "a", "weights": (1,)}]
)
def test_a_data_set_needs_one_folder_or_folders_with_weights(options):
  with pytest.raises(InputError, match=r"`folders` and `weights`|belong to `folders`"):
    FolderPairs(size=SIZE, **options)


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, float("nan")), (1, -2)])
def test_invalid_weights_are_refused(folder, certain, weights):
  with pytest.raises(InputError, match="weights"):
    FolderPairs(folders=(folder, certain), weights=weights, size=SIZE)


def test_the_index_is_that_of_the_records_left_in_each_split(tmp_path):
  rows = [row(i) for i in range(10)]
  rows[6] = rows[1] | {"ranking_id": 6}  # the same pair again
  sets.pickapic(tmp_path / "source/train-0.parquet", rows)
  source = source_reader.find("pickapic", tmp_path / "source")
  options = Options(rows_per_shard=3, duplicates="drop", splits={"train": 0.5, "test": 0.5})
  report = convert.convert(source, tmp_path / "out", options)
  assert report["kept"] == 9
  for split in ("train", "test"):
    pairs = tfds_folder.PairSource(tmp_path / "out", split)
    index = pair_index.read(tmp_path / "out", split, len(pairs))
    for name in ("p0", "weight"):
      expected = np.float32([getattr(pairs[i], name) for i in range(len(pairs))])
      np.testing.assert_array_equal(index[name], expected)
