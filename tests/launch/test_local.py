"""Several processes on one machine; tests/training/test_layouts.py trains with the script."""

import pytest

from tests.launch.room import Room


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def test_a_dry_run_prints_the_command_of_each_process(room):
  options = ["--processes", "2", "--devices", "3", "--dry-run"]
  result = room.run("local.sh", *options, "--config", "a b.py", "--workdir", "w")
  assert result.returncode == 0
  first, second = result.stdout.splitlines()
  assert "NPROC=32" in first
  assert "--xla_force_host_platform_device_count=3" in first
  assert "--config 'a b.py' --workdir w" in first
  assert first.endswith("--num-processes 2 --process-id 0")
  assert second == first[:-1] + "1"


def test_with_gpus_each_process_sees_its_own(room):
  lines = room.run("local.sh", "--gpus", "--dry-run").stdout.splitlines()
  assert [line.split()[1] for line in lines] == [f"CUDA_VISIBLE_DEVICES={i}" for i in range(2)]
  assert "JAX_PLATFORMS" not in lines[0]


@pytest.mark.parametrize("options", [["--processes", "0"], ["--devices", "two"], ["--restarts"]])
def test_a_number_that_is_none_is_bad_input(room, options):
  result = room.run("local.sh", *options)
  assert result.returncode == 2
  assert options[0] in result.stderr
