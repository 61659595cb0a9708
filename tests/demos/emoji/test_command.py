"""From a font to an aligned model: the commands of docs/emoji.md, with tiny font and network."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from dmpo_jax import data
from dmpo_jax.commands.main import main
from dmpo_jax.demos.emoji import build as emoji
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.monitor import metrics
from dmpo_jax.training.run import train
from tests.demos.emoji import font as emoji_font

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

import emoji as benchmark  # noqa: E402

SMALLEST = {
  "sample_size": 8,
  "down_block_types": ("DownBlock2D",),
  "up_block_types": ("UpBlock2D",),
  "block_out_channels": (8,),
  "norm_num_groups": 4,
  "cross_attention_dim": 8,
  "attention_head_dim": 2,
}
SHORT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}


def shrunk(name, **data):
  """Config for two steps of two examples on one device."""
  config = load_config(str(ROOT / f"configs/emoji_{name}.py"))
  config.data.update({"size": 8, **data})
  config.batch_size = config.num_steps = config.checkpoint.every = 2
  config.optimizer.warmup_steps, config.num_devices = 1, 1
  return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Folder with the results of the commands: emoji, reference, samples, pairs."""
  root = tmp_path_factory.mktemp("way")
  font, names = emoji_font.write(root / "font")
  paths = ["--font", str(font), "--names", str(names)]
  splits = ["--splits", "train=0.7,test=0.3"]  # three captions and one
  assert main(["data", "emoji", "--out", str(root / "emoji"), *splits, *paths]) == 0
  config = shrunk("reference", folder=str(root / "emoji"))
  config.model.unet.update(SMALLEST)
  config.model.text_encoder.update({**SHORT, "num_attention_heads": 2})
  pipeline = train(config, root / "reference", show_progress=False).pipeline
  prompts = ["--prompts", str(root / "emoji" / "prompts-train.txt"), "--seeds", "2"]
  out = ["--out", str(root / "samples"), "--steps", "1"]
  assert main(["sample", "--pipeline", str(pipeline), *prompts, *out]) == 0
  rule = ["--score", "colourfulness", "--temperature", "0.02"]
  assert main(["data", "judge", str(root / "samples"), *rule]) == 0
  table, folder = str(root / "samples" / "pairs.csv"), str(root / "pairs")
  assert main(["data", "convert", "pairs", table, "--out", folder, "--workers", "1"]) == 0
  return root


@pytest.mark.slow
def test_the_reference_learns_the_drawings_of_the_font(root):
  rows = metrics.read(root / "reference")
  assert [row["step"] for row in rows] == [1, 2]
  words = json.loads((root / "reference/pipeline/tokenizer/vocab.json").read_text())
  assert {"waving</w>", "apple</w>"} <= set(words)


@pytest.mark.slow
def test_generated_pairs_are_the_images_that_sample_makes(root, tmp_path):
  pipeline, out = str(root / "reference" / "pipeline"), tmp_path / "generated"
  prompts = ["--prompts", str(root / "emoji" / "prompts-train.txt"), "--per-prompt", "2"]
  rule = ["--steps", "1", "--scorer", "colourfulness", "--prompts-per-shard", "2"]
  command = ["data", "generate", "--pipeline", pipeline, *prompts, *rule, "--out", str(out)]
  assert main(command) == 0
  source = data.PairSource(out, "train")
  images = json.loads((root / "samples" / "manifest.json").read_text())["images"]
  files = {(image["prompt"], image["seed"]): root / "samples" / image["file"] for image in images}
  assert len(source) == len(files) // 2
  for pair in (source[i] for i in range(len(source))):
    assert {pair.seed_0, pair.seed_1} == {0, 1}
    for seed, encoded in ((pair.seed_0, pair.image_0), (pair.seed_1, pair.image_1)):
      expected = np.asarray(Image.open(files[pair.prompt, seed]), int)
      assert np.abs(np.asarray(Image.open(io.BytesIO(encoded)), int) - expected).max() <= 1


@pytest.mark.slow
def test_dmpo_aligns_the_reference_on_pairs_of_its_samples(root):
  config = shrunk("dmpo", folder=str(root / "pairs"))
  config.pipeline = str(root / "reference" / "pipeline")
  train(config, root / "dmpo", show_progress=False)
  rows = metrics.read(root / "dmpo")
  assert len(rows) == 2
  np.testing.assert_allclose(rows[0]["logit"], 0, atol=1e-2)
  assert rows[1]["loss"] > 0


@pytest.mark.slow
def test_the_benchmark_measures_both_splits_and_writes_the_picture(root, tmp_path, capsys):
  pipeline, out = str(root / "reference" / "pipeline"), tmp_path / "evaluation"
  few = ["--seeds", "2", "--steps", "1", "--out", str(out)]
  folder = ["--folder", str(root / "emoji")]
  assert benchmark.main([*folder, "--reference", pipeline, f"x={pipeline}", *few]) == 0
  output = capsys.readouterr().out
  for kind in ("training captions", "held-out captions"):
    assert f"reference, {kind}: nearest drawing right" in output
    assert f"x, {kind}: nearest drawing right" in output
  evaluation = json.loads((out / "evaluation.json").read_text())
  assert len(evaluation["models"]) == 2
  with Image.open(out / "samples.png") as picture:
    assert picture.width > 300


def test_dpo_differs_from_dmpo_in_the_loss_alone():
  dmpo, dpo = (
    load_config(str(ROOT / f"configs/emoji_{name}.py")).to_dict() for name in ("dmpo", "dpo")
  )
  assert (dmpo.pop("loss")["name"], dpo.pop("loss")["name"]) == ("dmpo", "dpo")
  assert dmpo == dpo


def test_help_names_the_default_files(capsys):
  with pytest.raises(SystemExit):
    main(["data", "emoji", "--help"])
  output = capsys.readouterr().out.replace("\n", "").replace(" ", "")
  assert str(emoji.FONT) in output
  assert str(emoji.NAMES) in output


def test_missing_packages_give_status_two_and_the_command_that_installs_them(
  monkeypatch, tmp_path, capsys
):
  font = tmp_path / "NotoColorEmoji.ttf"
  monkeypatch.setattr(emoji, "PACKAGES", {font: "fonts-noto-color-emoji"})
  _, names = emoji_font.write(tmp_path / "there")
  out = ["--out", str(tmp_path / "out"), "--font", str(font), "--names", str(names)]
  assert main(["data", "emoji", *out]) == 2
  assert "sudo apt-get install fonts-noto-color-emoji\n" in capsys.readouterr().err
