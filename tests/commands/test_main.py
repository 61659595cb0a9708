"""The command line: help, exit status, and messages for bad input."""

import re
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


def test_a_url_as_work_directory_is_refused(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["train", "--config", digits_dmpo.__file__, "--workdir", "gs://bucket/run"])
  assert stop.value.code == 2
  assert "'gs://bucket/run' is a URL" in capsys.readouterr().err


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
