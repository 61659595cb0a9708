"""Options of a run with several processes."""

import os
import subprocess
import sys

import pytest

from dmpo_jax.commands.main import main

TWO = ["--num-processes", "2", "--process-id", "0"]
RUN = ["train", "--config", "none.py", "--workdir", "none"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--num-processes", "2"], "must be given together"),
    (["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"], "0 to --num-processes"),
    (["--coordinator", "a", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
    (["--distributed", "--process-id", "0"], "finds the processes by itself"),
    (["--heartbeat", "0"], "at least 1 second"),
    (["--heartbeat", "9" * 30], "--heartbeat must be at most a day"),
    (["--coordinator", "a:65536", *TWO], "a port from 1 to 65535, got 'a:65536'"),
    (["--coordinator", "a:²", *TWO], "must be HOST:PORT"),
    (["--coordinator", "a b:80", *TWO], "must be HOST:PORT"),
    (["--coordinator", "a:1", "--num-processes", "9" * 30, "--process-id", "0"], "1 to 65536"),
  ],
)
def test_options_that_do_not_fit_together_are_bad_input(options, message, capsys):
  assert main([*RUN, *options]) == 2
  assert message in capsys.readouterr().err


def test_where_jax_finds_no_other_processes_the_message_names_the_options():
  command = [sys.executable, "-m", "dmpo_jax.commands.main", *RUN, "--distributed"]
  cluster = ("SLURM", "OMPI", "KUBERNETES", "TPU", "JAX_COORDINATOR", "CLOUD_TPU", "MEGASCALE")
  environment = {k: v for k, v in os.environ.items() if not k.startswith(cluster)}
  result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
  assert result.returncode == 2
  assert "elsewhere give --coordinator, --num-processes and --process-id" in result.stderr
