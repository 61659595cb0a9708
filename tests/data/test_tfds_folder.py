"""The TFDS folder is read by TFDS and grain, and its damage is an error before training."""

import json
import subprocess
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_jax.data import images, pairs, tfds_folder
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.errors import InputError
from tests.data import sets

ROWS = [sets.pickapic_row(i) for i in range(10)]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.fixture
def folder(tmp_path):
  sets.pickapic(tmp_path / "source/train-0.parquet", ROWS)
  source = source_reader.find("pickapic", tmp_path / "source")
  convert.convert(source, tmp_path / "out", Options(rows_per_shard=4))
  return tmp_path / "out"


@settings(max_examples=50, deadline=None)
@given(TEXT, TEXT.filter(str.strip), st.binary(min_size=1), st.floats(0, 1, width=32))
def test_a_pair_survives_a_round_trip(name, prompt, data, p0):
  key = pairs.prompt_key(prompt)
  pair = pairs.Pair(
    name, prompt, data, b"1", p0, 0.5, key, "s", (8, 9), (10, 11), "m", "", "u", data
  )
  assert tfds_folder.deserialize(tfds_folder.serialize(pair)) == pair


def test_tfds_reads_the_folder_with_images_decoded(folder):
  data = tfds.builder_from_directory(folder).as_data_source("train")
  assert len(data) == 10
  for row, example in zip(ROWS, data, strict=True):
    assert example["prompt"].decode() == row["caption"]
    assert example["p0"] == row["label_0"]
    np.testing.assert_array_equal(example["size_0"], [12, 16])
    np.testing.assert_array_equal(example["image_1"], np.asarray(images.decode(row["jpg_1"])))


def test_tfds_reads_version_splits_and_shards(folder):
  info = tfds_folder.open_folder(folder).info
  assert str(info.version) == tfds_folder.VERSION
  assert info.splits["train"].shard_lengths == [4, 4, 2]
  assert len(info.splits["train[20%:50%]"].file_instructions) > 0


def test_grain_reads_the_files_themselves(folder):
  source = grain.sources.ArrayRecordDataSource(sorted(map(str, folder.glob("*array_record-*"))))
  assert [tfds_folder.deserialize(source[i]).id for i in range(len(source))] == [
    f"{i}:{i}a:{i}b" for i in range(10)
  ]


def test_grain_shuffles_the_pairs(folder):
  data = grain.MapDataset.source(tfds_folder.PairSource(folder, "train")).seed(0).shuffle()
  assert sorted(data[i].id for i in range(10)) == [f"{i}:{i}a:{i}b" for i in range(10)]


def test_neither_building_nor_reading_imports_tensorflow(folder):
  code = (
    "import sys\n"
    "from dmpo_jax.data import tfds_folder\n"
    "from dmpo_jax.data.convert import convert, source_reader\n"
    "from dmpo_jax.data.convert.options import Options\n"
    f"source = source_reader.find('pickapic', r'{folder.parent / 'source'}')\n"
    f"convert.convert(source, r'{folder.parent / 'again'}', Options())\n"
    f"print(len(tfds_folder.open_folder(r'{folder.parent / 'again'}').as_data_source('train')))\n"
    "assert 'tensorflow' not in sys.modules"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout.strip() == "10", done.stderr


def test_an_open_folder_has_imported_tfds(folder):
  program = (
    "import sys; from dmpo_jax.data import tfds_folder\n"
    "source = tfds_folder.PairSource(sys.argv[1], 'train')\n"
    "before = set(sys.modules); source[0]; print(sorted(set(sys.modules) - before))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
  )
  assert done.stdout == "[]\n"


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_truncated_shard_is_named(folder, keep):
  path = sorted(folder.glob("*array_record-*"))[1]
  data = path.read_bytes()
  path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
  with pytest.raises(InputError, match=r"00001-of-00003 has \d+ bytes, \d+ were written"):
    tfds_folder.open_folder(folder)


def test_a_shard_of_other_bytes_is_named(folder):
  path = sorted(folder.glob("*array_record-*"))[1]
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(InputError, match="00001-of-00003 is damaged: 4 records were written"):
    tfds_folder.PairSource(folder, "train")


def test_a_missing_shard_is_named(folder):
  sorted(folder.glob("*array_record-*"))[2].unlink()
  with pytest.raises(InputError, match="00002-of-00003 is missing"):
    tfds_folder.open_folder(folder)


def test_a_split_that_does_not_exist_is_named(folder):
  with pytest.raises(InputError, match="did you mean 'train'"):
    tfds_folder.PairSource(folder, "trian")


def test_a_path_that_is_no_utf8_is_named(folder):
  other = folder.rename(folder.parent / "\udcff")
  with pytest.raises(InputError, match="the path of the folder is not valid UTF-8"):
    tfds_folder.PairSource(other, "train")


def test_a_class_that_features_json_names_is_not_imported(folder, tmp_path, monkeypatch):
  (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
  monkeypatch.syspath_prepend(tmp_path)
  path = folder / "features.json"
  value = json.loads(path.read_text())
  value["featuresDict"]["features"]["id"]["pythonClassName"] = "evil_module.Text"
  path.write_text(json.dumps(value))
  with pytest.raises(InputError, match=r"features\.json does not hold the features of pairs"):
    tfds_folder.open_folder(folder)
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("filepathTemplate", "/etc/{SPLIT}"),
    ("filepathTemplate", ["x"]),
    ("filepathTemplate", None),
    ("name", "../../x"),
  ],
)
def test_other_files_that_dataset_info_names_are_not_opened(folder, key, value):
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  info["splits"][0][key] = value
  path.write_text(json.dumps(info))
  with pytest.raises(InputError, match=r"dataset_info\.json"):
    tfds_folder.open_folder(folder)


def test_an_unfinished_conversion_is_no_data_set(folder):
  (folder / "dataset_info.json").unlink()
  with pytest.raises(InputError, match="holds no finished data set"):
    tfds_folder.open_folder(folder)


def test_records_of_another_version_are_refused(folder):
  path = folder / "report.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"record": "2.0.0"}))
  with pytest.raises(
    InputError, match=r"records of version 2\.0\.0, this version of dmpo-jax reads 1\."
  ):
    tfds_folder.open_folder(folder)


def scored_pair():
  key = pairs.prompt_key("a")
  values = ("x", "a", b"0", b"1", 1.0, 1.0, key, "s", (8, 8), (8, 8))
  return pairs.Pair(*values, seed_0=2**32 - 1, seed_1=0, score_0=-0.5, score_1=0.25)


def test_seeds_and_scores_survive_a_round_trip_and_are_none_where_unknown():
  pair = scored_pair()
  assert tfds_folder.deserialize(tfds_folder.serialize(pair)) == pair
  plain = pair._replace(seed_0=None, seed_1=None, score_0=None, score_1=None)
  assert tfds_folder.deserialize(tfds_folder.serialize(plain)) == plain


def test_a_record_of_version_1_0_has_neither_seeds_nor_scores():
  pair = scored_pair()
  names = (*tfds_folder.SEEDS, *tfds_folder.SCORES)
  fields = {name: value for name, value in pair._asdict().items() if name not in names}
  schema = tfds_folder.features("1.0.0")
  record = schema.serialize_example(schema.encode_example(fields))
  assert tfds_folder.deserialize(record, "1.0.0") == pair._replace(**dict.fromkeys(names))


@pytest.mark.parametrize(
  ("name", "value"), [("seed_0", -1), ("seed_1", 2**32), ("seed_0", 1.5), ("score_1", np.inf)]
)
def test_a_seed_or_score_out_of_range_is_refused(name, value):
  with pytest.raises(InputError, match=f"{name} must be a"):
    pairs.validate(scored_pair()._replace(**{name: value}))
