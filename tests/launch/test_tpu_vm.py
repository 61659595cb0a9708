"""A run on a TPU slice, against a fake gcloud."""

import re
import subprocess

import pytest

from tests.launch.room import Room, commands

PLACE = ("--project=p", "--zone=us-west4-a", "--poll=0")
TRAIN = ("--", "--config", "configs/digits_dmpo.py", "--config.note=it's")


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def _run(room, *more, training=TRAIN):
  share = room.folder / "share"
  share.mkdir(exist_ok=True)
  options = ("--share=10.0.0.2:/vol", f"--mount={share}", f"--workdir={share}/run")
  return room.run("tpu_vm.sh", "run", *PLACE, *options, *more, *training)


def _attempts(room):
  return [
    c for c in room.called("gcloud", "compute", "tpus", "tpu-vm", "ssh") if "attempt" in c[-1]
  ]


def _verbs(room):
  """Calls of gcloud, without the queries of states."""
  calls = [call[3:5] for call in room.called("gcloud", "compute")]
  return [" ".join(call) for call in calls if call[1] != "list"]


START = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh"]  # copy, install, guard, train


def test_a_run_waits_in_the_queue_installs_trains_and_deletes_the_slice(room):
  room.set(plan=[[0, ""]])
  result = _run(room, "--when-done=delete")
  assert result.returncode == 0, result.stderr
  assert _verbs(room) == ["queued-resources create", *START, "queued-resources delete"]
  assert "WAITING_FOR_RESOURCES" in result.stderr
  [trained] = room.called("dmpo-jax")
  assert trained[1:4] == ["train", "--workdir", f"{room.folder}/share/run"]
  assert trained[4:] == ["--distributed", "--no-progress", *TRAIN[1:]]
  assert room.called("uv")[-1][-2:] == ["./dmpo_jax[gcs]", "jax[tpu]"]
  assert room.called("sudo")[-1][1:3] == ["mount", "-t"]
  assert room.request is None
  assert "billed" not in result.stderr


BUCKET = ("--share=", "--workdir=gs://bucket/run")


def test_a_run_in_a_bucket_mounts_nothing_and_resumes_there_after_a_preemption(room):
  room.set(plan=[[75, "preempted"], [0, ""]])
  result = _run(room, *BUCKET)
  assert result.returncode == 0, result.stderr
  assert room.called("sudo") == []
  assert [call[2:4] for call in room.called("dmpo-jax")] == [["--workdir", "gs://bucket/run"]] * 2
  counts = [c for c in room.called("python") if "dmpo_jax.training.starts" in c]
  assert [c[3:5] for c in counts] == [["gs://bucket/run", "5"]] * 2
  assert counts[0] == counts[1]
  assert "deletes the directory of the run" not in result.stderr


def test_a_result_in_a_bucket_is_fetched_from_there(room):
  dry = room.run("tpu_vm.sh", "fetch", "--dry-run", *PLACE, "--from=gs://bucket/run/pipeline")
  assert commands(dry.stdout) == [
    ["gcloud", "storage", "cp", "gs://bucket/run/pipeline", ".", "--recursive"]
  ]


def test_the_archive_of_the_code_is_in_a_folder_of_its_own_which_is_removed(room):
  (room.folder / "planted").write_text("mine")
  (room.folder / "dmpo_jax-dmpo.tar.gz").symlink_to(room.folder / "planted")
  room.set(plan=[[0, ""]])
  assert _run(room).returncode == 0
  assert (room.folder / "planted").read_text() == "mine"
  assert not list(room.folder.glob("dmpo_jax.*"))


def test_a_mounted_share_is_not_opened_to_everybody(room):
  room.set(plan=[[0, ""]])
  assert _run(room).returncode == 0
  assert not [call for call in room.calls if "chmod" in call]


def test_after_a_preemption_the_run_resumes_on_a_new_slice(room):
  room.set(plan=[[75, "preempted", 100], [0, "", 200]])
  result = _run(room)
  assert result.returncode == 0, result.stderr
  create = ["queued-resources create", *START]
  assert _verbs(room) == [*create, "queued-resources delete", *create]
  first, second = room.called("dmpo-jax")
  assert first == second
  assert "kept and billed" in result.stderr


def test_a_slice_that_vanishes_during_a_connection_is_replaced(room):
  # gcloud's status is then 1 or 255, as for a lost connection.
  room.set(plan=[[1, "preempted", 100], [255, "preempted", 200], [0, ""]])
  assert _run(room).returncode == 0
  assert _verbs(room).count("queued-resources create") == 3


def test_after_a_lost_worker_the_run_resumes_on_the_same_slice_without_another_install(room):
  room.set(plan=[[76, "", 100], [137, "", 200], [0, "", 300]])
  assert _run(room).returncode == 0
  assert _verbs(room).count("queued-resources create") == 1
  assert len(room.called("dmpo-jax")) == 3
  assert len(room.called("uv")) == 2  # the environment and the package, once


def test_after_a_lost_connection_the_running_attempt_is_joined(room):
  room.set(plan=[[0, "connection lost"]])
  result = _run(room)
  assert result.returncode == 0, result.stderr
  assert "joining it again" in result.stderr
  assert len(_attempts(room)) == 2
  assert len(room.called("dmpo-jax")) == 1
  assert _attempts(room)[0] == _attempts(room)[1]


@pytest.mark.parametrize("status", [2, 1, 130])
def test_bad_input_and_defects_are_not_retried(status, room):
  room.set(plan=[[status, ""], [0, ""]])
  assert _run(room).returncode == status
  assert len(room.called("dmpo-jax")) == 1


def test_only_starts_without_a_new_checkpoint_are_limited(room):
  room.set(plan=[[76, "", 10], [76, "", 20], [76, "", 30], *[[76, ""]] * 9])
  result = _run(room, "--limit=2")
  assert result.returncode == 2
  assert "the last 2 starts left no checkpoint after step 30" in result.stderr
  assert len(room.called("dmpo-jax")) == 5


def test_a_new_run_counts_its_own_starts(room):
  room.set(plan=[[76, ""], [76, ""], [0, ""]])
  assert _run(room, "--limit=2").returncode == 2
  assert _run(room, "--limit=2", "--name=dmpo").returncode == 0


def test_create_leaves_a_ready_slice_alone(room):
  room.set(request="ACTIVE", slice="READY")
  assert room.run("tpu_vm.sh", "create", *PLACE).returncode == 0
  assert _verbs(room) == []


def test_create_replaces_a_preempted_slice(room):
  room.set(request="SUSPENDED", slice=None)
  assert room.run("tpu_vm.sh", "create", *PLACE).returncode == 0
  assert _verbs(room) == ["queued-resources delete", "queued-resources create"]


def test_a_refused_request_gives_the_reason_and_is_not_repeated(room):
  room.set(queue=["WAITING_FOR_RESOURCES", "FAILED"])
  result = room.run("tpu_vm.sh", "create", *PLACE)
  assert result.returncode == 1
  assert "no quota or no capacity for v5litepod-16 in us-west4-a" in result.stderr
  assert _verbs(room) == ["queued-resources create", "queued-resources describe"]


def test_waiting_for_capacity_has_a_limit(room):
  room.set(queue=["WAITING_FOR_RESOURCES"])
  result = room.run("tpu_vm.sh", "create", "--wait=1", "--poll=1", *PLACE[:2])
  assert result.returncode == 1
  assert "not ready after 1 s" in result.stderr


def test_delete_can_be_repeated(room):
  room.set(request="ACTIVE", slice="READY")
  for _ in range(2):
    assert room.run("tpu_vm.sh", "delete", *PLACE).returncode == 0
  assert _verbs(room) == ["queued-resources delete"]


def test_a_slice_can_be_created_directly(room):
  options = ("--via=direct", "--capacity=on-demand", "--type=v6e-8")
  assert room.run("tpu_vm.sh", "create", *PLACE, *options).returncode == 0
  [call] = room.called("gcloud", "compute", "tpus", "tpu-vm", "create")
  assert {"--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e"} < set(call)
  assert "--spot" not in call
  assert room.run("tpu_vm.sh", "delete", *PLACE).returncode == 0
  assert _verbs(room) == ["tpu-vm create", "tpu-vm delete"]


@pytest.mark.parametrize("command", ["create", "delete", "status"])
def test_a_failing_gcloud_is_not_mistaken_for_an_absent_slice(command, room):
  room.set(request="ACTIVE", slice="READY", gcloud_fails=1)
  result = room.run("tpu_vm.sh", command, *PLACE)
  assert result.returncode == 1
  assert "network is unreachable" in result.stderr
  assert "there is no slice" not in result.stderr
  assert _verbs(room) == []


def test_one_host_needs_no_share_and_gets_a_warning(room):
  room.set(plan=[[0, ""]])
  result = _run(room, "--share=", "--type=v6e-8")
  assert result.returncode == 0, result.stderr
  assert "a preemption deletes the directory of the run" in result.stderr
  assert room.called("sudo") == []


def test_a_result_is_fetched_from_the_first_worker(room):
  (room.folder / "result").mkdir()
  (room.folder / "result/weights").write_text("w")
  room.set(request="ACTIVE", slice="READY")
  paths = (f"--from={room.folder}/result", f"--to={room.folder}/here")
  assert room.run("tpu_vm.sh", "fetch", *PLACE, *paths).returncode == 0
  assert (room.folder / "here/weights").read_text() == "w"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("--type=v7-16",), "--type 'v7-16' is unknown"),
    (("--type=v5litepod-12",), "have 1, 4, 8, 16, 32, 64, 128 or 256 chips"),
    (("--type=v4-12",), "must be a multiple of 8"),
    (("--project=",), "--project is missing"),
    (("--zone=",), "--zone is missing"),
    (("--capacity=cheap",), "not one of: spot on-demand reserved"),
    (("--workdir=gs://bucket",), "expected gs://BUCKET/FOLDER"),
    (("--workdir=gs:///run",), "expected gs://BUCKET/FOLDER"),
    (("--workdir=gs://bucket//run",), "expected gs://BUCKET/FOLDER"),
    (("--workdir=s3://bucket/run",), "expected gs://BUCKET/FOLDER, or a path on a disk"),
    (("--workdir=run",), "neither an absolute path nor on gs://"),
    (("--workdir=/elsewhere/run",), "is not on the share"),
    (("--share=",), "the 4 workers of a v5litepod-16"),
    (("--share=nonsense",), "not SERVER:/PATH"),
  ],
)
def test_bad_input_is_refused_before_anything_is_created(options, message, room):
  result = _run(room, *options)
  assert result.returncode == 2
  assert message in result.stderr
  assert room.calls == []


@pytest.mark.parametrize("training", [(), ("--", "--config=c.py", "--workdir", "x")])
def test_a_run_without_a_config_or_with_a_second_workdir_is_refused(training, room):
  assert _run(room, training=training).returncode == 2
  assert room.calls == []


def test_a_missing_ssh_key_is_refused_before_anything_is_created(room):
  room.set(ssh_key=False)
  result = _run(room)
  assert result.returncode == 2
  assert "ssh-add" in result.stderr
  assert room.called("gcloud") == []


def _distinct(calls):
  """Calls without repeated queries of states, and with the run's number replaced."""
  distinct = []
  for call in calls:
    call = [re.sub(r"dmpo_\d+", "dmpo_N", re.sub(r"dmpo_jax\.\w{8}/", "", w)) for w in call]
    if "list" not in call or call not in distinct:
      distinct.append(call)
  return distinct


def test_a_dry_run_prints_the_commands_of_a_real_run_and_runs_none(room):
  room.set(plan=[[0, ""]])
  dry = _run(room, "--dry-run")
  assert dry.returncode == 0
  assert room.calls == []
  assert _run(room).returncode == 0
  real = [call for call in room.calls if call[0] == "git" or call[:2] == ["gcloud", "compute"]]
  assert _distinct(commands(dry.stdout)) == _distinct(real)
  assert subprocess.run(["bash", "-n", "-c", dry.stdout]).returncode == 0


@pytest.mark.parametrize(
  ("kind", "runtime"),
  [
    # cloud.google.com/tpu/docs/runtimes
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-64", "v2-alpha-tpuv5-lite"),
    ("v5e-64", "v2-alpha-tpuv5-lite"),
    ("v5p-32", "v2-alpha-tpuv5"),
    ("v6e-16", "v2-alpha-tpuv6e"),
  ],
)
def test_every_generation_gets_its_image(kind, runtime, room):
  dry = room.run("tpu_vm.sh", "create", "--dry-run", f"--type={kind}", *PLACE)
  [create] = [c for c in commands(dry.stdout) if "create" in c]
  assert f"--runtime-version={runtime}" in create
  assert f"--accelerator-type={kind.replace('v5e', 'v5litepod')}" in create
  assert "--spot" in create
