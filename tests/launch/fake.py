"""Fakes of gcloud, kubectl, sbatch and others: a program under each of their names that records its
calls, keeps states in a file, and answers as they do. Standard library only: it starts often.

The states are one JSON file, FAKE_ROOM; see `tests.launch.room.Room`.
"""

import fcntl
import gzip
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

FILE = pathlib.Path(os.environ["FAKE_ROOM"])


def main(name: str, arguments: list[str]) -> int:
  """Records the call and answers it; the file is unlocked while a command runs on a worker."""
  with open(FILE.with_suffix(".lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    room = json.loads(FILE.read_text())
    room["calls"].append([name, *arguments])
    answer = globals().get(f"_{name.replace('-', '_')}", lambda room, arguments: 0)
    result = answer(room, arguments)
    FILE.write_text(json.dumps(room))
  return result() if callable(result) else result


def _change(**values) -> None:
  with open(FILE.with_suffix(".lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    FILE.write_text(json.dumps({**json.loads(FILE.read_text()), **values}))


def _print(text: str | None) -> int:
  if text:
    print(text)
  return 0


def _gcloud(room: dict, arguments: list[str]):
  if room["gcloud_fails"]:
    room["gcloud_fails"] -= 1
    print("ERROR: (gcloud) the network is unreachable", file=sys.stderr)
    return 1
  if arguments[:2] != ["compute", "tpus"]:
    return _print("10.0.0.2" if "describe" in arguments else None)
  kind, verb, name = arguments[2:5]
  if verb == "list":
    [pattern] = [re.fullmatch(r'--filter=name~"(.*)"', a)[1] for a in arguments if "filter" in a]
    assert re.search(pattern, f"projects/p/locations/z/{room['name']}")
    if kind == "queued-resources" and room["coming"]:
      room["request"] = room["coming"].pop(0)
      room["slice"] = "READY" if room["request"] == "ACTIVE" else None
    return _print(room["request" if kind == "queued-resources" else "slice"])
  assert name == room["name"] or ":" in "".join(arguments)
  if verb == "create":
    if room["request"] or room["slice"]:
      print("ERROR: ALREADY_EXISTS", file=sys.stderr)
      return 1
    if kind == "queued-resources":
      room["coming"] = list(room["queue"])
      room["request"] = "CREATING"
    else:
      room["slice"] = "READY"
    shutil.rmtree(room["home"], ignore_errors=True)
    pathlib.Path(room["home"]).mkdir()
  elif verb == "delete":
    if not room["request" if kind == "queued-resources" else "slice"]:
      print("ERROR: NOT_FOUND", file=sys.stderr)
      return 1
    room["request"] = room["slice"] = None
  elif room["slice"] != "READY":
    print(f"ERROR: This TPU has terminal state {room['slice']!r}", file=sys.stderr)
    return 1
  elif verb == "scp":
    *sources, target = [a for a in arguments[4:] if not a.startswith("--")]
    for source in sources:
      if target.endswith(":"):
        shutil.copy(source, room["home"])
      else:
        shutil.copytree(source.partition(":")[2], target, dirs_exist_ok=True)
  elif verb == "ssh":
    [command] = [a.partition("=")[2] for a in arguments if a.startswith("--command=")]
    return lambda: _ssh(room, command)
  return 0


def _ssh(room: dict, command: str) -> int:
  """Runs the command in the worker's home; the plan may end the connection or the slice."""
  environment = {**os.environ, "HOME": room["home"]}
  process = subprocess.Popen(
    ["bash", "-c", command], env=environment, cwd=room["home"], start_new_session=True
  )
  event = room["plan"][0][1] if room["plan"] and "attempt" in command else ""
  if event == "connection lost":
    log = pathlib.Path(room["home"], "trained")
    while not log.exists():
      time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _change(plan=[[room["plan"][0][0], ""], *room["plan"][1:]])
    return 255
  pathlib.Path(room["home"], "go").touch()
  status = process.wait()
  if "attempt" in command:
    _change(plan=room["plan"][1:])
    if event == "preempted":
      _change(request=room["request"] and "SUSPENDED", slice="PREEMPTED")
  return status


def _dmpo_jax(room: dict, arguments: list[str]):
  """Writes the checkpoint of the plan and exits with the plan's status."""
  status, event, *step = room["plan"][0]
  if "--workdir" in arguments and step:
    workdir = pathlib.Path(arguments[arguments.index("--workdir") + 1])
    (workdir / "checkpoints" / str(step[0])).mkdir(parents=True, exist_ok=True)

  def wait() -> int:
    print("training", flush=True)
    pathlib.Path("../trained").touch()
    while event == "connection lost" and not pathlib.Path("../go").exists():
      time.sleep(0.02)
    return status

  return wait if room["home"] in os.getcwd() else status


def _srun(room: dict, arguments: list[str]) -> int:
  status = _dmpo_jax(room, arguments)
  room["plan"].pop(0)
  return status


def _git(room: dict, arguments: list[str]) -> int:
  [output] = [a.partition("=")[2] for a in arguments if a.startswith("--output=")]
  # Without a time, as git does: the archive of a commit is always the same.
  with gzip.GzipFile(output, "w", mtime=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("setup.py"), io.BytesIO())
  return 0


def _install(path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)
  path.symlink_to(FILE.parent / "bin" / path.name)


def _python3(room: dict, arguments: list[str]) -> int:
  if arguments[:3] == ["-m", "pip", "install"]:
    _install(pathlib.Path.home() / ".local/bin/uv")
  return 0


def _uv(room: dict, arguments: list[str]) -> int:
  if arguments[0] == "venv":
    _install(pathlib.Path(arguments[-1]) / "bin/python")
  else:
    _install(pathlib.Path("dmpo_venv/bin/dmpo-jax"))
  return 0


def _mountpoint(room: dict, arguments: list[str]) -> int:
  return 1


def _ssh_add(room: dict, arguments: list[str]) -> int:
  return 0 if room["ssh_key"] else 2


def _kubectl(room: dict, arguments: list[str]) -> int:
  verb = arguments[1]
  if verb == "get" and "--output=name" in arguments:
    return _print(room["jobset"] and "jobset.jobset.x-k8s.io/dmpo")
  if verb == "get" and "terminalState" in arguments[-1]:
    return _print(room["plan"].pop(0)[1])
  if verb == "create":
    room["jobset"] = sys.stdin.read()
  if verb == "delete":
    room["jobset"] = None
  return int(verb == "cp" and room["copy_fails"])


def _squeue(room: dict, arguments: list[str]) -> int:
  return _print(room["job"])


def _sbatch(room: dict, arguments: list[str]) -> int:
  room["job"] = "17"
  return _print("Submitted batch job 17")


def _scontrol(room: dict, arguments: list[str]) -> int:
  assert arguments == ["requeue", room["job"]]
  room["requeued"] += 1
  return 0


if __name__ == "__main__":
  sys.exit(main(pathlib.Path(sys.argv[0]).name, sys.argv[1:]))
