"""Results of a finished run that are gone or damaged, and what a resumed run says of itself."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmpo_jax.commands.main import main
from dmpo_jax.errors import InputError
from dmpo_jax.training import resume
from dmpo_jax.training.export import export
from dmpo_jax.training.results import Result, read_summary, write_summary
from dmpo_jax.training.resume import record_versions, versions
from dmpo_jax.training.run import train
from dmpo_jax.training.run_directory import read_run, write_fingerprint
from tests.training.rows import computed
from tests.training.tiny import pairs_config

UNET = pathlib.Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def workdir(tmp_path):
  """A work directory with results of 60 steps."""
  for name in ("pipeline/unet/model", "pipeline/model_index.json", "lora/weights"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(f"content of {name}")
  write_summary(tmp_path, Result(tmp_path / "pipeline", 60, 0, 1.5, 0.5, 8.0, 2))
  return tmp_path


def test_whole_results_are_recognised(workdir, caplog):
  result = Result(workdir / "pipeline", **read_summary(workdir, 60))
  assert result == Result(workdir / "pipeline", 60, 0, 1.5, 0.5, 8.0, 2)
  assert caplog.text == ""


def test_a_moved_work_directory_is_recognised(workdir, tmp_path_factory):
  moved = shutil.move(workdir, tmp_path_factory.mktemp("to") / "moved")
  assert read_summary(moved, 60) is not None


def test_a_run_of_more_steps_is_not_finished(workdir):
  assert read_summary(workdir, 61) is None


def test_a_run_without_summary_is_not_finished(tmp_path):
  assert read_summary(tmp_path, 60) is None


def test_results_on_another_disk_behind_a_link_are_recognised(workdir, tmp_path_factory):
  elsewhere = shutil.move(workdir / "pipeline", tmp_path_factory.mktemp("disk") / "pipeline")
  (workdir / "pipeline").symlink_to(elsewhere)
  assert read_summary(workdir, 60) is not None
  write_summary(workdir, Result(workdir / "pipeline", 60, 0, 1.5, 0.5, 8.0, 2))
  assert len(json.loads((workdir / "summary.json").read_text())["files"]) == 3


def test_files_beside_the_results_are_not_looked_at(workdir):
  (workdir / "pipeline" / "README.md").write_text("my model")
  assert read_summary(workdir, 60) is not None


def damage(path, kind):
  if kind == "missing":
    path.unlink()
  elif kind == "truncated":
    path.write_bytes(path.read_bytes()[:-1])
  else:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize("name", ["pipeline/unet/model", "lora/weights"])
@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("missing", "is missing, which the finished run has written"),
    ("truncated", "bytes, the finished run wrote"),
    ("flipped", "has changed since the run finished"),
  ],
)
def test_a_damaged_result_is_named_and_will_be_written_again(workdir, caplog, name, kind, message):
  damage(workdir / name, kind)
  assert read_summary(workdir, 60) is None
  assert f"{name} " in caplog.text
  assert message in caplog.text
  assert "The results of the run are written again" in caplog.text


@pytest.mark.parametrize(
  "text",
  [
    "",
    '{"pipeline": "fx/base/pipeline", "steps"',
    "[]",
    "{}",
    '{"steps": "60"}',
    "[" * 4000,
    '{"steps": 60, "files": 3}',
  ],
)
def test_a_damaged_summary_is_told_and_written_again(workdir, caplog, text):
  (workdir / "summary.json").write_text(text)
  assert read_summary(workdir, 60) is None
  assert "summary.json " in caplog.text
  assert "The results of the run are written again" in caplog.text


@pytest.mark.parametrize(
  "listed",
  [
    3,
    [],
    {},
    {"pipeline/unet/model": 3},
    {"pipeline/unet/model": {"bytes": 1}},
    {"/etc/passwd": {"bytes": 1, "sha256": ""}},
    {"../other": {"bytes": 1, "sha256": ""}},
    {"\0": {"bytes": 1, "sha256": ""}},
  ],
)
def test_a_damaged_list_of_files_is_told_and_written_again(workdir, caplog, listed):
  summary = json.loads((workdir / "summary.json").read_text())
  (workdir / "summary.json").write_text(json.dumps({**summary, "files": listed}))
  assert read_summary(workdir, 60) is None
  assert "The results of the run are written again" in caplog.text


def test_a_finished_run_whose_pipeline_is_gone_writes_it_again(
  finished, pipeline, tmp_path, caplog
):
  run = shutil.copytree(finished, tmp_path / "run")
  shutil.rmtree(run / "pipeline")
  assert train(pairs_config(pipeline), run, show_progress=False).pipeline.is_dir()
  assert "is missing, which the finished run has written" in caplog.text
  assert (run / "pipeline" / UNET).read_bytes() == (finished / "pipeline" / UNET).read_bytes()


def test_a_finished_run_whose_checkpoints_are_gone_is_still_finished(finished, pipeline, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  shutil.rmtree(run / "checkpoints")
  assert train(pairs_config(pipeline), run, show_progress=False).steps == 6
  assert computed(run) == computed(finished)


def test_without_checkpoints_and_pipeline_a_finished_run_is_made_again(
  finished, pipeline, tmp_path, caplog
):
  run = shutil.copytree(finished, tmp_path / "run")
  shutil.rmtree(run / "checkpoints")
  (run / "pipeline" / UNET).unlink()
  train(pairs_config(pipeline), run, show_progress=False)
  assert "the run starts at step 0 again" in caplog.text
  assert computed(run) == computed(finished)
  assert (run / "pipeline" / UNET).read_bytes() == (finished / "pipeline" / UNET).read_bytes()


# Exports


def test_a_checkpoint_under_the_name_of_another_step_is_not_exported(finished, tmp_path):
  run = shutil.copytree(finished, tmp_path / "run")
  (run / "checkpoints" / "6").rename(run / "checkpoints" / "60")
  with pytest.raises(InputError, match=r"checkpoint of step 60 has the position .*belongs to a"):
    export(run, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_pipeline_that_has_changed_is_not_exported_with_the_weights_of_the_run(
  pipeline, finished, tmp_path, capsys
):
  run = shutil.copytree(finished, tmp_path / "run")
  base = shutil.copytree(pipeline, tmp_path / "base")
  tensors = load_file(base / UNET)
  tensors["conv_in.bias"] = tensors["conv_in.bias"] + np.float32(1e-3)
  save_file(tensors, base / UNET)
  content = read_run(run)
  content["config"]["pipeline"] = str(base)
  (run / "run.json").write_text(json.dumps(content))
  assert main(["export", "--workdir", str(run), "--out", str(tmp_path / "out")]) == 2
  assert "has other parameters than when the run started" in capsys.readouterr().err


def test_the_pipeline_that_a_run_compares_with_is_not_overwritten(pipeline, finished, capsys):
  assert main(["export", "--workdir", str(finished), "--out", str(pipeline)]) == 2
  assert "is the pipeline that the run started from" in capsys.readouterr().err


# Versions


def test_run_json_records_versions(finished):
  (entry,) = read_run(finished)["versions"]
  assert entry == {"step": 0, **versions()}
  assert {"dmpo_jax", "jax", "jaxlib", "python"} <= entry.keys()


def test_a_resume_with_other_versions_says_so_once(tmp_path, caplog, monkeypatch):
  write_fingerprint(tmp_path, {"config": {}})
  record_versions(tmp_path, 0)
  assert caplog.text == ""
  now = versions()
  monkeypatch.setattr(resume, "versions", lambda: {**now, "jax": "9.9.9"})
  record_versions(tmp_path, 30)
  assert f"other versions than it had (jax {now['jax']}, now 9.9.9)" in caplog.text
  assert "up to rounding, not bit for bit" in caplog.text
  caplog.clear()
  record_versions(tmp_path, 40)
  assert caplog.text == ""
  steps = [(entry["step"], entry["jax"]) for entry in read_run(tmp_path)["versions"]]
  assert steps == [(0, now["jax"]), (30, "9.9.9")]
  write_fingerprint(tmp_path, {"config": {}})  # versions do not make it another run


@pytest.mark.parametrize("stored", [None, 3, [3], {}, []])
def test_unreadable_versions_count_as_unknown(tmp_path, caplog, stored):
  write_fingerprint(tmp_path, {"config": {}})
  content = {**read_run(tmp_path), "versions": stored}
  (tmp_path / "run.json").write_text(json.dumps(content))
  record_versions(tmp_path, 5)
  assert "jax unknown, now" in caplog.text
