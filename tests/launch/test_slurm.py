"""A run in a fake Slurm cluster."""

import os
import shutil
import subprocess

import pytest

from tests.launch.room import ROOT, Room, commands

TRAIN = ("--", "--config", "configs/digits_dmpo.py", "--config.note=a b")


@pytest.fixture
def room(tmp_path):
  room = Room(tmp_path)
  (tmp_path / "venv/bin").mkdir(parents=True)
  os.symlink(tmp_path / "bin/dmpo-jax", tmp_path / "venv/bin/dmpo-jax")
  return room


def _submit(room, *more):
  options = (f"--venv={room.folder}/venv", f"--workdir={room.folder}/run", "--nodes=2", "--gpus=4")
  return room.run("slurm.sh", "submit", *options, *more, *TRAIN)


def _start(room):
  """Runs the submitted job as Slurm does: a copy of the script, in the folder of --chdir."""
  [call] = room.called("sbatch")
  options = dict(w.partition("=")[::2] for w in call if w.startswith("--") and "=" in w)
  position = next(i for i, w in enumerate(call) if w.endswith("slurm.sh"))
  copy = room.folder / "slurm_script"
  shutil.copy(call[position], copy)
  exported = dict(w.split("=", 1) for w in options["--export"].split(",") if "=" in w)
  return subprocess.run(
    [copy, *call[position + 1 :]],
    cwd=options["--chdir"],
    env=room.environment(SLURM_JOB_ID="17", **exported),
    capture_output=True,
    text=True,
    timeout=60,
  )


def test_one_process_for_each_gpu_and_a_signal_before_the_time_limit(room):
  assert (
    _submit(room, "--partition=gpu", "--account=lab", "--extra=--qos=high --mem=0").returncode == 0
  )
  [call] = room.called("sbatch")
  assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"} < set(call)
  # JAX gives each process the GPU of its local number: all must be visible to it.
  assert not [w for w in call if w.startswith("--gpus-per-task")]
  assert {"--signal=TERM@300", "--requeue", "--open-mode=append"} < set(call)
  assert {"--partition=gpu", "--account=lab", "--qos=high", "--mem=0"} < set(call)


def test_a_job_trains_and_exits(room):
  room.set(plan=[[0, ""]])
  _submit(room)
  result = _start(room)
  assert result.returncode == 0, result.stderr
  [srun] = room.called("srun")
  trained = srun[srun.index(f"{room.folder}/venv/bin/dmpo-jax") :]
  assert trained[1:4] == ["train", "--workdir", f"{room.folder}/run"]
  assert trained[4:] == ["--distributed", "--no-progress", *TRAIN[1:]]
  assert room.requeued == 0


def test_a_preempted_job_is_requeued_until_it_is_done(room):
  room.set(plan=[[75, "", 10], [76, "", 20], [137, "", 30], [0, ""]])
  _submit(room)
  starts = 0
  while room.requeued == starts:
    _start(room)
    starts += 1
  assert starts == 4
  assert len({tuple(c) for c in room.called("srun")}) == 1


@pytest.mark.parametrize("status", [2, 1, 130])
def test_bad_input_and_defects_are_not_requeued(status, room):
  room.set(plan=[[status, ""]])
  _submit(room)
  assert _start(room).returncode == status
  assert room.requeued == 0


def test_starts_without_a_new_checkpoint_are_limited(room):
  room.set(plan=[[76, "", 10], *[[76, ""]] * 9])
  _submit(room, "--limit=2")
  statuses = [_start(room).returncode for _ in range(4)]
  assert statuses == [0, 0, 0, 2]
  assert room.requeued == 3


def test_a_job_in_the_queue_is_not_submitted_again(room):
  assert _submit(room).returncode == 0
  again = _submit(room)
  assert again.returncode == 0
  assert "job 17 exists already" in again.stderr
  assert len(room.called("sbatch")) == 1


def test_a_dry_run_prints_the_commands_of_a_real_run_and_runs_none(room):
  dry = _submit(room, "--dry-run")
  assert room.calls == []
  assert not (room.folder / "run").exists()
  assert _submit(room).returncode == 0
  printed = [c for c in commands(dry.stdout) if c[0] != "mkdir"]
  assert printed == room.calls


def test_install_makes_an_environment_with_jax_for_gpus(room):
  dry = room.run("slurm.sh", "install", "--dry-run", "--venv=/shared/venv")
  make, install = commands(dry.stdout)
  assert make == ["python3", "-m", "venv", "/shared/venv"]
  assert install[0] == "/shared/venv/bin/python"
  assert install[-2:] == [str(ROOT), "jax[cuda13]"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("--nodes=0",), "at least 1"),
    (("--gpus=all",), "not a whole number"),
    (("--time=soon",), "--time 'soon'"),
    (("--workdir=s3://bucket/run",), "expected gs://BUCKET/FOLDER, or a path"),
    (("--venv=/nowhere",), "run launch/slurm.sh install"),
  ],
)
def test_bad_input_is_refused_before_anything_is_submitted(options, message, room):
  result = _submit(room, *options)
  assert result.returncode == 2
  assert message in result.stderr
  assert room.calls == []


def test_the_job_command_is_refused_outside_of_a_job(room):
  result = room.run("slurm.sh", "job", f"--workdir={room.folder}/run", *TRAIN)
  assert result.returncode == 2
  assert "submit" in result.stderr
