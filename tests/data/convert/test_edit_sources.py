"""Data sets of edits in the forms in which they are published, and the rule for rejected images."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.errors import InputError
from tests.data import sets
from tests.data.convert.conversions import all_pairs, bad_rows
from tests.data.convert.test_sources import raw_pairs

TEXT = pa.string()


def hub_image(seed: int) -> dict:
  return {"bytes": sets.encoded(seed), "path": None}


def write_parquet(path, schema: dict, rows: list[dict]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(schema.items()))), path)


def ip2p_folders(root, names=("0000000", "0000001"), *, listed=True) -> None:
  """Two edits of the first folder, one of the others."""
  seeds = {name: ["12", "3"] if name == names[0] else ["7"] for name in names}
  for name in names:
    (root / name).mkdir(parents=True)
    prompt = {"input": "a fox", "edit": f"make it {name}", "output": "a blue fox"}
    sets.dump(root / name / "prompt.json", prompt)
    lines = [json.dumps({"seed": int(s), "sim_0": 0.2, "sim_dir": 0.3}) for s in seeds[name]]
    (root / name / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for seed in seeds[name]:
      for side in (0, 1):
        sets.save(root / name / f"{seed}_{side}.jpg", 2 * int(seed) + side, kind="JPEG")
  if listed:
    sets.dump(root / "seeds.json", [[name, seeds[name]] for name in names])


def ip2p_parquet(root, count=2, **renamed) -> None:
  schema = {
    "original_prompt": TEXT,
    "original_image": sets.HUB_IMAGE,
    "edit_prompt": TEXT,
    "edited_prompt": TEXT,
    "edited_image": sets.HUB_IMAGE,
  }
  rows = [
    {
      "original_prompt": "a fox",
      "original_image": hub_image(2 * i),
      "edit_prompt": f"edit {i}",
      "edited_prompt": "a blue fox",
      "edited_image": hub_image(2 * i + 1),
    }
    for i in range(count)
  ]
  name = renamed.get("original_image", "original_image")
  schema = {name if k == "original_image" else k: v for k, v in schema.items()}
  rows = [{name if k == "original_image" else k: v for k, v in row.items()} for row in rows]
  write_parquet(root / "data/train-00000-of-00001.parquet", schema, rows)


def magicbrush(root, count=2) -> None:
  schema = {
    "img_id": TEXT,
    "turn_index": pa.int32(),
    "source_img": sets.HUB_IMAGE,
    "mask_img": sets.HUB_IMAGE,
    "instruction": TEXT,
    "target_img": sets.HUB_IMAGE,
  }
  rows = [
    {
      "img_id": "242679",
      "turn_index": 1 + i,
      "source_img": hub_image(i),
      "mask_img": hub_image(100 + i),
      "instruction": f"edit {i}",
      "target_img": hub_image(i + 1),
    }
    for i in range(count)
  ]
  write_parquet(root / "data/train-00000-of-00051-9fd9f23afb4d4fe7.parquet", schema, rows)


def hive(root, count=2) -> None:
  for i in range(count + 1):
    sets.save(root / f"images/{i}.jpg", i, kind="JPEG")
  lines = [
    {
      "instruction": f"edit {i}",
      "source_img": f"images/{i}.jpg",
      "edited_img": f"images/{i + 1}.jpg",
    }
    for i in range(count)
  ]
  (root / "training_1M.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def imgedit_edit(root, name: str, seed: int, prompt: str) -> dict:
  for side, kind in enumerate(("original", "result")):
    sets.save(root / f"{name}/{kind}_{seed}.png", 2 * seed + side)
  return {
    "input_images": [f"{name}/original_{seed}.png"],
    "output_images": [f"{name}/result_{seed}.png"],
    "prompt": prompt,
  }


EDIT = pa.struct(
  [("input_images", pa.list_(TEXT)), ("output_images", pa.list_(TEXT)), ("prompt", TEXT)]
)


def imgedit(root, count=2) -> None:
  name = "results_remove_laion_part5/00094_00030_000304748"
  rows = [imgedit_edit(root / "Singleturn", name, i, f"edit {i}") for i in range(count)]
  schema = {field.name: field.type for field in EDIT}
  write_parquet(root / "Parquet/remove_part5.parquet", schema, rows)


def imgedit_turns(root) -> None:
  name = "results_version_backtracking_part0/00031_00020_000209651"
  turns = [imgedit_edit(root, name, i, f"edit {i}") for i in range(3)]
  path = root / "version_backtracking_part0.parquet"
  write_parquet(path, {"data": pa.list_(EDIT)}, [{"data": turns}])


SETS = {
  "instructpix2pix": ip2p_parquet,
  "magicbrush": magicbrush,
  "hive": hive,
  "imgedit": imgedit,
}


@pytest.mark.parametrize("kind", SETS)
def test_an_edit_is_preferred_to_its_source(kind, tmp_path):
  SETS[kind](tmp_path, count=8)
  pairs = raw_pairs(kind, tmp_path)
  assert [pair.prompt for pair in pairs] == [f"edit {i}" for i in range(8)]
  assert {pair.p0 for pair in pairs} == {0.0, 1.0}  # positions do not reveal the label
  for pair in pairs:
    images = (pair.image_0, pair.image_1)
    assert pair.condition == images[int(pair.p0)]
    assert images[0] != images[1]
  assert len({pair.id for pair in pairs}) == 8


@pytest.mark.parametrize("listed", [True, False])
def test_folders_of_instructpix2pix_hold_an_edit_for_each_seed(listed, tmp_path):
  ip2p_folders(tmp_path, listed=listed)
  pairs = raw_pairs("instructpix2pix", tmp_path)
  assert [pair.id for pair in pairs] == ["0000000/12", "0000000/3", "0000001/7"]
  assert pairs[2].prompt == "make it 0000001"
  assert pairs[2].condition == "0000001/7_0.jpg"
  assert {pairs[2].image_0, pairs[2].image_1} == {"0000001/7_0.jpg", "0000001/7_1.jpg"}


def test_the_samples_of_diffusers_name_the_source_input_image(tmp_path):
  ip2p_parquet(tmp_path, original_image="input_image")
  assert len(raw_pairs("instructpix2pix", tmp_path)) == 2


def test_a_later_turn_of_magicbrush_is_an_edit_of_the_turn_before(tmp_path):
  magicbrush(tmp_path)
  first, second = raw_pairs("magicbrush", tmp_path)
  assert (first.id, second.id) == ("242679-1", "242679-2")
  assert second.condition in (first.image_0, first.image_1)


def test_turns_of_imgedit_are_edits_of_their_own(tmp_path):
  imgedit_turns(tmp_path)
  pairs = raw_pairs("imgedit", tmp_path)
  assert [pair.prompt for pair in pairs] == ["edit 0", "edit 1", "edit 2"]
  assert [pair.id.rsplit(":", 1)[1] for pair in pairs] == ["1", "2", "3"]


def test_an_edit_of_several_images_is_refused(tmp_path):
  imgedit(tmp_path)
  path = tmp_path / "Parquet/remove_part5.parquet"
  rows = pq.read_table(path).to_pylist()
  rows[0]["input_images"] *= 2
  write_parquet(path, {field.name: field.type for field in EDIT}, rows)
  with pytest.raises(InputError, match="input_images must hold one image, got 2"):
    raw_pairs("imgedit", tmp_path)


def test_a_set_of_one_edit_each_is_converted_where_the_rejected_image_is_chosen(tmp_path):
  ip2p_folders(tmp_path / "set")
  (tmp_path / "set/0000001/7_1.jpg").unlink()
  source = source_reader.find("instructpix2pix", tmp_path / "set")
  with pytest.raises(InputError, match=r"--rejected=source makes pairs"):
    convert.convert(source, tmp_path / "out", Options())
  report = convert.convert(source, tmp_path / "out", Options(rejected="source", on_bad_row="skip"))
  assert report["kept"] == 2
  assert "7_1.jpg" in bad_rows(tmp_path / "out")[0]["reason"]
  for pair in all_pairs(tmp_path / "out"):
    assert pair.condition == (pair.image_1 if pair.p0 == 1 else pair.image_0)


def test_a_rejected_image_is_not_chosen_for_sets_that_have_one(tmp_path):
  sets.open_image_preferences(tmp_path / "train-0.parquet")
  source = source_reader.find("open-image-preferences", tmp_path)
  with pytest.raises(InputError, match="has rejected images; leave it out"):
    convert.convert(source, tmp_path / "out", Options(rejected="source"))


def test_own_folders_may_have_one_of_source_images(tmp_path):
  for folder in ("winner", "loser", "source"):
    for i in range(2):
      sets.save(tmp_path / f"{folder}/{i}.png", i)
  for i in range(2):
    (tmp_path / "captions").mkdir(exist_ok=True)
    (tmp_path / f"captions/{i}.txt").write_text(f"edit {i}")
  assert [p.condition for p in raw_pairs("custom", tmp_path)] == ["source/0.png", "source/1.png"]
  (tmp_path / "source/1.png").unlink()
  with pytest.raises(InputError, match="source/ must hold one image '1', found none"):
    raw_pairs("custom", tmp_path)


def test_a_damaged_list_of_seeds_is_named(tmp_path):
  ip2p_folders(tmp_path)
  sets.dump(tmp_path / "seeds.json", [["0000000", "12"]])
  with pytest.raises(InputError, match=r"seeds\.json: \['0000000', '12'\] is not \[NAME"):
    raw_pairs("instructpix2pix", tmp_path)
