"""Runs the launch scripts with fakes of clouds and clusters."""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAKES = """
  gcloud kubectl docker sbatch srun squeue scancel scontrol git ssh-add python3 python uv sudo
  mountpoint mount.nfs dmpo-jax xpk
"""
TOOLS = """
  bash env cat basename dirname date sleep tail tar gzip mkdir rm mv ln ls id mktemp cksum setsid
  sed
"""


class Room:
  """Fakes of clouds and clusters on PATH, and their states.

  States (see `fake.py`) that a test sets:
    plan: For each attempt to train: [exit status, event, step of its checkpoint]; the events are
      "", "preempted" and "connection lost".
    queue: Successive states of a queued resource after its request.
    request, slice: Current states of the queued resource and of the slice.
    gcloud_fails: Number of next calls of gcloud that fail.
    copy_fails: Whether kubectl cannot copy.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder, self.file = folder, folder / "room.json"
    (folder / "bin").mkdir()
    fake = folder / "bin" / "fake"
    # Started often: without site, the environment and the user's packages.
    fake.write_text(f"#!{sys.executable} -SEs\n" + (ROOT / "tests/launch/fake.py").read_text())
    fake.chmod(0o755)
    for name in FAKES.split():
      (folder / "bin" / name).symlink_to(fake)
    (folder / "worker").mkdir()
    self._write(
      calls=[],
      name="dmpo",
      plan=[],
      queue=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
      coming=[],
      request=None,
      slice=None,
      home=str(folder / "worker"),
      gcloud_fails=0,
      copy_fails=False,
      ssh_key=True,
      jobset=None,
      job=None,
      requeued=0,
    )

  def _write(self, **values) -> None:
    self.file.write_text(json.dumps(values))

  def set(self, **values) -> None:
    """Sets states."""
    self._write(**{**json.loads(self.file.read_text()), **values})

  def __getattr__(self, name: str):
    return json.loads(self.file.read_text())[name]

  def remove(self, name: str) -> None:
    """Removes a program from PATH."""
    (self.folder / "bin" / name).unlink()

  def environment(self, **more: str) -> dict:
    """Environment with the fakes and the few system tools that the scripts use on PATH."""
    tools = self.folder / "tools"
    if not tools.exists():
      tools.mkdir()
      for name in TOOLS.split():
        (tools / name).symlink_to(shutil.which(name))
    return {
      "PATH": f"{self.folder / 'bin'}:{tools}",
      "FAKE_ROOM": str(self.file),
      "TMPDIR": str(self.folder),
      "HOME": str(self.folder),
      **more,
    }

  def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Result of a script of launch/."""
    return subprocess.run(
      [ROOT / "launch" / script, *arguments],
      env=self.environment(**environment),
      cwd=self.folder,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def shell(self, text: str, **environment: str) -> subprocess.CompletedProcess:
    """Result of a shell script."""
    return subprocess.run(
      ["bash", "-eu", "-c", text],
      env=self.environment(**environment),
      cwd=self.folder,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def called(self, *beginning: str) -> list[list[str]]:
    """Calls so far that begin with these words."""
    return [call for call in self.calls if call[: len(beginning)] == list(beginning)]


def commands(printed: str) -> list[list[str]]:
  """Commands in the output of a dry run, each as a list of words."""
  lines = [line for line in printed.splitlines() if line and not line.startswith("#")]
  return [shlex.split(line) for line in lines]
