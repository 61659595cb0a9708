"""Kills commands (SIGKILL) at random moments until they end, and compares what they leave.

Run as a program: python -m tests.commands.kills FOLDER KILLS [COMMAND ...]

Each command runs twice undisturbed: the files of its result that are equal both times (all but
those with times in them) are what killed runs must end with. Then it is started, killed after a
random share of its time, with all its processes, and started again to its end, in turn. A kill
counts if it hit the command before its end.
"""

import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from dmpo_jax.common import unfinished

CONFIG = """
from ml_collections import ConfigDict
from dmpo_jax.training.config import default

def get_config():
  config = default()
  config.pipeline = {pipeline!r}
  config.data = ConfigDict({{"name": "pairs", "folder": {data!r}, "size": 16, "split": "train"}})
  config.loss = ConfigDict({{"name": "dmpo", "beta": 2000.0, "alpha": 0.01}})
  config.num_devices = 1
  config.batch_size, config.num_steps = 4, 12
  config.ema_decay = 0.9
  config.optimizer.learning_rate = 1e-3
  config.checkpoint.every = 2
  config.lora.rank, config.lora.alpha = {rank}, {rank}.0
  return config
"""


def commands(folder: pathlib.Path) -> dict[str, list[str]]:
  """The arguments of each command that writes; OUT stands for its result."""
  pipeline, data, table = folder / "sd", folder / "data", folder / "source" / "pairs.csv"
  train = ["train", "--no-progress", "--workdir", "OUT", "--config"]
  prompts = ["--prompt", "the digit seven", "--prompt", "one", "--seeds", "3", "--steps", "2"]
  convert = ["data", "convert", "custom", str(table), "--rows-per-shard", "4"]
  return {
    "train": [*train, str(folder / "whole.py")],
    "train a LoRA": [*train, str(folder / "lora.py")],
    "export": ["export", "--workdir", str(folder / "run"), "--out", "OUT"],
    "sample": [
      "sample",
      "--pipeline",
      str(pipeline),
      *prompts,
      "--batch-size",
      "1",
      "--out",
      "OUT",
    ],
    "evaluate": [
      *["evaluate", "--reference", str(pipeline), f"trained={folder / 'run'}", "--no-progress"],
      *["--prompts", str(folder / "prompts.txt"), "--seeds", "2", "--steps", "2"],
      *["--batch-size", "2", "--scorer", "colourfulness", "--out", "OUT"],
    ],
    "convert": [*convert, "--out", "OUT", "--workers", "1"],
    "convert with two workers": [*convert, "--out", "OUT", "--workers", "2"],
    "cache-latents": [
      *["data", "cache-latents", str(data), "--pipeline", str(pipeline), "--size", "16"],
      *["--out", "OUT", "--split", "train", "--pairs-per-shard", "4"],
    ],
  }


def prepare(folder: pathlib.Path) -> None:
  """Pipeline, pairs, configs and a finished run in an empty folder."""
  from tests.training import latents

  latents.write("sd", folder / "sd")
  source, chance = folder / "source", np.random.default_rng(0)
  source.mkdir()
  rows = ["prompt,image_0,image_1,label_0"]
  for i in range(24):
    for j in (0, 1):
      pixels = chance.integers(0, 255, (24, 24, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(source / f"{i}_{j}.png")
    rows.append(f"the digit {['seven', 'one'][i % 2]},{i}_0.png,{i}_1.png,{[1, 0, 0.75][i % 3]}")
  (source / "pairs.csv").write_text("\n".join(rows) + "\n")
  (folder / "prompts.txt").write_text("the digit seven\none\nseven\n")
  for name, rank in (("whole", 0), ("lora", 2)):
    text = CONFIG.format(pipeline=str(folder / "sd"), data=str(folder / "data"), rank=rank)
    (folder / f"{name}.py").write_text(text)
  finish(commands(folder)["convert"], folder / "data")
  finish(commands(folder)["train"], folder / "run")


def start(arguments: list[str], out: pathlib.Path) -> subprocess.Popen:
  """Starts a command in a process group of its own."""
  arguments = [str(out) if argument == "OUT" else argument for argument in arguments]
  command = [sys.executable, "-m", "dmpo_jax.commands.main", *arguments]
  quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
  return subprocess.Popen(command, start_new_session=True, **quiet)


def finish(arguments: list[str], out: pathlib.Path) -> float:
  """Runs a command to its end and returns its seconds."""
  begin = time.monotonic()
  child = start(arguments, out)
  _, errors = child.communicate()
  assert child.returncode == 0, errors.decode(errors="replace")
  return time.monotonic() - begin


def contents(out: pathlib.Path) -> dict[str, str]:
  """Digest of each file of a result."""
  files = sorted(path for path in out.rglob("*") if path.is_file())
  return {
    path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in files
  }


def kill_often(arguments: list[str], out: pathlib.Path, kills: int) -> tuple[int, int]:
  """Kills a command so often, each time followed by a run to its end.

  Returns:
    (files that were compared each time, kills that left a result that was not whole yet).
  """
  results, seconds = [], []
  for _ in range(2):
    shutil.rmtree(out, ignore_errors=True)
    seconds.append(finish(arguments, out))
    results.append(contents(out))
  wanted = {name: digest for name, digest in results[0].items() if results[1].get(name) == digest}
  assert wanted, "no two runs agree"
  chance, done, partial = random.Random(0), 0, 0
  while done < kills:
    shutil.rmtree(out, ignore_errors=True)
    child = start(arguments, out)
    time.sleep(chance.uniform(0.3, 1) * min(seconds))
    if child.poll() is not None:
      continue
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    done += 1
    partial += out.exists() and wanted.items() - contents(out).items() != set()
    finish(arguments, out)
    after = contents(out)
    assert {name: after.get(name) for name in wanted} == wanted
    left = [p for p in out.parent.rglob("*") if unfinished.NAME.fullmatch(p.name.lstrip("."))]
    assert not left, left
  return len(wanted), partial


def main(folder: str, kills: str, *names: str) -> None:
  """Prints a line for each command."""
  root = pathlib.Path(folder)
  if not (root / "run" / "summary.json").exists():
    root.mkdir(parents=True)
    prepare(root)
  (root / "out").mkdir(exist_ok=True)
  for name, arguments in commands(root).items():
    if not names or name in names:
      compared, partial = kill_often(arguments, root / "out" / "result", int(kills))
      print(
        f"{name}: {kills} kills, {partial} of them in the middle of the result; {compared} files "
        "equal each time",
        flush=True,
      )


if __name__ == "__main__":
  main(*sys.argv[1:])
