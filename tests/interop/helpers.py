"""Comparisons and edits shared by the tests of pipelines."""

import json

import jax
import numpy as np
import torch
from safetensors.numpy import load_file

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"


def read_json(file):
  return json.loads(file.read_text())


def write_json(file, content):
  file.write_text(json.dumps(content))


def edit_json(file, **changes):
  write_json(file, read_json(file) | changes)


def draw(*shape):
  return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def assert_same_trees(actual, wanted):
  jax.tree.map(lambda f, w: np.testing.assert_array_equal(f, w, strict=True), actual, wanted)


def assert_same_state(actual, wanted):
  """Torch modules of the same entries, to the bit."""
  actual, wanted = actual.state_dict(), wanted.state_dict()
  assert actual.keys() == wanted.keys()
  for name, tensor in wanted.items():
    assert actual[name].dtype == tensor.dtype, name
    assert torch.equal(actual[name], tensor), name


def read_state(folder):
  """All tensors in a folder's safetensors files."""
  return {k: a for file in sorted(folder.glob("*.safetensors")) for k, a in load_file(file).items()}


def snapshot(folder):
  return {
    file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
  }
