"""Any row gives valid pairs or an InputError.

More cases: DMPO_JAX_FUZZ_CASES=5000 python -m pytest tests/data/convert/test_convert_fuzz.py
"""

import os
import pathlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from dmpo_jax.data import images, pairs, tfds_folder
from dmpo_jax.data.convert import source_reader, tables
from dmpo_jax.data.convert.options import LABELS, Options
from dmpo_jax.data.convert.shard import pairs_of_row
from dmpo_jax.data.convert.sources import SOURCES
from dmpo_jax.errors import InputError
from tests.data import sets

CASES = int(os.environ.get("DMPO_JAX_FUZZ_CASES", "40"))
FUZZ = settings(
  max_examples=CASES,
  deadline=None,
  suppress_health_check=list(HealthCheck),
  derandomize=CASES == 40,
)
COLUMNS = {
  "pickapic": (*SOURCES["pickapic"].COLUMNS, "model_0", "user_id"),
  "hpdv2": ("prompt", "file_path", "human_preference", "image_path", "rank", "raw_annotations"),
  "hpdv3": ("prompt", "path1", "path2", "model1", "confidence", "choice_dist"),
  "imagerewarddb": ("id", "prompt", "generations", "ranking"),
  "open-image-preferences": ("id", "prompt", "chosen", "rejected", "chosen_model"),
  "custom": (*("prompt", "image_0", "image_1", "label_0", "id", "weight"), "score_0", "score_1"),
}
IMAGES = [sets.encoded(i, kind=kind) for i, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF"))]
IMAGES.append(sets.encoded(5, mode="P"))
IMAGES.append(sets.encoded(6, kind="JPEG", mode="CMYK"))


@st.composite
def corrupted(draw) -> bytes:
  """An image's bytes with a few of them changed, or cut short."""
  data = bytearray(draw(st.sampled_from(IMAGES)))
  for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=6)):
    data[place] = draw(st.integers(0, 255))
  return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


TEXT = st.text(max_size=12) | st.sampled_from(["\ud800", "a" * 30_000, "\0", "0.png", "../0.png"])
NUMBER = (
  st.floats()
  | st.integers()
  | st.sampled_from([0, 1, 0.5, 1.0, 2**70, 10**400, -0.0, float("nan"), True])
)
SIMPLE = st.none() | NUMBER | TEXT | st.binary(max_size=12) | corrupted() | st.sampled_from(IMAGES)
ANY = st.recursive(
  SIMPLE,
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["bytes", "path", "rank", "x"]), inner, max_size=3)
  ),
  max_leaves=6,
)
# Values that are valid often enough for whole rows to be valid.
LIKELY = {
  "has_label": st.booleans(),
  "label_0": st.sampled_from([0.0, 0.5, 1.0]),
  "num_example_per_prompt": st.integers(1, 3),
  "human_preference": st.sampled_from([[0, 1], [1, 0], [1, 1]]),
  "rank": st.lists(st.integers(1, 3), min_size=2, max_size=3),
  "ranking": st.lists(st.integers(1, 3), min_size=2, max_size=3),
  "raw_annotations": st.lists(
    st.fixed_dictionaries({"rank": st.lists(st.integers(1, 3), min_size=2, max_size=3)}), max_size=3
  ),
  "choice_dist": st.lists(st.integers(0, 9), min_size=2, max_size=2),
  "confidence": st.floats(0, 1),
  "weight": st.floats(0.1, 2),
  "chosen": st.fixed_dictionaries({"bytes": st.sampled_from(IMAGES), "path": st.none()}),
}
LIKELY |= dict.fromkeys(("jpg_0", "jpg_1", "rejected"), st.sampled_from(IMAGES))
LIKELY |= dict.fromkeys(("path1", "path2"), st.sampled_from(["0.png", "1.png"]))
LIKELY |= dict.fromkeys(("image_0", "image_1"), st.sampled_from(["0.png", "1.png", IMAGES[0]]))
PATHS = st.lists(st.sampled_from(["0.png", "1.png"]), min_size=2, max_size=3)
LIKELY |= dict.fromkeys(("file_path", "image_path", "generations"), PATHS)
LIKELY |= dict.fromkeys(("score_0", "score_1"), st.floats(-9, 9))
LIKELY |= dict.fromkeys(("prompt", "caption", "id"), st.sampled_from(["a fox", "b"]))


@st.composite
def row(draw, kind: str) -> dict:
  """A row of a source: likely values, up to three of them replaced by any value or left out."""
  values = {name: draw(LIKELY.get(name, st.sampled_from(["x", 3]))) for name in COLUMNS[kind]}
  if "label_1" in values:
    values["label_1"] = 1 - values["label_0"]
  for name in draw(st.lists(st.sampled_from(COLUMNS[kind]), max_size=3)):
    if draw(st.booleans()):
      values[name] = draw(ANY)
    else:
      values.pop(name, None)
  return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("fuzz")
  for i in (0, 1):
    sets.save(root / f"{i}.png", i)
  return root


@pytest.mark.parametrize("kind", COLUMNS)
@FUZZ
@given(data=st.data())
def test_any_row_gives_valid_pairs_or_an_input_error(folder, kind, data):
  source = source_reader.Source(kind, "train", folder, folder, ["x"])
  options = Options(
    unlabelled=data.draw(st.sampled_from(["stop", "drop"])),
    labels=data.draw(st.sampled_from(LABELS)),
    ties=data.draw(st.sampled_from(["soft", "drop"])),
  )
  values = data.draw(row(kind))
  try:
    converted = pairs_of_row(source, values, "x:0", options, Counter())
  except InputError:
    event("refused")
    return
  event("converted" if converted else "dropped")
  for pair, _, _ in converted:
    pairs.validate(pair)
    assert images.read(pair.image_0).size == pair.size_0
    assert tfds_folder.deserialize(tfds_folder.serialize(pair)).image_1 == pair.image_1


@FUZZ
@given(corrupted())
def test_corrupted_images_decode_or_are_refused(data):
  try:
    picture = images.read(data)
  except images.UndecodableError:
    event("refused")
    return
  event("decoded")
  assert images.decode(picture.encoded).size == picture.size[::-1]
  image, size, factor = images.decode_scaled(picture.encoded, 4)
  assert size == picture.size
  assert image.width == -(-size[1] // factor)


@st.composite
def corrupted_table(draw, path: pathlib.Path) -> bytes:
  """A table's bytes with a few of them changed, or cut short."""
  data = bytearray(path.read_bytes())
  for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=6)):
    data[place] = draw(st.integers(0, 255))
  return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.parquet"])
@FUZZ
@given(data=st.data())
def test_corrupted_tables_are_read_or_refused(folder, name, data):
  path = folder / name
  lines = ['{"prompt": "é", "label_0": 1, "image_0": "0.png", "image_1": "1.png"}'] * 3
  if name == "t.parquet":
    sets.pickapic(path, [sets.pickapic_row(i, caption="é" * 50) for i in range(3)], group=2)
  elif name == "t.csv":
    path.write_text(
      'prompt,image_0,image_1,label_0\n"é ""x""",0.png,1.png,1\n' + "b,0.png,1.png,0\n"
    )
  else:
    path.write_text("\n".join(lines) if name == "t.jsonl" else f"[{','.join(lines)}]")
  path.write_bytes(data.draw(corrupted_table(path)))
  try:
    table = tables.plan(folder, name, (), rows=2)
    for chunk in table.chunks:
      for _, values in tables.read(folder, chunk, ("caption", "jpg_0", "prompt", "label_0")):
        assert isinstance(values, dict | InputError)
  except InputError:
    event("refused")
    return
  event("read to the end")
