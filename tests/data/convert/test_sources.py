"""Each source reads the published form of its data set."""

import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmpo_jax.data.convert import source_reader
from dmpo_jax.data.convert.sources import SOURCES, RawPair, SourceModule, layouts
from dmpo_jax.errors import InputError
from tests.data import sets


def raw_pairs(kind, path, *, split=None, labels="soft", temperature=1.0):
  """All raw pairs of a source."""
  source = source_reader.find(kind, path, split=split)
  pairs = []
  for table in source_reader.plan(source, rows=2):
    for chunk in table.chunks:
      for row, values in source_reader.read(source, chunk):
        if isinstance(values, InputError):
          raise values
        pairs += source_reader.raw_pairs(
          source, values, f"{chunk.file}:{row}", labels=labels, temperature=temperature
        )
  return pairs


def test_pickapic_keeps_label_weight_models_annotator_and_uids(tmp_path):
  sets.pickapic(tmp_path / "data/train-0.parquet", [sets.pickapic_row(i) for i in range(5)])
  pairs = raw_pairs("pickapic", tmp_path)
  assert [d.p0 for d in pairs] == [1, 0, 1, 0, 1]
  assert pairs[3]._replace(image_0=b"", image_1=b"") == RawPair(
    "3:3a:3b", "caption 1", b"", b"", 0.0, 0.5, "left", "right", "7"
  )
  assert pairs[3].image_1 == sets.pickapic_row(3)["jpg_1"]


def test_tables_in_the_folder_or_its_folder_data_are_found_but_not_in_both(tmp_path):
  (tmp_path / "data").mkdir()
  sets.pickapic(tmp_path / "train-0.parquet", [sets.pickapic_row(0)])
  assert len(raw_pairs("pickapic", tmp_path)) == 1
  sets.pickapic(tmp_path / "data/train-1.parquet", [sets.pickapic_row(1)])
  with pytest.raises(InputError, match=r"holds train-0\.parquet and data/train-1\.parquet"):
    raw_pairs("pickapic", tmp_path)


@pytest.mark.parametrize(
  ("names", "count"),
  [
    (["data/train-00000-of-00003.parquet"], 3),
    (["train-00000-of-00002-0123abcd.parquet", "train-00001-of-00002-89efabcd.parquet"], 2),
    (["train-0.parquet"], 1),
    (["a-00000-of-00002.parquet", "b-00000-of-00002.parquet"], 4),
    (["train.json"], 1),
  ],
)
def test_names_of_tables_announce_how_many_there_are(names, count):
  assert layouts.announced(names) == count


def test_pickapic_rows_without_a_label_have_no_probability(tmp_path):
  sets.pickapic(tmp_path / "train-0.parquet", [sets.pickapic_row(0, has_label=False)])
  assert raw_pairs("pickapic", tmp_path)[0].p0 is None


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"label_0": float("nan")}, "label_0 must be a finite number"),
    ({"label_0": 1.5}, r"label_0 must lie in \[0, 1\], got 1.5"),
    ({"label_0": 1.0, "label_1": 1.0}, "label_0 \\+ label_1 must be 1"),
    ({"has_label": None}, "has_label must be true or false"),
    ({"num_example_per_prompt": 0}, "num_example_per_prompt must be at least 1"),
    ({"caption": None}, "caption must be text, got NoneType"),
    ({"jpg_0": None}, "jpg_0 must hold an image's bytes"),
    ({"image_0_uid": ""}, "image_0_uid must not be empty"),
  ],
)
def test_a_bad_value_of_pickapic_is_named(tmp_path, changes, message):
  sets.pickapic(tmp_path / "train-0.parquet", [sets.pickapic_row(0, **changes)])
  with pytest.raises(InputError, match=message):
    raw_pairs("pickapic", tmp_path)


def test_a_column_of_the_wrong_type_is_named(tmp_path):
  index = sets.PICKAPIC.get_field_index("jpg_0")
  schema = sets.PICKAPIC.set(index, pa.field("jpg_0", pa.float64()))
  sets.pickapic(tmp_path / "train-0.parquet", [sets.pickapic_row(0, jpg_0=1.0)], schema=schema)
  with pytest.raises(InputError, match="jpg_0 must hold an image's bytes, got float"):
    raw_pairs("pickapic", tmp_path)


@pytest.mark.parametrize(("preference", "p0"), [((0, 1), 0), ((1, 0), 1), ((1, 1), 0.5)])
def test_a_training_row_of_hpdv2_is_one_pair(tmp_path, preference, p0):
  sets.hpdv2_train(tmp_path, preference)
  (pair,) = raw_pairs("hpdv2", tmp_path)
  assert pair == RawPair("train.json:0", "p", "0.jpg", "1.jpg", p0)


def test_a_test_row_of_hpdv2_gives_all_pairs_with_the_annotators_fractions(tmp_path):
  sets.hpdv2_test(tmp_path)
  pairs = raw_pairs("hpdv2", tmp_path, split="test")
  assert [(d.image_0, d.image_1, d.p0) for d in pairs] == [
    ("0.jpg", "1.jpg", 0.5),
    ("0.jpg", "2.jpg", 1.0),
    ("1.jpg", "2.jpg", 1.0),
  ]


def test_hard_labels_of_hpdv2_follow_the_joint_rank(tmp_path):
  sets.hpdv2_test(tmp_path)
  assert [d.p0 for d in raw_pairs("hpdv2", tmp_path, split="test", labels="hard")] == [1, 1, 1]


@pytest.mark.parametrize(("labels", "p"), [("soft", 0.75), ("votes", 12 / 19), ("hard", 1)])
def test_hpdv3_prefers_path1_by_confidence_votes_or_fully(tmp_path, labels, p):
  sets.hpdv3(tmp_path, 20)
  for pair in raw_pairs("hpdv3", tmp_path, labels=labels):
    first = pair.image_0 == "images/a.jpg"
    assert pair.p0 == pytest.approx(p if first else 1 - p)
    assert (pair.model_0 == "good") == first


def test_hpdv3_puts_the_preferred_image_first_in_about_half_of_the_rows(tmp_path):
  sets.hpdv3(tmp_path, 200)
  first = [d.image_0 == "images/a.jpg" for d in raw_pairs("hpdv3", tmp_path)]
  assert 70 < sum(first) < 130


def test_imagereward_rankings_become_pairs_and_equal_ranks_ties(tmp_path):
  sets.imagereward(tmp_path)
  pairs = raw_pairs("imagerewarddb", tmp_path, split="test")
  assert [(d.id, d.p0) for d in pairs] == [("r1:0-1", 0.0), ("r1:0-2", 0.5), ("r1:1-2", 1.0)]
  assert sum(d.weight for d in pairs) == pytest.approx(1)


def test_open_image_preferences_keep_the_choice_in_random_order(tmp_path):
  sets.open_image_preferences(tmp_path / "data/train-0.parquet", 30)
  pairs = raw_pairs("open-image-preferences", tmp_path)
  assert {d.p0 for d in pairs} == {0.0, 1.0}
  for i, pair in enumerate(pairs):
    chosen = pair.image_0 if pair.p0 else pair.image_1
    assert chosen == sets.encoded(2 * i)


def test_a_custom_table_needs_four_columns(tmp_path):
  path = sets.custom(tmp_path, ["prompt,image_0,image_1,label_0", "a fox,0.png,1.png,0.25"])
  assert raw_pairs("custom", path) == [RawPair("pairs.csv:0", "a fox", "0.png", "1.png", 0.25)]


def test_scores_stand_in_place_of_a_label(tmp_path):
  path = sets.custom(tmp_path, ["prompt,image_0,image_1,score_0,score_1", "a,0.png,1.png,4,2"])
  (pair,) = raw_pairs("custom", path, temperature=2.0)
  assert pair.p0 == pytest.approx(0.7310585786300049)  # σ(1)


def test_optional_columns_of_a_custom_table_are_kept(tmp_path):
  row = {"prompt": "p", "image_0": "0.png", "image_1": "1.png", "label_0": 1, "id": 12}
  row |= {"weight": 2.5, "model_0": "x", "user_id": "me", "condition": "2.png"}
  path = sets.custom(tmp_path, [json.dumps(row)], "pairs.jsonl")
  assert raw_pairs("custom", path) == [
    RawPair("12", "p", "0.png", "1.png", 1.0, 2.5, "x", "", "me", "2.png")
  ]


def test_a_custom_parquet_file_may_hold_the_images(tmp_path):
  image = {"bytes": sets.encoded(), "path": None}
  row = {"prompt": "p", "image_0": image, "image_1": image, "label_0": 1.0}
  pq.write_table(pa.Table.from_pylist([row]), tmp_path / "custom.parquet")
  assert raw_pairs("custom", tmp_path / "custom.parquet")[0].image_1 == sets.encoded()


def test_winner_and_loser_folders_are_pairs_in_random_order(tmp_path):
  for i in range(20):
    sets.save(tmp_path / f"winner/{i:02d}.png", i)
    sets.save(tmp_path / f"loser/{i:02d}.jpg", 100 + i, kind="JPEG")
    (tmp_path / "captions").mkdir(exist_ok=True)
    (tmp_path / f"captions/{i:02d}.txt").write_text(f"caption {i}\n")
  pairs = raw_pairs("custom", tmp_path)
  assert [(d.id, d.prompt) for d in pairs] == [(f"{i:02d}", f"caption {i}") for i in range(20)]
  assert {d.p0 for d in pairs} == {0.0, 1.0}
  for d in pairs:
    assert (d.image_0 if d.p0 else d.image_1) == f"winner/{d.id}.png"
    assert (d.image_1 if d.p0 else d.image_0) == f"loser/{d.id}.jpg"


@pytest.mark.parametrize(
  ("label", "p0"),
  [
    ("True", 1),
    (" false", 0),
    (".5", 0.5),
    ("1.", 1),
    ("25e-2", 0.25),
    ("+1", 1),
    ('"0,75"', 0.75),
    ('"1,0"', 1),
  ],
)
def test_a_label_is_a_number_or_true_or_false(tmp_path, label, p0):
  path = sets.custom(tmp_path, ["prompt,image_0,image_1,label_0", f"a,0.png,1.png,{label}"])
  assert raw_pairs("custom", path)[0].p0 == p0


@pytest.mark.parametrize(
  ("label", "message"),
  [
    ("0_1", "must be a number, got str '0_1'"),
    ("０", "must be a number"),
    ('"1,234"', "must be a number, got str '1,234'"),
    ('"0,7,5"', "must be a number"),
    ("NA", "must be a number"),
    ("nan", "must be a finite number"),
    ("Infinity", "must be a finite number"),
    ("1e400", "must be a finite number"),
    ("yes", "must be a number"),
  ],
)
def test_text_that_is_no_number_is_refused(tmp_path, label, message):
  path = sets.custom(tmp_path, ["prompt,image_0,image_1,label_0", f"a,0.png,1.png,{label}"])
  with pytest.raises(InputError, match=message):
    raw_pairs("custom", path)


def test_decimals_of_a_parquet_file_are_numbers_and_whole_floats_identifiers(tmp_path):
  row = {"prompt": "p", "image_0": "0.png", "image_1": "1.png", "id": 7.0, "user_id": 12.0}
  row |= {"label_0": decimal.Decimal("0.75"), "weight": decimal.Decimal("2.50")}
  pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
  (pair,) = raw_pairs("custom", tmp_path / "a.parquet")
  assert (pair.id, pair.user_id, pair.p0, pair.weight) == ("7", "12", 0.75, 2.5)


def test_a_fraction_is_no_identifier(tmp_path):
  row = {"prompt": "p", "image_0": "0.png", "image_1": "1.png", "label_0": 1, "id": 7.5}
  path = sets.custom(tmp_path, [json.dumps(row)], "pairs.jsonl")
  with pytest.raises(InputError, match=r"id must be text or an integer, got float 7.5"):
    raw_pairs("custom", path)


def test_imagerewarddb_as_the_hub_has_it_is_refused_with_what_to_make_of_it(tmp_path):
  row = {"image_path": "0.png", "prompt_id": "001-1", "prompt": "a fox", "rank": 1}
  sets.dump(tmp_path / "train.json", [row, row | {"rank": 2}])
  with pytest.raises(
    InputError,
    match=r"lacks the columns id, generations, ranking; .*an image in each row, as the hub",
  ):
    raw_pairs("imagerewarddb", tmp_path)


def test_an_empty_id_and_a_missing_one_are_told_apart(tmp_path):
  row = {"id": " ", "prompt": "p", "generations": [], "ranking": []}
  sets.dump(tmp_path / "train.json", [row])
  with pytest.raises(InputError, match="id must not be empty"):
    raw_pairs("imagerewarddb", tmp_path)
  del row["id"]
  sets.dump(tmp_path / "train.json", [{"id": "1", **row}] * 20 + [row])
  source = source_reader.find("imagerewarddb", tmp_path)
  with pytest.raises(InputError, match="column 'id' is missing"):
    source_reader.raw_pairs(source, row, "x:0", labels="soft")


def test_the_columns_of_another_set_name_its_source(tmp_path):
  sets.pickapic(tmp_path / "a.parquet", [sets.pickapic_row(0)])
  with pytest.raises(InputError, match="columns are Pick-a-Pic's: dmpo-jax data convert pickapic"):
    raw_pairs("custom", tmp_path / "a.parquet")


@pytest.mark.parametrize(
  ("kind", "split", "message"),
  [
    ("pickapik", "train", "did you mean 'pickapic'"),
    ("pickapic", "trian", "did you mean 'train'"),
    ("hpdv3", "test", "has no table test.json"),
    ("custom", None, "is no table"),
    ("custom", "train", "unknown split of custom"),
  ],
)
def test_an_unknown_source_split_or_folder_is_named(tmp_path, kind, split, message):
  with pytest.raises(InputError, match=message):
    source_reader.find(kind, tmp_path, split=split)


def test_votes_are_refused_where_a_data_set_has_none(tmp_path):
  sets.pickapic(tmp_path / "train-0.parquet", [sets.pickapic_row(0)])
  with pytest.raises(InputError, match="pickapic has no votes"):
    raw_pairs("pickapic", tmp_path, labels="votes")


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_has_what_the_contract_lists(kind):
  members = {*SourceModule.__annotations__, "files", "images", "raw_pairs"}
  assert members <= set(dir(SOURCES[kind]))
  assert SOURCES[kind].__doc__
