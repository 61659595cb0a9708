"""`dmpo-jax export`: its folder in torch diffusers."""

import json

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
