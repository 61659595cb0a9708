"""`dmpo-jax plan`: exit status and messages."""

import json

import pytest

from dmpo_jax.commands import plan
from dmpo_jax.commands.main import main

CONFIG = ["plan", "--config=configs/sd15_dmpo.py", "--topology=v5e-16"]
PLAN = {
  "slice": "v5e-16",
  "slices": 1,
  "topology": "v5e:4x4",
  "chips": 16,
  "mesh": {"data": 1, "fsdp": 16},
  "examples_per_chip": 8.0,
  "grad_accumulation_steps": 1,
  "remat": "full",
  "inputs": {"kind": "latents_and_embeddings", "size": 512, "images": 2},
  "versions": {"jax": "0.10.2", "libtpu": "0.0.42.1"},
  "bytes": {"parameters": 2**30, "batch": 2**30},
  "sampling": {"steps": 50, "forwards": 100, "model_flops": 80.4e12},
  "available": 15.75 * 2**30,
  "total": 20 * 2**30,
  "fits": False,
}


def test_a_step_that_does_not_fit_ends_with_status_3(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(plan, "_in_child", lambda options, pairs: PLAN)
  assert main([*CONFIG, f"--json={tmp_path / 'plan.json'}"]) == 3
  text = capsys.readouterr().out
  assert "it does NOT fit" in text
  assert "sampling an image: 100 forwards in 50 steps, 80.4 model TFLOP" in text
  assert json.loads((tmp_path / "plan.json").read_text()) == PLAN


def test_bad_input_in_the_child_has_status_2(capsys):
  assert main([*CONFIG, "--model=sd14"]) == 2
  assert "unknown published pipeline 'sd14'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("status", "stderr", "message"),
  [
    ("kill -9 $$", "", "killed by signal 9: most likely this machine has too little memory"),
    ("exit 134", "F0000 check failed", "the compiler failed; its last lines:\nF0000 check"),
  ],
)
def test_a_compiler_that_crashes_gives_a_message(
  monkeypatch, capsys, tmp_path, status, stderr, message
):
  python = tmp_path / "python"
  python.write_text(f"#!/bin/sh\necho '{stderr}' >&2\n{status}\n")
  python.chmod(0o755)
  monkeypatch.setattr(plan.sys, "executable", str(python))
  assert main(CONFIG) == 1
  assert message in capsys.readouterr().err
