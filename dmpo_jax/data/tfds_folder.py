"""Preference pairs as a TFDS data set in ArrayRecord files, without TensorFlow.

`tfds.builder_from_directory(folder).as_data_source(split)` reads the folder, with images decoded;
`open_folder` checks the files first, and `PairSource` returns `Pair`s with encoded images.

`data.convert` writes the folder in place of `download_and_prepare`, which runs in one process,
cannot resume, and needs disk space for a shuffled copy of all examples. The files are the same:
examples serialised by TFDS's features, in ArrayRecord with group_size:1, under TFDS's names.
"""

import functools
import math

from dmpo_jax.common import json_types, paths
from dmpo_jax.common.files import read_json, reading
from dmpo_jax.data import pair_index
from dmpo_jax.data.bucket_records import BucketRecords
from dmpo_jax.data.pairs import (
  Pair,
  check_probability,
  check_score,
  check_seed,
  check_text,
  check_weight,
)
from dmpo_jax.data.record_writer import count_records
from dmpo_jax.errors import InputError, unknown

NAME = "preference_pairs"
VERSION = "1.1.0"  # of the record; raise it when a field is added or changes its meaning
REPORT = "report.json"
DESCRIPTION = """\
Pairs of images for one prompt with P(image_0 is preferred). Fields: see dmpo_jax.data.Pair.
Images are 8-bit RGB, upright and opaque; `condition` is the encoded bytes of an image or empty.
Splits are by prompt."""
BYTES = ("image_0", "image_1", "condition")
TEXTS = ("id", "prompt", "prompt_id", "source", "model_0", "model_1", "user_id")
SIZES = ("size_0", "size_1")
SEEDS, SCORES = ("seed_0", "seed_1"), ("score_0", "score_1")  # since 1.1; -1 and NaN: unknown
AGAIN = "copy the folder again, or delete it and convert again"
_SPLIT = "[a-z][a-z0-9_]*"
_COUNTS = json_types.Dict(json_types.COUNT)
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
INFO_SCHEMA = {"name": str, "splits": json_types.List(json_types.Dict(object))}
REPORT_SCHEMA = {
  "source": str,
  "record": str,
  "options": dict,
  "read": dict.fromkeys(("rows", "pairs", "tables", "announced_tables"), json_types.COUNT),
  "found": _COUNTS,
  "dropped": _COUNTS,
  "kept": json_types.COUNT,
  "splits": json_types.Dict({"pairs": json_types.COUNT, "prompts": json_types.COUNT}, _SPLIT),
  "reencoded_images": _COUNTS,
  "passed_over": json_types.List(str),
  "columns_not_read": json_types.List(str),
  "files": json_types.Dict(
    {"records": json_types.POSITIVE, "bytes": json_types.POSITIVE},
    rf"{NAME}-{_SPLIT}\.array_record-[0-9]{{5}}-of-[0-9]{{5}}",
  ),
  "indices": json_types.Dict(str, _SPLIT),
}


@functools.cache
def features(version: str = VERSION):
  """The features of a pair in records of a version, a `tfds.features.FeaturesDict`."""
  import numpy as np
  import tensorflow_datasets as tfds

  image = {"shape": (None, None, 3), "dtype": np.uint8}
  return tfds.features.FeaturesDict(
    {name: tfds.features.Text() for name in (*TEXTS, "condition")}
    | {name: tfds.features.Image(**image) for name in ("image_0", "image_1")}
    | {name: tfds.features.Scalar(np.float32) for name in ("p0", "weight")}
    | {name: tfds.features.Tensor(shape=(2,), dtype=np.int32) for name in SIZES}
    | {name: tfds.features.Scalar(np.int64) for name in SEEDS if _has_seeds(version)}
    | {name: tfds.features.Scalar(np.float32) for name in SCORES if _has_seeds(version)}
  )


def _has_seeds(version: str) -> bool:
  """Whether records of a version hold seeds and scores."""
  return not version.startswith("1.0.")


def serialize(pair: Pair) -> bytes:
  """The record of a pair: a TFDS example. Equal pairs give equal bytes."""
  from tensorflow_datasets.proto import tf_example_pb2

  schema, fields = features(), pair._asdict()
  unknown_values = dict.fromkeys(SEEDS, -1) | dict.fromkeys(SCORES, math.nan)
  fields |= {name: value for name, value in unknown_values.items() if fields[name] is None}
  record = schema.serialize_example(schema.encode_example(fields))
  # By default protocol buffers write maps in any order.
  return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


@functools.cache
def _undecoded(version: str):
  """Features that leave images as bytes."""
  import tensorflow_datasets as tfds

  images = {name: tfds.features.Text() for name in ("image_0", "image_1")}
  return tfds.features.FeaturesDict({**features(version), **images})


def deserialize(record: bytes, version: str = VERSION) -> Pair:
  """The pair in a record, with encoded images.

  Args:
    record: From `serialize`.
    version: The version of the record; `report.json` has it.

  Returns:
    The pair; `p0`, `weight` and scores rounded to float32.

  Raises:
    InputError: `p0`, `weight`, a seed or a score is out of range. Damaged records raise errors of
      other classes.
  """
  fields = _undecoded(version).deserialize_example_np(record)
  seeds = {n: int(fields[n]) for n in SEEDS if n in fields}
  scores = {n: float(fields[n]) for n in SCORES if n in fields}
  return Pair(
    **{name: fields[name].decode("utf-8") for name in TEXTS},
    **{name: fields[name] for name in BYTES},
    p0=check_probability("p0", float(fields["p0"])),
    weight=check_weight(float(fields["weight"])),
    **{name: tuple(fields[name].tolist()) for name in SIZES},
    **{name: check_seed(name, value) for name, value in seeds.items() if value != -1},
    **{name: check_score(name, x) for name, x in scores.items() if not math.isnan(x)},
  )


def file_name(split: str, shard: int, count: int) -> str:
  """Name of a shard, as TFDS expects it."""
  return f"{NAME}-{split}.array_record-{shard:05d}-of-{count:05d}"


def write_metadata(folder: paths.Path, shards: dict[str, list[tuple[int, int]]]) -> None:
  """Writes dataset_info.json and features.json.

  Args:
    folder: Folder to write to.
    shards: (records, bytes) of each shard, by split.
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
      shard_lengths=[records for records, _ in sizes],
      num_bytes=sum(size for _, size in sizes),
      filename_template=template.replace(split=split),
    )
    for split, sizes in shards.items()
  ]
  info.set_splits(tfds.core.splits.SplitDict(splits))
  info.write_to_directory(folder)


def read_report(folder: paths.Path) -> dict:
  """The report of a converted folder, see `convert.report`.

  Raises:
    InputError: The folder holds no finished data set, or the report is damaged.
  """
  folder = paths.parse(folder)
  check_text("the path of the folder", str(folder))  # ArrayRecord takes no other
  if not (folder / "dataset_info.json").is_file():
    raise InputError(
      f"{folder} holds no finished data set (dataset_info.json is missing); run the command of an "
      "interrupted conversion again to resume it"
    )
  path = folder / REPORT
  report = {"passed_over": [], "columns_not_read": [], "indices": {}} | read_json(
    path, advice=AGAIN
  )
  if isinstance(report.get("read"), dict):  # not in reports of earlier versions
    report["read"] = {"tables": 0, "announced_tables": 0} | report["read"]
  return json_types.check(report, REPORT_SCHEMA, path, advice=AGAIN)


def check_files(folder: paths.Path) -> dict:
  """Checks that every shard is complete, by its size and number of records, and every index.

  Args:
    folder: A converted folder.

  Returns:
    The report, see `read_report`.

  Raises:
    InputError: A shard is missing or damaged, or the records are of an incompatible version.
  """
  report = read_report(folder)
  version = report["record"]
  if version.split(".")[0] != VERSION.split(".")[0]:
    raise InputError(
      f"{folder} holds records of version {version}, this version of dmpo-jax reads {VERSION}; "
      "convert again"
    )
  check_shards(folder, report["files"], AGAIN)
  pair_index.check(folder, report["indices"], AGAIN)
  return report


def check_shards(folder: paths.Path, files: dict[str, dict], advice: str) -> None:
  """Checks that ArrayRecord files are complete, by their sizes and numbers of records.

  Args:
    folder: Folder of the files.
    files: Name -> "bytes" and "records" that were written.
    advice: Alternative to copying the files again, for the message.

  Raises:
    InputError: A file is missing or damaged.
  """
  for name, expected in files.items():
    path = paths.parse(folder) / name
    size = path.stat().st_size if path.is_file() else None
    if size != expected["bytes"]:
      problem = (
        "is missing" if size is None else f"has {size} bytes, {expected['bytes']} were written"
      )
      raise InputError(f"{path} {problem}; copy it again or {advice}")
    if paths.is_url(path):  # an upload is whole or not there
      continue
    if (count := count_records(path)) != expected["records"]:
      raise InputError(
        f"{path} is damaged: {expected['records']} records were written and "
        f"{count} are found; copy it again or {advice}"
      )


def open_shards(folder: paths.Path, files: dict[str, dict]):
  """Opens ArrayRecord files as one random-access source, in the order of their names.

  Args:
    folder: Folder of the files.
    files: Name -> "records", their number, see `check_shards`.

  Returns:
    A random-access source of bytes: grain's, or `BucketRecords`.
  """
  import grain

  if paths.is_url(folder):
    counts = {name: files[name]["records"] for name in sorted(files)}
    return BucketRecords(paths.parse(folder), counts)

  # With the number of records in its name grain opens a file when it is first read. Opening a
  # thousand files at the start takes most of the time until the first batch.
  return grain.sources.ArrayRecordDataSource(
    [f"{paths.parse(folder) / name}[0:{files[name]['records']}]" for name in sorted(files)]
  )


def open_folder(folder: paths.Path):
  """Opens a converted folder with TFDS after a check of its files.

  Args:
    folder: A folder that `data convert` wrote.

  Returns:
    TFDS's read-only builder, with `.as_data_source(split)` and `.info`.

  Raises:
    InputError: See `check_files`; or its metadata are not those of a set of pairs.
  """
  import tensorflow_datasets as tfds

  report = check_files(folder)
  _check_metadata(paths.parse(folder), list(report["splits"]), report["record"])
  with reading(folder, "TFDS data set", advice=AGAIN):
    return tfds.builder_from_directory(folder)


def _check_metadata(folder: paths.Path, splits: list[str], version: str) -> None:
  """Raises InputError unless TFDS's metadata are those that `write_metadata` writes.

  TFDS imports the modules that features.json names, and opens the files that dataset_info.json
  names.
  """
  from google.protobuf import json_format

  path = folder / "features.json"
  if read_json(path, advice=AGAIN) != json_format.MessageToDict(features(version).to_proto()):
    raise InputError(f"{path} does not hold the features of pairs; {AGAIN}")
  path = folder / "dataset_info.json"
  info = json_types.check(read_json(path, advice=AGAIN), INFO_SCHEMA, path, advice=AGAIN)
  others = [s for s in info["splits"] if s.get("filepathTemplate", TEMPLATE) != TEMPLATE]
  names = sorted(str(s.get("name")) for s in info["splits"])
  known = info["name"] == NAME and info.get("fileFormat") == "array_record"
  if not known or info.get("moduleName") or others or names != sorted(splits):
    raise InputError(f"{path} is not of {NAME}, or names other files; {AGAIN}")


class PairSource:
  """The pairs of a split by number, with encoded images; a random-access source of grain.

  Args:
    folder: A folder that `data convert` wrote.
    split: Name of the split.

  Raises:
    InputError: The split does not exist, or a file is damaged (see `check_files`).
  """

  def __init__(self, folder: paths.Path, split: str):
    folder = paths.parse(folder)
    report = check_files(folder)
    if split not in report["splits"]:
      raise unknown(f"split of {folder}", split, report["splits"])
    prefix = f"{NAME}-{split}."
    files = {n: f for n, f in report["files"].items() if n.startswith(prefix)}
    self.records, self.version = open_shards(folder, files), report["record"]
    # Imports TFDS in this thread: its lazy imports, each under a lock, deadlock when two threads
    # are the first to import it.
    _undecoded(self.version)

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, number: int) -> Pair:
    return deserialize(self.records[number], self.version)
