"""The Python of docs/library.md runs, on a tiny model and tiny pairs."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.commands.main import main
from tests.interop.tiny import write_tiny_sd

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs/library.md").read_text()
CODE = dict(re.findall(r'^```python title="(\w+)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a tiny Stable Diffusion, `model`, and converted pairs, `data/mine`."""
  folder = tmp_path_factory.mktemp("library")
  write_tiny_sd(folder / "model")
  for i in range(2):
    Image.new("RGB", (16, 16), (100 * i, 0, 0)).save(folder / f"{i}.png")
  (folder / "pairs.csv").write_text("prompt,image_0,image_1,label_0\na fox,0.png,1.png,1\n")
  (folder / "data").mkdir()
  pairs, out = str(folder / "pairs.csv"), str(folder / "data/mine")
  assert main(["data", "convert", "custom", pairs, "--out", out, "--workers", "1"]) == 0
  return folder


def run(name, folder, monkeypatch):
  monkeypatch.chdir(folder)
  scope = {}
  exec(CODE[name], scope)
  return scope


def test_a_lora_is_made_merged_and_saved(folder, monkeypatch):
  scope = run("networks", folder, monkeypatch)
  assert scope["policy"].keys() == scope["base"].keys()
  assert (folder / "pytorch_lora_weights.safetensors").is_file()
  assert (folder / "lora.safetensors").is_file()


def test_two_seeds_give_two_images(folder, monkeypatch):
  images = run("sampling", folder, monkeypatch)["images"]
  assert images.shape == (2, 16, 16, 3)
  assert not np.allclose(images[0], images[1])


def test_a_pair_has_its_prompt(folder, monkeypatch):
  assert run("pairs", folder, monkeypatch)["pair"].prompt == "a fox"
