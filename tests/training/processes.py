"""Runs of `dmpo-jax train` in one or several processes on this machine."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

from dmpo_jax.common import file_lock, paths

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).parent / "processes_config.py"


def environment(devices: int) -> dict[str, str]:
  """Environment of the tests with another number of simulated devices."""
  count = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
  return {**os.environ, "XLA_FLAGS": count, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


class Processes:
  """The processes of one start of a run, killed on exit.

  Args:
    workdir: Work directory.
    count: Number of processes.
    devices: Devices of each process.
    log: Folder of their output, one file each.
    arguments: Arguments of dmpo-jax train: one list for all processes, or a list of lists.
    kind: Argument of the config, see `processes_config`.
  """

  def __init__(
    self,
    workdir: paths.Path,
    *,
    count: int,
    devices: int,
    log: pathlib.Path,
    arguments: list = (),
    kind: str = "steps",
  ):
    log.mkdir(parents=True, exist_ok=True)
    self.workdir = workdir
    self.token = self._token()
    self.logs = [log / f"{i}.log" for i in range(count)]
    coordinator = f"127.0.0.1:{free_port()}"
    self.all = []
    for i, file in enumerate(self.logs):
      own = arguments[i] if arguments and isinstance(arguments[0], list) else arguments
      command = [sys.executable, "-m", "dmpo_jax.commands.main", "train", "--no-progress"]
      command += ["--config", f"{CONFIG}:{kind}", "--workdir", str(workdir), "--heartbeat", "15"]
      command += ["--coordinator", coordinator, "--num-processes", str(count)]
      command += ["--process-id", str(i), *own]
      with file.open("w") as out:
        self.all.append(
          subprocess.Popen(command, cwd=ROOT, env=environment(devices), stdout=out, stderr=out)
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.all:
      if process.poll() is None:
        process.kill()
      process.wait()

  def statuses(self, timeout: float = 900) -> list[int]:
    """Waits for all processes and returns their exit statuses."""
    return [process.wait(timeout) for process in self.all]

  def ended(self) -> bool:
    """Returns True once any process has ended."""
    return any(process.poll() is not None for process in self.all)

  def worker(self, index: int) -> int:
    """Process id of the training process, a child of the one that was started."""
    parent = self.all[index].pid
    return int(pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text())

  def wait_until_connected(self) -> None:
    """Waits until the processes are connected, when the first writes a token into the lock."""
    while not self.ended() and self._token() == self.token:
      time.sleep(0.01)

  def _token(self) -> str:
    return file_lock.read_note(self.workdir / "lock") or ""

  def output(self) -> str:
    return "\n".join(file.read_text() for file in self.logs)


class Local:
  """A start of launch/local.sh with two processes of two devices each, without restarts.

  Args:
    workdir: Work directory.
    log: File of the output.
    arguments: Arguments of dmpo-jax train.
  """

  def __init__(self, workdir: pathlib.Path, *, log: pathlib.Path, arguments: list[str]):
    self.log = log
    own = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    script = [ROOT / "launch" / "local.sh", "--processes", "2", "--devices", "2", "--restarts", "0"]
    with log.open("w") as out:
      self.script = subprocess.Popen(
        [*script, "--config", f"{CONFIG}:steps", "--workdir", workdir, "--no-progress", *arguments],
        env={**os.environ, "XLA_FLAGS": own, "PYTHONPATH": str(ROOT), "VENV": sys.prefix},
        stdout=out,
        stderr=out,
      )

  def worker(self, index: int) -> int:
    """Process id of a training process."""
    for process in pathlib.Path("/proc").iterdir():
      try:
        command = (process / "cmdline").read_text().split("\0")
        parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
      except (OSError, ValueError, IndexError):  # no process, or one that has ended
        continue
      if parent == self.script.pid and command[-3:-1] == ["--process-id", str(index)]:
        return int(process.name)
    raise ProcessLookupError(f"no process {index} of the run")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.script.poll() is None:
      for index in range(2):
        os.kill(self.worker(index), signal.SIGKILL)
    self.script.wait()
