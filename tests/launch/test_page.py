"""The commands of docs/launch.md are valid for the scripts and, if it is installed, for gcloud."""

import json
import re
import shutil
import string
import subprocess

import pytest

from tests.launch.room import ROOT, Room

PAGE = (ROOT / "docs/launch.md").read_text()
BLOCKS = [b.replace("\\\n", " ") for b in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)]
OURS = re.compile(r"^launch/(tpu_vm|gke|xpk|slurm)\.sh \w+", re.MULTILINE)


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def _dry(room) -> list[str]:
  """Output of dry runs of the page's commands, with the page's settings."""
  settings = [x for block in BLOCKS for x in re.findall(r"^export .*", block, re.MULTILINE)]
  printed = []
  for block in BLOCKS:
    for line in block.splitlines():
      if match := OURS.match(line):
        own = [s for s in settings if s in block or "DMPO_PROJECT" in s]
        command = f"{ROOT}/{match[0]} --dry-run{line[match.end() :]}"
        result = room.shell("\n".join([*own, command]))
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
  return printed


def test_the_scripts_take_every_command_of_the_page(room):
  assert {m[0].split("/")[1] for b in BLOCKS for m in OURS.finditer(b)} == {
    "tpu_vm.sh run", "tpu_vm.sh fetch", "tpu_vm.sh delete",
    "xpk.sh create", "xpk.sh status", "xpk.sh delete",
    "gke.sh image", "gke.sh create", "gke.sh logs", "gke.sh wait", "gke.sh fetch", "gke.sh delete",
    "slurm.sh install", "slurm.sh submit", "slurm.sh status", "slurm.sh cancel",
  }  # fmt: skip
  assert all(_dry(room))


@pytest.mark.skipif(not shutil.which("gcloud"), reason="no gcloud here")
def test_gcloud_takes_every_command_of_the_page_and_of_the_scripts(room):
  page = [x for b in BLOCKS for x in re.findall(r"^gcloud .*|(?<=\$\()gcloud .*?'(?=\))", b, re.M)]
  scripts = [x for out in _dry(room) for x in re.findall(r"^gcloud .*", out, re.M)]
  options = ["--project=p", "--zone=z", "--via=direct", "--dry-run"]
  for command in ("create", "delete"):
    printed = room.run("tpu_vm.sh", command, *options).stdout
    scripts += re.findall(r"^gcloud .*", printed, re.M)
  assert len(page) > 10
  values = {"DMPO_PROJECT": "p", "DMPO_ZONE": "z", "REGION": "r", "DMPO_WORKDIR": "gs://b/a"}
  lines = [string.Template(c).safe_substitute(values) for c in dict.fromkeys(page + scripts)]
  file = room.folder / "commands.json"
  file.write_text(json.dumps([{"command_string": c} for c in lines]))
  output = subprocess.run(
    ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
    env={"CLOUDSDK_CONFIG": str(room.folder / "config"), "PATH": "/usr/bin:/bin"},
    capture_output=True,
    text=True,
  ).stdout
  refused = [
    (r["command_string"], r["error_message"]) for r in json.loads(output) if not r["success"]
  ]
  assert refused == []
