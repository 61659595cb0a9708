"""Runs that train a scorer, on pairs of squares of which the redder one is preferred."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dmpo_jax.commands.main import main
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers import load_scorer
from dmpo_jax.models import trees
from dmpo_jax.reward import config as configs
from dmpo_jax.reward import model as models
from dmpo_jax.reward import objective
from dmpo_jax.reward.run import train
from dmpo_jax.training.monitor import metrics

SIZE = 8
MODEL = {
  "projection_dim": 8,
  "text_config": {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
  },
  "vision_config": {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 4,
  },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Pairs of coloured squares."""
  root = tmp_path_factory.mktemp("pairs")
  rng, rows = np.random.default_rng(0), ["prompt,image_0,image_1,label_0"]
  for i in range(60):
    colours = rng.integers(0, 255, (2, 3))
    for side, colour in enumerate(colours.tolist()):
      Image.new("RGB", (SIZE, SIZE), tuple(colour)).save(root / f"{i}-{side}.png")
    label = 0.5 if i == 7 else int(colours[0, 0] > colours[1, 0])
    rows.append(f"square {i},{i}-0.png,{i}-1.png,{label}")
  (root / "pairs.csv").write_text("\n".join(rows))
  source = source_reader.find("custom", root / "pairs.csv")
  options = Options(splits={"train": 0.7, "validation": 0.3})
  convert.convert(source, root / "converted", options)
  return root / "converted"


def config_of(folder, **changes):
  config = configs.default()
  config.model = ConfigDict(MODEL)
  config.data = ConfigDict({"name": "pairs", "folder": str(folder), "size": SIZE, "flip": True})
  config.shift, config.held_out.every = 1, 20
  config.batch_size, config.num_steps, config.checkpoint.every = 8, 60, 30
  config.optimizer.learning_rate, config.ema_decay, config.num_devices = 1e-2, 0.8, 1
  config.update(changes)
  return config


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  return train(config_of(folder), workdir, show_progress=False), workdir


def weights(result):
  return (result.folder / "model.safetensors").read_bytes()


def test_a_scorer_learns_a_preference_and_ranks_held_out_captions_by_it(whole):
  result, workdir = whole
  assert result.held_out["accuracy"] > 0.75
  records = metrics.read(workdir, "held_out")
  assert [record["step"] for record in records] == [20, 40, 60]
  assert records[-1]["accuracy"] == result.held_out["accuracy"]
  assert json.loads((workdir / "scorer.json").read_text())["held_out"] == result.held_out
  first, *_, last = metrics.read(workdir)
  assert last["loss"] < first["loss"]


def test_a_resumed_run_ends_with_the_weights_and_metrics_of_a_whole_one(whole, folder, tmp_path):
  config = config_of(folder, num_steps=30)
  train(config, tmp_path / "run", show_progress=False)
  config.num_steps = 60
  resumed = train(config, tmp_path / "run", show_progress=False)
  assert weights(resumed) == weights(whole[0])
  assert metrics.read(tmp_path / "run") == metrics.read(whole[1])


def test_a_finished_run_is_exported_again_without_a_step(whole, folder):
  result, workdir = whole
  before = weights(result)
  assert train(config_of(folder), workdir, show_progress=False) == result
  assert weights(result) == before


def test_four_devices_agree_with_one(whole, folder, tmp_path):
  config = config_of(folder, num_devices=4, num_steps=2)
  config.mesh.fsdp = 2
  train(config, tmp_path / "run", show_progress=False)
  for one, four in zip(metrics.read(whole[1]), metrics.read(tmp_path / "run"), strict=False):
    np.testing.assert_allclose(four["loss"], one["loss"], rtol=1e-4)
    np.testing.assert_allclose(four["gradient_norm"], one["gradient_norm"], rtol=1e-3)


def test_transformers_and_the_scorer_pickscore_load_the_folder_and_give_the_same_scores(
  whole, tmp_path
):
  transformers = pytest.importorskip("transformers")
  import torch

  folder = whole[0].folder
  theirs = transformers.CLIPModel.from_pretrained(folder)
  processor = transformers.CLIPImageProcessor.from_pretrained(folder)
  words = transformers.CLIPTokenizer.from_pretrained(folder)
  pixels = np.random.default_rng(0).integers(0, 255, (3, SIZE, SIZE, 3), np.uint8)
  prompts = ["square 1", "a square 22", "circle"]
  with torch.no_grad():
    text = words(prompts, padding="max_length", truncation=True, max_length=6, return_tensors="pt")
    images = processor([Image.fromarray(x) for x in pixels], return_tensors="pt")
    logits = theirs(**text, **images).logits_per_image.diagonal().numpy()
  config = ConfigDict({"pretrained": str(folder)})
  model = models.load(config, [])
  clip = objective.build(model.config, None)
  ids, _ = model.tokenize(prompts)
  ours = objective.scores(
    clip, model.params, model.normalisation(pixels)[:, None], ids["input_ids"]
  )[:, 0]
  np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)
  pickscore = load_scorer("pickscore", str(folder))
  np.testing.assert_allclose(pickscore.score(pixels, prompts), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_goes_on_from_a_folder(whole, folder, tmp_path):
  config = config_of(folder, num_steps=1, pretrained=str(whole[0].folder))
  config.model, config.held_out.every = ConfigDict(), 0
  config.optimizer.learning_rate = 1e-12
  result = train(config, tmp_path / "run", show_progress=False)
  np.testing.assert_allclose(result.held_out["accuracy"], whole[0].held_out["accuracy"], atol=1e-6)


def test_a_new_model_has_a_token_for_each_word_and_depends_on_the_seed():
  model = models.create(MODEL, ["red square", "blue"], seed=3)
  assert model.tokenize(["red blue square"])[0]["input_ids"].shape == (1, 6)
  again = models.create(MODEL, ["blue", "red square"], seed=3)
  same = jax.tree.map(np.array_equal, model.params, again.params)
  assert all(trees.flatten(same).values())
  other = models.create(MODEL, ["red square", "blue"], seed=4)
  assert not np.array_equal(
    model.params["visual_projection"]["kernel"], other.params["visual_projection"]["kernel"]
  )
  assert dataclasses.replace(model, params={}).image_size == SIZE


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"shifts": 2}, "unknown config key 'shifts'"),
    ({"shift": -1}, "config.shift must be"),
    ({"label_smoothing": 0.5}, "config.label_smoothing must be a number in"),
    ({"pretrained": "x"}, "set either config.pretrained"),
    ({"dtype": "float16"}, "config.dtype must be 'float32' or 'bfloat16'"),
    ({"batch_size": 0}, "config.batch_size"),
    ({"data": {"name": "digits"}}, "config.data.name must be 'pairs' or 'mixture'"),
    ({"data": {"size": 16}}, "config.data.size is 16, and the model's image_size 8"),
    ({"held_out": {"split": "test"}}, "unknown split of"),
    ({"model": {"text_config": {"vocab_size": 9}}}, "vocab_size, which follows from the captions"),
  ],
)
def test_a_config_that_cannot_be_trained_is_refused(change, message, folder, tmp_path):
  config = config_of(folder)
  with config.unlocked():
    config.update(change)
  with pytest.raises(InputError, match=message):
    train(config, tmp_path / "run", show_progress=False)
  assert not (tmp_path / "run").exists()


def test_the_command_prints_accuracy_and_folder(whole, capsys, tmp_path, folder):
  program = tmp_path / "config.py"
  program.write_text(
    "from tests.reward.test_run import config_of\n"
    f"def get_config():\n  return config_of({str(folder)!r})\n"
  )
  arguments = ["--config", str(program), "--workdir", str(whole[1]), "--no-progress"]
  assert main(["train-scorer", *arguments]) == 0
  assert "60 steps done; held-out accuracy" in capsys.readouterr().out
