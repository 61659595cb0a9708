"""Preference pairs as a TFDS data set in ArrayRecord files, without TensorFlow.

`tfds.builder_from_directory(folder).as_data_source(split)` reads what is written here, with images
decoded; `open_folder` checks the files first, and `PairSource` gives `Pair`s with encoded images.

The folder is written by this package's own conversion and not by `download_and_prepare`: that one
runs in one process, starts from nothing when it is interrupted, and keeps a shuffled copy of all
examples on the way. The files are the same: examples serialised by TFDS's features, in ArrayRecord
with group_size:1, under TFDS's names.
"""

import functools
import json
import pathlib

from dmpo_jax.data.pairs import Pair
from dmpo_jax.errors import InputError, unknown

NAME = "preference_pairs"
VERSION = "1.0.0"  # of the record; a field that is added or means something else raises it
WRITER_OPTIONS = "group_size:1,zstd:1"  # records are images: they hardly compress
REPORT = "report.json"
DESCRIPTION = """\
Pairs of images for one prompt with P(image_0 is preferred). Fields: see dmpo_jax.data.Pair.
Images are 8-bit RGB, upright and opaque; `condition` is the encoded bytes of an image or empty.
Splits are by prompt."""
BYTES = ("image_0", "image_1", "condition")
TEXTS = ("id", "prompt", "prompt_id", "source", "model_0", "model_1", "user_id")
SIZES = ("size_0", "size_1")


@functools.cache
def features():
  """TFDS's description of a pair.

  Returns:
    `tfds.features.FeaturesDict`.
  """
  import numpy as np
  import tensorflow_datasets as tfds

  image = {"shape": (None, None, 3), "dtype": np.uint8}
  return tfds.features.FeaturesDict(
    {name: tfds.features.Text() for name in (*TEXTS, "condition")}
    | {name: tfds.features.Image(**image) for name in ("image_0", "image_1")}
    | {name: tfds.features.Scalar(np.float32) for name in ("p0", "weight")}
    | {name: tfds.features.Tensor(shape=(2,), dtype=np.int32) for name in SIZES}
  )


def serialize(pair: Pair) -> bytes:
  """A pair as TFDS writes an example.

  Args:
    pair: The pair.

  Returns:
    Bytes of one record.
  """
  from tensorflow_datasets.proto import tf_example_pb2

  found = features()
  record = found.serialize_example(found.encode_example(pair._asdict()))
  # Protocol buffers write maps in any order; equal pairs shall be equal bytes.
  return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


@functools.cache
def _undecoded():
  """Features that leave images as bytes."""
  import tensorflow_datasets as tfds

  changed = {name: tfds.features.Text() for name in ("image_0", "image_1")}
  return tfds.features.FeaturesDict({**features(), **changed})


def deserialize(record: bytes) -> Pair:
  """The pair in a record, images still encoded.

  Args:
    record: As `serialize` gives it.

  Returns:
    The pair; `p0` and `weight` rounded to float32.
  """
  found = _undecoded().deserialize_example_np(record)
  return Pair(
    **{name: found[name].decode("utf-8") for name in TEXTS},
    **{name: found[name] for name in BYTES},
    **{name: float(found[name]) for name in ("p0", "weight")},
    **{name: tuple(found[name].tolist()) for name in SIZES},
  )


def file_name(split: str, shard: int, count: int) -> str:
  """Name of a shard, as TFDS expects it."""
  return f"{NAME}-{split}.array_record-{shard:05d}-of-{count:05d}"


def write_metadata(folder: pathlib.Path, shards: dict[str, list[tuple[int, int]]]) -> None:
  """Writes dataset_info.json and features.json.

  Args:
    folder: Where to.
    shards: By split, (records, bytes) of each shard.
  """
  import tensorflow_datasets as tfds

  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=NAME, filetype_suffix="array_record"
  )
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=NAME, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=""
  )
  info = tfds.core.DatasetInfo(builder=identity, features=features(), description=DESCRIPTION)
  info.set_file_format("array_record")
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[records for records, _ in found],
      num_bytes=sum(size for _, size in found),
      filename_template=template.replace(split=split),
    )
    for split, found in shards.items()
  ]
  info.set_splits(tfds.core.splits.SplitDict(splits))
  info.write_to_directory(folder)


def read_report(folder: pathlib.Path) -> dict:
  """What the conversion of a folder counted, see `conversion_report`.

  Raises:
    InputError: The folder is no finished conversion.
  """
  folder = pathlib.Path(folder)
  if not (folder / "dataset_info.json").is_file():
    raise InputError(
      f"{folder} holds no finished data set (dataset_info.json is missing); if a conversion was "
      "interrupted, the same command goes on where it was"
    )
  try:
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(f"cannot read {folder / REPORT}: {error}") from error


def check_files(folder: pathlib.Path) -> dict:
  """Checks that every shard is there whole: its size and its number of records.

  Args:
    folder: A finished conversion.

  Returns:
    The report, see `read_report`.

  Raises:
    InputError: A shard is missing, truncated, or not what was written, or the records are of a
      version that means something else.
  """
  report = read_report(folder)
  version = str(report.get("record"))
  if version.split(".")[0] != VERSION.split(".")[0]:
    raise InputError(
      f"{folder} holds records of version {version}, this program reads {VERSION}; convert anew"
    )
  check_shards(folder, report["files"], "convert anew")
  return report


def check_shards(folder: pathlib.Path, files: dict[str, dict], advice: str) -> None:
  """Checks that ArrayRecord files are there whole: their sizes and numbers of records.

  Args:
    folder: Where they lie.
    files: Name -> "bytes" and "records" that were written.
    advice: What to do otherwise, apart from copying them again.

  Raises:
    InputError: One is missing, truncated, or not what was written.
  """
  for name, expected in files.items():
    path = pathlib.Path(folder) / name
    size = path.stat().st_size if path.is_file() else None
    if size != expected["bytes"]:
      found = (
        "is missing" if size is None else f"has {size} bytes, {expected['bytes']} were written"
      )
      raise InputError(f"{path} {found}; copy it again or {advice}")
    if (count := count_records(path)) != expected["records"]:
      raise InputError(
        f"{path} is damaged: {expected['records']} records were written and "
        f"{count} are found; copy it again or {advice}"
      )


def open_shards(folder: pathlib.Path, files: dict[str, dict]):
  """The records of ArrayRecord files, in the order of their names.

  Args:
    folder: Where they lie.
    files: Name -> "records", how many there are, see `check_shards`.

  Returns:
    grain's random-access source of bytes.
  """
  import grain

  # Told how many records a file has, grain opens it when the first one is read: a thousand files
  # that are opened at the start are most of the time until the first batch.
  return grain.sources.ArrayRecordDataSource(
    [f"{pathlib.Path(folder) / name}[0:{files[name]['records']}]" for name in sorted(files)]
  )


def count_records(path: pathlib.Path) -> int:
  """How many records an ArrayRecord file holds, read from its end; -1 if it is no such file."""
  from array_record.python.array_record_module import ArrayRecordReader

  try:
    reader = ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
  except (RuntimeError, ValueError):
    return -1
  return count


def open_folder(folder: pathlib.Path):
  """The TFDS builder of a finished conversion, after a check of its files.

  Args:
    folder: What `data convert` wrote.

  Returns:
    TFDS's read-only builder: `.as_data_source(split)`, `.info`.

  Raises:
    InputError: See `check_files`.
  """
  import tensorflow_datasets as tfds

  check_files(folder)
  return tfds.builder_from_directory(folder)


class PairSource:
  """The pairs of a split by number, images encoded; grain's random-access source.

  Args:
    folder: What `data convert` wrote.
    split: Name of the split.

  Raises:
    InputError: The split does not exist, or see `check_files`.
  """

  def __init__(self, folder: pathlib.Path, split: str):
    report = check_files(folder)
    if split not in report["splits"]:
      raise unknown(f"split of {folder}", split, report["splits"])
    prefix = f"{NAME}-{split}."
    files = {n: f for n, f in report["files"].items() if n.startswith(prefix)}
    self.records = open_shards(folder, files)
    # TFDS is imported here: two threads that are the first to import it can wait for each other for
    # ever, since it imports its parts lazily, each under a lock.
    _undecoded()

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, number: int) -> Pair:
    return deserialize(self.records[number])
