"""Log messages: destination, levels, process index, and a full disk."""

import errno
import io
import logging
import subprocess
import sys

import pytest
from tqdm import tqdm

from dmpo_jax.commands.main import main
from dmpo_jax.common.logging_setup import log_to_stderr, set_process

LOGGER = logging.getLogger("dmpo_jax.some.module")


def log_each_level() -> None:
  for level in ("debug", "info", "warning", "error"):
    getattr(LOGGER, level)("this is %s", level)


def test_info_warnings_and_errors_are_shown_by_default(capsys):
  with log_to_stderr():
    log_each_level()
  lines = ["this is info", "warning: this is warning", "this is error"]
  assert capsys.readouterr().err.splitlines() == [f"dmpo-jax: {line}" for line in lines]


def test_debug_messages_are_shown_at_level_debug(capsys):
  with log_to_stderr("debug"):
    log_each_level()
  assert "dmpo-jax: debug: this is debug\n" in capsys.readouterr().err


def test_messages_go_to_stderr_and_not_to_stdout(capsys):
  with log_to_stderr("debug"):
    log_each_level()
  assert capsys.readouterr().out == ""


def test_messages_carry_the_process_index_where_there_are_several(capsys):
  with log_to_stderr():
    set_process(3, 16)
    LOGGER.error("lost")
  assert capsys.readouterr().err == "dmpo-jax: process 3 of 16: lost\n"


def test_process_0_of_several_shows_info(capsys):
  with log_to_stderr():
    set_process(0, 16)
    LOGGER.info("saved")
  assert capsys.readouterr().err == "dmpo-jax: process 0 of 16: saved\n"


def test_the_other_processes_show_warnings_and_errors_only(capsys):
  with log_to_stderr():
    set_process(1, 2)
    log_each_level()
  output = capsys.readouterr().err
  assert "this is info" not in output
  assert "this is warning" in output
  assert "this is error" in output


def test_a_level_that_is_asked_for_holds_on_all_processes(capsys):
  with log_to_stderr("info"):
    set_process(1, 2)
    LOGGER.info("saved")
  assert "process 1 of 2: saved" in capsys.readouterr().err


def test_a_message_is_written_above_a_progress_bar(capsys):
  with log_to_stderr(), tqdm(total=2, file=sys.stderr, desc="steps") as bar:
    LOGGER.warning("captions were cut")
    bar.update(2)
  lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
  assert "dmpo-jax: warning: captions were cut" in lines
  assert "steps: 100%" in lines[-1]


class FullDisk(io.StringIO):
  def write(self, text):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_the_log_raises_nothing(monkeypatch):
  monkeypatch.setattr(sys, "stderr", FullDisk())
  with log_to_stderr():
    LOGGER.error("cannot save")


def test_a_full_disk_under_the_log_leaves_the_exit_status():
  command = [sys.executable, "-m", "dmpo_jax.commands.main", "inspect", "/absent"]
  with open("/dev/full", "w") as full:
    assert subprocess.run(command, stderr=full, stdout=subprocess.DEVNULL).returncode == 2


def test_a_traceback_is_part_of_the_message(capsys):
  with log_to_stderr():
    try:
      raise RuntimeError("defect")
    except RuntimeError:
      LOGGER.exception("the run failed")
  output = capsys.readouterr().err
  assert output.startswith("dmpo-jax: the run failed\nTraceback")
  assert output.endswith("RuntimeError: defect\n")


def test_a_program_that_uses_the_library_configures_logging_itself(caplog):
  with log_to_stderr():
    pass
  LOGGER.warning("to the program's handlers")
  assert caplog.messages == ["to the program's handlers"]


@pytest.mark.parametrize(
  "arguments",
  [
    ["--log-level", "error", "inspect", "/absent"],
    ["inspect", "--log-level", "error", "/absent"],
    ["inspect", "/absent", "--log-level=error"],
    ["data", "judge", "/absent", "--score=warmth", "--temperature=1", "--log-level=error"],
  ],
)
def test_the_level_is_accepted_before_and_after_the_command(arguments, capsys):
  assert main(arguments) == 2
  assert capsys.readouterr().err.startswith("dmpo-jax: ")


def test_an_unknown_level_is_refused(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["inspect", "/absent", "--log-level", "loud"])
  assert stop.value.code == 2
  assert "'loud' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["train"], ["sample"]])
def test_help_lists_the_level(command, capsys):
  with pytest.raises(SystemExit):
    main([*command, "--help"])
  assert "--log-level {debug,info,warning,error}" in capsys.readouterr().out
