"""`dmpo-jax inspect` of what is missing, damaged or odd: one line that says what to do."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_a_path_without_a_model_is_refused(refused, start, tmp_path):
  (tmp_path / "notes.txt").write_text("")
  assert "file: notes.txt" in refused(tmp_path)
  assert "only .safetensors files are read" in refused(tmp_path / "notes.txt")
  assert "neither a file nor a folder" in refused(tmp_path / "gone")


def test_a_damaged_file_is_refused(refused, copy):
  (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-9])
  error = refused(copy)
  assert "damaged safetensors file" in error
  assert str(copy / "unet") in error


def test_a_revision_of_a_folder_is_refused(refused, copy):
  assert "is no repository of the hub, which alone has" in refused(copy, "--revision", "v1")


def test_a_missing_component_is_refused(refused, copy):
  shutil.rmtree(copy / "vae")
  assert "has no vae/" in refused(copy)


def test_a_variant_that_is_not_there_is_refused(refused, start):
  assert "no weights of variant 'fp16'; it has: none" in refused(start, "--variant", "fp16")


def test_a_checkpoint_that_is_not_there_is_refused(refused, run, tmp_path):
  (run.workdir / "checkpoints" / "9").mkdir()
  assert "has no checkpoint 9; it has 2, 4" in refused(run.workdir / "checkpoints" / "9")
  (run.workdir / "checkpoints" / "9").rmdir()
  shutil.copyfile(run.workdir / "run.json", tmp_path / "run.json")
  assert "has no checkpoint yet" in refused(tmp_path)


def test_a_damaged_checkpoint_is_refused(refused, run, tmp_path):
  workdir = shutil.copytree(run.workdir, tmp_path / "run")
  (workdir / "checkpoints" / "4" / "state" / "_METADATA").write_text("{")
  assert "is not a checkpoint or is damaged" in refused(workdir)


def test_sources_without_a_common_component_are_refused(refused, start, tmp_path):
  save_file({"other": np.zeros(1)}, tmp_path / "a.safetensors")
  assert "compare like with like" in refused(tmp_path / "a.safetensors", "--against", start)


def test_options_of_the_other_source_need_one(refused, start):
  assert "without --against" in refused(start, "--against-weights", "last")


# --- strangers' files ---


@pytest.mark.parametrize(
  ("option", "kind"), [("--weights", "no run"), ("--variant", "a single file")]
)
def test_an_option_that_has_no_effect_is_refused(option, kind, refused, start):
  path = start / WEIGHTS if option == "--variant" else start
  error = refused(path, option, "last")
  assert f"is {kind}, on which the option {option[2:]} has no effect" in error


def test_a_variant_of_a_run_is_refused(refused, run):
  assert "is a run, on which the option variant has no effect" in refused(
    run.workdir, "--variant", "fp16"
  )


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    ("unet/config.json", {"_class_name": ["a"]}, "_class_name = ['a'] is not supported"),
    ("text_encoder/config.json", {"architectures": [["a"]]}, "architectures = [['a']]"),
    ("model_index.json", {"../../secret": ["diffusers", "X"]}, "'../../secret' is no name"),
    ("model_index.json", {"unet": [1, 2]}, "component unet is [1, 2]"),
  ],
)
def test_a_config_of_the_wrong_types_is_one_line(file, content, message, refused, copy):
  (copy / file).write_text(json.dumps(content))
  error = refused(copy)
  assert message in error
  assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"pipeline": 3}, "pipeline"),
    ({"model": {"unet": 3}}, "unet"),
    ({"model": {"unet": {"architectures": [3]}}}, "architectures"),
    ({"lora": 3}, "lora"),
    ({"trained": 3}, "trained"),
    ({"data": 7}, "data"),
  ],
)
def test_a_run_of_the_wrong_types_is_one_line(change, message, refused, run, tmp_path):
  workdir = shutil.copytree(run.workdir, tmp_path / "run")
  content = json.loads((workdir / "run.json").read_text())
  content["config"] |= change
  (workdir / "run.json").write_text(json.dumps(content))
  error = refused(workdir)
  assert message in error
  assert "Traceback" not in error
  assert len(error.splitlines()) == 1


def test_control_characters_of_a_file_do_not_reach_the_terminal(tables, copy):
  for file in ("unet/config.json", "scheduler/scheduler_config.json"):
    config = json.loads((copy / file).read_text())
    title = "\x1b]0;owned\x07\u202e"
    config |= {"sample_size": title, "prediction_type": title, "_class_name": f"X{title}\n"}
    (copy / file).write_text(json.dumps(config))
  output = tables(copy)
  assert not [c for c in output if not c.isprintable() and c != "\n"]
  assert "\\x1b]0;owned" in output


def test_a_long_value_of_a_config_is_cut(tables, copy):
  config = json.loads((copy / "unet/config.json").read_text())
  config |= {"sample_size": "x" * 100_000, "block_out_channels": [1] * 100_000}
  (copy / "unet/config.json").write_text(json.dumps(config))
  assert len(tables(copy)) < 10_000


@pytest.mark.parametrize("name", ["²", "٣", "9" * 5000])
def test_a_folder_that_is_named_like_a_number_is_no_checkpoint(name, inspect, run, tmp_path):
  workdir = shutil.copytree(run.workdir, tmp_path / "run")
  (workdir / "checkpoints" / name[:200] / "state").mkdir(parents=True)
  assert inspect(workdir)["facts"]["step"].startswith("4 ")
