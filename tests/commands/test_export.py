"""`dmpo-jax export`: its folder in torch diffusers."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file

from dmpo_jax import interop
from dmpo_jax.commands.main import main
from dmpo_jax.models import trees

UNET = "unet/diffusion_pytorch_model"
KILLS = int(os.environ.get("DMPO_JAX_KILLS", "2"))


@pytest.mark.parametrize("weights", ["ema", "last"])
def test_the_chosen_weights_are_written(run, exported, weights):
  wanted = interop.to_torch_state(getattr(run, weights)["unet"])
  written = load_file(exported("--weights", weights) / f"{UNET}.safetensors")
  assert written.keys() == wanted.keys()
  assert all(np.array_equal(written[name], wanted[name]) for name in wanted)


def test_every_network_is_rounded_to_the_dtype(run, exported):
  out = exported("--dtype", "bf16")
  pipeline = interop.load_pipeline(out, dtype=None)
  start = interop.load_pipeline(run.start)
  for name, params in {**start.params, "unet": run.ema["unet"]}.items():
    wanted = trees.flatten(params)
    written = trees.flatten(pipeline.params[name])
    assert written.keys() == wanted.keys()
    for leaf in wanted:
      np.testing.assert_array_equal(written[leaf], wanted[leaf].astype(ml_dtypes.bfloat16))


def test_torch_loads_shards_of_a_variant(run, exported):
  out = exported("--dtype", "fp16", "--variant", "fp16", "--max-shard-size", "8KB")
  index = json.loads((out / f"{UNET}.safetensors.index.fp16.json").read_text())
  assert len(set(index["weight_map"].values())) > 1
  unet = UNet2DConditionModel.from_pretrained(
    out / "unet", variant="fp16", torch_dtype=torch.float16
  )
  wanted = interop.to_torch_state(run.ema["unet"])
  for name, tensor in unet.state_dict().items():
    np.testing.assert_array_equal(tensor.numpy(), wanted[name].astype(np.float16))


def test_a_malformed_size_is_refused_before_a_checkpoint_is_read(tmp_path, capsys):
  arguments = ["--workdir", str(tmp_path), "--out", str(tmp_path / "out")]
  assert main(["export", *arguments, "--max-shard-size", "many"]) == 2
  assert "max_shard_size is 'many'" in capsys.readouterr().err


def test_an_unknown_dtype_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    main(["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "out"), "--dtype", "int3"])
  assert stop.value.code == 2
  assert "fp16" in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_the_old_pipeline_or_the_new_one(run, exported, tmp_path):
  whole = [files(exported("--weights", weights)) for weights in ("ema", "last")]
  out = shutil.copytree(exported("--weights", "ema"), tmp_path / "out")
  chance, kills = random.Random(0), 0
  while kills < KILLS:
    weights = ("last", "ema")[whole.index(files(out))]
    arguments = ["export", "--workdir", run.workdir, "--out", out, "--weights", weights]
    process = subprocess.Popen([sys.executable, "-m", "dmpo_jax.commands.main", *arguments])
    while process.poll() is None and not set(os.listdir(tmp_path)) - {"out"}:
      time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.2))
    process.kill()
    kills += process.wait() == -9
    assert files(out) in whole
    assert len(os.listdir(tmp_path)) <= 2  # one hidden folder at most, that of the last writer
  assert main(["export", "--workdir", str(run.workdir), "--out", str(out)]) == 0
  assert os.listdir(tmp_path) == ["out"]


def files(folder):
  """Name and bytes of all files in a folder."""
  paths = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
