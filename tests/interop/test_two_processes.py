"""A pipeline that two processes read onto one mesh."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
from dmpo_jax.parallel.processes import connect
processes = connect(sys.argv[2], 2, int(sys.argv[1]), heartbeat=60)
from dmpo_jax import interop
from dmpo_jax.common.byte_ranges import ByteRanges
from dmpo_jax.parallel import sharding
from dmpo_jax.parallel.array_checksums import tree_checksum
read, counts = ByteRanges.read, [0]
def counting(self, start, length):
  counts[0] += length
  return read(self, start, length)
ByteRanges.read, sharding.SMALLEST = counting, 64
mesh = sharding.make_mesh(0, fsdp=4)
shardings = lambda name, tree: sharding.shardings(mesh, tree)
shards = interop.load_pipeline(sys.argv[3], shardings=shardings).params
of_shards, counts[0] = counts[0], 0
whole = interop.load_pipeline(sys.argv[3]).params
assert jax.tree.map(lambda x: x.sharding, shards) == sharding.shardings(mesh, shards)
assert tree_checksum(shards) == tree_checksum(whole)
assert of_shards < 0.65 * counts[0], (of_shards, counts[0])
processes.exit(0, "")
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_about_half_and_holds_its_shards(sdxl_folder):
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  root = str(pathlib.Path(__file__).parents[2])
  environment = {**os.environ, "PYTHONPATH": root}
  running = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, str(i), address, str(sdxl_folder)],
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for i in range(2)
  ]
  for process in running:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
