"""Behaviour that all launch scripts share."""

import pathlib
import subprocess
import sys

import pytest

from tests.launch.room import ROOT, Room

SOURCED = {"common.sh", "environment.sh"}
SCRIPTS = sorted(p.name for p in (ROOT / "launch").glob("*.sh") if p.name not in SOURCED)
# The other scripts pass all their arguments to a command.
HELPFUL = [name for name in SCRIPTS if "--help" in (ROOT / "launch" / name).read_text()]
PLATFORMS = ["tpu_vm.sh", "gke.sh", "xpk.sh", "slurm.sh"]
PLACE = {"DMPO_PROJECT": "p", "DMPO_ZONE": "z", "DMPO_CLUSTER": "c"}


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def test_shellcheck_finds_nothing():
  program = pathlib.Path(sys.executable).parent / "shellcheck"
  files = [ROOT / ".ci/run", *(ROOT / "launch").glob("*.sh"), *(ROOT / "tests").glob("*.sh")]
  result = subprocess.run(
    [program, "--external-sources", *files], cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_executable_and_stops_at_the_first_error(name):
  file = ROOT / "launch" / name
  assert file.stat().st_mode & 0o111
  assert file.read_text().startswith("#!/usr/bin/env bash\n")
  assert "\nset -euo pipefail\n" in file.read_text()


@pytest.mark.parametrize("name", HELPFUL)
def test_help_needs_no_program(name):
  result = subprocess.run(
    [ROOT / "launch" / name, "--help"], capture_output=True, text=True, cwd=ROOT
  )
  assert result.returncode == 0
  assert result.stderr == ""
  assert name in result.stdout


@pytest.mark.parametrize("name", PLATFORMS)
def test_help_shows_the_default_and_the_variable_of_every_option(name, room):
  lines = room.run(name, "--help").stdout.splitlines()
  options = lines[lines.index("Options, as --flag value, --flag=value or environment variable:") :]
  flags = [line.split()[0] for line in options if line.startswith("  --")]
  assert len(flags) > 10
  for flag, explained in zip(flags[:-1], options[2::2], strict=True):
    assert explained.endswith(f"; DMPO_{flag[2:].upper().replace('-', '_')}")
    assert "default" in explained
  assert flags[-1] == "--dry-run"


@pytest.mark.parametrize("name", PLATFORMS)
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["dance"], "unknown command 'dance'"),
    (["status", "--nmae", "x"], "unknown option '--nmae'"),
    (["status", "--name"], "--name needs a value"),
    (["status", "--name=Big_Run"], "--name 'Big_Run'"),
    (["status", "extra"], "unexpected argument 'extra'"),
    (["status", "--limit=many"], "--limit 'many' is not a whole number"),
    (["status", f"--limit={'9' * 23}"], "is not a whole number below a billion"),
    (["status", "--limit=1\n2"], "--limit has a control character: '1?2'"),
    (["\x1b[2J"], "unknown command '?[2J'"),
    (["status", "--", "--config=a\nb"], "an argument after -- has a control character"),
  ],
)
def test_bad_input_has_status_2_and_calls_nothing(name, arguments, message, room):
  result = room.run(name, *arguments, **PLACE)
  assert result.returncode == 2
  assert message in result.stderr
  assert not [c for c in result.stderr if ord(c) < 32 and c != "\n"]
  assert room.calls == []


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_value_of_the_environment_is_checked_as_an_option_is(name, room):
  result = room.run(name, "status", **PLACE, DMPO_WORKDIR="/a\nb")
  assert result.returncode == 2
  assert "--workdir has a control character" in result.stderr


@pytest.mark.parametrize(
  ("name", "command", "program"),
  [
    ("tpu_vm.sh", "create", "gcloud"),
    ("gke.sh", "status", "kubectl"),
    ("xpk.sh", "status", "xpk"),
    ("slurm.sh", "status", "squeue"),
    ("slurm.sh", "cancel", "scancel"),
  ],
)
def test_a_missing_program_is_named_and_a_dry_run_needs_none(name, command, program, room):
  room.remove(program)
  result = room.run(name, command, **PLACE)
  assert result.returncode == 2
  assert f"'{program}' is not installed" in result.stderr
  dry = room.run(name, command, "--dry-run", **PLACE)
  assert dry.returncode == 0
  assert program in dry.stdout
  assert room.calls == []


def test_a_shell_reads_quoted_words_back_unchanged(room):
  words = ["plain", "it's", 'a "b"', "$HOME", "", "a b", "*", "--x=[1, 2]", "back\\slash", "`id`"]
  source = f'source {ROOT}/launch/common.sh; quote "$@"'
  quoted = subprocess.run(
    ["bash", "-c", source, "x", *words], capture_output=True, text=True, env=room.environment()
  ).stdout
  back = room.shell(f"printf '%s\\n' {quoted}").stdout
  assert back.splitlines() == words
