"""Pairs of a set's edits and a model's own edits of the same sources."""

import numpy as np
import pytest

from dmpo_jax import pipelines
from dmpo_jax.commands.main import main
from dmpo_jax.data import images
from tests.data import sets
from tests.data import test_folder_pairs as folder_pairs
from tests.data.convert.conversions import all_pairs, files
from tests.training.tiny import smallest_config

NAMES = ("image_0", "image_1", "condition")
COUNT = 5


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
  """Edits of 8x8 pixels; the last one is larger."""
  rows = [
    {
      "id": f"e{i}",
      "prompt": f"digit {i}",
      "label_0": [1, 0][i % 2],
      "weight": 0.5,
      **{
        name: sets.encoded(3 * i + j, size=(24, 16) if i == 4 else (8, 8))
        for j, name in enumerate(NAMES)
      },
    }
    for i in range(COUNT)
  ]
  return folder_pairs.write_custom(tmp_path_factory.mktemp("edits"), rows)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  """A random pipeline that edits grey images of 8x8 pixels, as a folder."""
  model = smallest_config().model.to_dict()
  model["unet"] = {**model["unet"], "in_channels": 2}
  folder = tmp_path_factory.mktemp("pipeline") / "pipeline"
  pipelines.save(folder, pipelines.create(model, [f"digit {i}" for i in range(COUNT)], 0))
  return folder


def command(edits, pipeline, out, *more) -> int:
  return main(
    [
      *("data", "generate", "--pipeline", str(pipeline), "--edits", edits, "--out", str(out)),
      *("--steps", "2", "--batch-size", "4", "--prompts-per-shard", "2", *more),
    ]
  )


@pytest.fixture(scope="module")
def made(edits, pipeline, tmp_path_factory):
  out = tmp_path_factory.mktemp("made") / "out"
  assert command(edits, pipeline, out, "--own-edits", "2") == 0
  return out


def test_the_edit_of_the_set_is_preferred_to_each_of_the_models_own(made, edits, pipeline):
  records, ours = {pair.id: pair for pair in all_pairs(edits)}, all_pairs(made)
  assert len(ours) == 2 * COUNT
  for pair in ours:
    name = pair.id.split(":")[0]
    record = records[name]
    target, own = (pair.image_0, pair.image_1)[:: 1 if pair.p0 == 1 else -1]
    assert own not in (record.image_0, record.image_1)
    assert (pair.model_0 if pair.p0 == 0 else pair.model_1) == str(pipeline)
    assert (pair.prompt, pair.weight) == (record.prompt, 0.25)
    if name != "e4":
      assert target == (record.image_0 if record.p0 == 1 else record.image_1)
      assert pair.condition == record.condition
  assert {pair.p0 for pair in ours} == {0.0, 1.0}


def test_sets_own_edits_and_sources_have_one_size(made):
  for pair in all_pairs(made):
    for encoded in (pair.image_0, pair.image_1, pair.condition):
      assert images.decode(encoded).size == (8, 8)


def test_an_own_edit_is_what_sample_makes_of_the_source(made, edits, pipeline, tmp_path):
  record = all_pairs(edits)[1]
  (tmp_path / "source.png").write_bytes(record.condition)
  main(
    [
      *("sample", "--pipeline", str(pipeline), "--prompt", record.prompt, "--steps", "2"),
      *("--source", str(tmp_path / "source.png"), "--seeds", "2", "--out", str(tmp_path / "out")),
    ]
  )
  expected = sorted((tmp_path / "out").glob("00000*.png"))
  assert len(expected) == 2, sorted((tmp_path / "out").iterdir())
  for seed, path in enumerate(expected):
    pair = next(pair for pair in all_pairs(made) if pair.id == f"{record.id}:{seed}")
    own = images.decode(pair.image_1 if pair.p0 == 1 else pair.image_0)
    theirs = images.decode(images.read(path.read_bytes()).encoded)
    np.testing.assert_allclose(np.asarray(own, int), np.asarray(theirs, int), atol=1)


def test_a_folder_is_not_mixed_with_other_settings(made, edits, pipeline):
  before = files(made)
  assert command(edits, pipeline, made, "--own-edits", "2") == 0
  assert files(made) == before
  assert command(edits, pipeline, made, "--own-edits", "1") == 2


def test_a_scorer_does_not_belong_to_edits(edits, pipeline, tmp_path, capsys):
  assert command(edits, pipeline, tmp_path / "out", "--scorer", "brightness") == 2
  assert "neither --prompts nor --scorer" in capsys.readouterr().err
