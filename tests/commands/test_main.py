"""The command line: help, exit status, and messages for bad input."""

import re
import signal
import subprocess
import sys

import pytest

from dmpo_jax.commands.main import main
from dmpo_jax.configs import digits_dmpo


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["quickstart", "--help"]])
def test_the_command_and_its_subcommands_have_help(arguments, capsys):
  with pytest.raises(SystemExit) as stop:
    main(arguments)
  assert stop.value.code == 0
  assert "usage: dmpo-jax" in capsys.readouterr().out


def test_every_listed_command_has_a_summary(capsys):
  with pytest.raises(SystemExit):
    main(["--help"])
  text = capsys.readouterr().out
  for name in ("quickstart", "train", "sample", "export", "inspect"):
    assert re.search(rf"^ +{name}\s+[A-Z][a-z]", text, re.MULTILINE)


def test_bad_input_gives_one_message_on_stderr_and_status_two(tmp_path, capsys):
  arguments = ["train", "--config", digits_dmpo.__file__, "--workdir", str(tmp_path / "run")]
  assert main([*arguments, "--config.loss.alhpa=0.1"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("dmpo-jax: unknown config key 'loss.alhpa'; did you mean 'loss.alpha'?")
  assert "Traceback" not in error


def test_a_work_directory_of_an_unknown_scheme_is_refused(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["train", "--config", digits_dmpo.__file__, "--workdir", "s4://bucket/run"])
  assert stop.value.code == 2
  assert "s4:// is not supported" in capsys.readouterr().err


def test_a_missing_pipeline_is_named(tmp_path, capsys):
  arguments = ["train", "--config", digits_dmpo.__file__, "--workdir", str(tmp_path / "run")]
  assert main([*arguments, f"--config.pipeline={tmp_path}/absent"]) == 2
  assert f"{tmp_path}/absent" in capsys.readouterr().err


def test_a_work_directory_that_cannot_be_made_gives_one_message_and_status_one(tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  assert main(["quickstart", "--workdir", str(tmp_path / "file" / "runs")]) == 1
  error = capsys.readouterr().err
  assert error.startswith("dmpo-jax: ")
  assert str(tmp_path / "file") in error


def test_a_command_without_config_refuses_config_arguments(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["export", "--workdir", "a", "--out", "b", "--config.x=1"])
  assert stop.value.code == 2
  assert "--config.x=1" in capsys.readouterr().err


def test_export_refuses_a_directory_without_a_run(tmp_path, capsys):
  assert main(["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
  assert "run.json" in capsys.readouterr().err


def test_help_needs_no_slow_import():
  code = (
    "import sys\nfrom dmpo_jax.commands.main import main\n"
    "try: main(['--help'])\nexcept SystemExit: pass\n"
    "assert not {'jax', 'torch', 'diffusers'} & set(sys.modules), 'slow import'"
  )
  assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_control_characters_of_arguments_do_not_reach_the_terminal(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["objectives", "\x1b]0;owned\x07"])
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert "\x1b" not in error
  assert "\\x1b]0;owned" in error


# --- Ctrl-C ---

ENTRY = """
import gc, os, signal, sys, threading, time
from dmpo_jax.commands import main
{}
sys.argv = ["dmpo-jax", "objectives"]
main.main = run
main.entry()
"""
SLEEP = """
def run():
  try: print("ready", flush=True); time.sleep(20)
  except KeyboardInterrupt: return 130
"""
# A Ctrl-C in a callback of the garbage collector, as jax registers one.
IN_A_CALLBACK = """
def run():
  def callback(phase, info):
    if phase == "start" and not sent:
      sent.append(1)
      os.kill(os.getpid(), signal.SIGINT)
      for _ in range(1000): pass
  sent = []
  gc.callbacks.append(callback)
  print("ready", flush=True)
  try: gc.collect(); time.sleep(20)
  except KeyboardInterrupt: return 130
"""


def entry(code, *before):
  return subprocess.Popen(
    [*before, sys.executable, "-c", ENTRY.format(code)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_command_that_a_script_started_in_the_background_ends_by_sigint():
  command = entry(SLEEP, "sh", "-c", "trap '' INT; exec \"$@\"", "-")
  command.stdout.readline()
  command.send_signal(signal.SIGINT)
  assert command.wait(10) == 130


def test_a_ctrl_c_that_falls_into_a_callback_is_not_lost():
  command = entry(IN_A_CALLBACK)
  _, errors = command.communicate(timeout=15)
  assert command.returncode == 130, errors
  assert "Exception ignored" not in errors
