"""The workload of launch/xpk.sh, with a fake xpk."""

import re
import subprocess

import pytest

from tests.launch.room import ROOT, Room, commands

PLACE = ("--cluster=c", "--project=p", "--zone=us-west4-a")
RUN = (*PLACE, "--image=host/dmpo:1", "--workdir=gs://bucket/run")
TRAIN = ("--", "--config", "configs/digits_dmpo.py", '--config.note=it\'s "$(HOSTNAME)" {1}')
# The part of a container's command that xpk 1.16.0 puts around the workload's.
CONTAINER = """
_sigterm() (kill -SIGTERM $! 2>/dev/null;);
trap _sigterm SIGTERM;
({command}) & PID=$!;
while kill -0 $PID 2>/dev/null;
    do sleep 0.1;
done;
wait $PID;
EXIT_CODE=$?;
exit $EXIT_CODE
"""


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def _created(room, *options):
  result = room.run("xpk.sh", "create", *RUN, *options, *TRAIN)
  assert result.returncode == 0, result.stderr
  [call] = room.called("xpk")
  assert call[:3] == ["xpk", "workload", "create"]
  return dict(word.removeprefix("--").split("=", 1) for word in call[3:])


def test_a_run_on_several_slices_is_one_workload(room):
  flags = _created(room, "--slices=2", "--type=v5e-16", "--restarts=40", "--grace=60")
  command = flags.pop("command")
  assert "\n" not in command  # xpk puts it into a line of YAML
  assert flags == {
    "workload": "dmpo",
    "cluster": "c",
    "project": "p",
    "zone": "us-west4-a",
    "tpu-type": "v5litepod-16",
    "num-slices": "2",
    "docker-image": "host/dmpo:1",
    "max-restarts": "40",
    "restart-on-exit-codes": "75,76",  # beside 42 and 127 to 255
    "termination-grace-period-seconds": "60",
  }


def _host(room, command, **environment):
  """Runs the command as a container of xpk's does, after Kubernetes' expansion."""
  text = CONTAINER.format(command=command.replace("$$(", "$("))
  return subprocess.Popen(
    ["bash", "-c", text],
    cwd=ROOT,
    env=room.environment(JOB_COMPLETION_INDEX="0", **environment),
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_host_passes_the_arguments_unchanged_and_ends_with_the_runs_status(room):
  command = _created(room)["command"]
  room.set(plan=[[76, ""]], calls=[])
  host = _host(room, command)
  assert host.wait(30) == 76, host.stderr.read()
  [call] = room.called("dmpo-jax")
  assert call[1:] == [
    *("train", "--workdir", "gs://bucket/run", "--distributed", "--no-progress"),
    *TRAIN[1:],
  ]


def test_the_first_host_of_the_first_slice_counts_the_starts(room):
  command = _created(room, "--limit=3")["command"]
  room.set(plan=[[75, ""]], calls=[])
  assert _host(room, command, MEGASCALE_SLICE_ID="1").wait(30) == 75
  assert room.called("python") == []
  assert _host(room, command, MEGASCALE_SLICE_ID="0").wait(30) == 75
  [count] = room.called("python")
  assert count[1:5] == ["-m", "dmpo_jax.training.starts", "gs://bucket/run", "3"]


def test_sigterm_reaches_the_run_through_xpks_shell(room):
  (room.folder / "bin" / "dmpo-jax").unlink()
  stub = room.folder / "bin" / "dmpo-jax"
  stub.write_text(
    "#!/usr/bin/env bash\ntrap 'exit 75' TERM\n: > trains\nwhile :; do sleep 0.05; done\n"
  )
  stub.chmod(0o755)
  command = _created(room)["command"].replace("launch/worker.sh", str(ROOT / "launch/worker.sh"))
  text = CONTAINER.format(command=command)
  host = subprocess.Popen(
    ["bash", "-c", text], cwd=room.folder, env=room.environment(JOB_COMPLETION_INDEX="1")
  )
  for _ in range(400):
    if (room.folder / "trains").exists() or host.poll() is not None:
      break
    subprocess.run(["sleep", "0.05"])
  host.terminate()
  assert host.wait(30) == 75


def test_a_dry_run_prints_the_command_of_a_real_run_and_runs_none(room):
  dry = room.run("xpk.sh", "create", "--dry-run", *RUN, *TRAIN)
  assert room.calls == []
  _created(room)
  [printed], [call] = commands(dry.stdout), room.called("xpk")
  number = re.compile(r"gs://bucket/run 5 \d+")
  assert [number.sub("N", word) for word in printed] == [number.sub("N", word) for word in call]


def test_a_workload_is_listed_and_deleted_by_its_name(room):
  assert room.run("xpk.sh", "status", *PLACE, "--name=night").returncode == 0
  assert room.run("xpk.sh", "delete", *PLACE, "--name=night").returncode == 0
  listed, deleted = room.called("xpk")
  assert listed[2:] == ["list", *PLACE, "--filter-by-job=night"]
  assert deleted[2:] == ["delete", "--workload=night", *PLACE, "--force"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("--cluster=",), "--cluster is missing"),
    (("--image=",), "--image is missing"),
    (("--workdir=/mnt/run",), "expected gs://BUCKET/FOLDER"),
    (("--type=v7-16",), "--type 'v7-16' is unknown"),
    (("--slices=two",), "--slices 'two' is not a whole number"),
    (("--slices=257",), "expected 1 to 256"),
    (("--slices=2", "--type=v6e-8"), "v6e-8 has one host, and Google connects only slices of sev"),
  ],
)
def test_bad_input_is_refused_before_anything_is_created(options, message, room):
  result = room.run("xpk.sh", "create", *RUN, *options, *TRAIN)
  assert result.returncode == 2
  assert message in result.stderr
  assert room.calls == []
