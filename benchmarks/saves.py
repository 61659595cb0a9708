"""Measures the time that a save takes from the steps of a run.

    python benchmarks/saves.py --json saves.json

Three runs of the digits' reference, with wider levels so that a checkpoint is tens of megabytes, in
turns: without a save before the last step, with saves in the background (as always), and with saves
that are waited for. Their `goodput.json` has the seconds of the steps and those in which the loop
waits for a save; compilation and everything else is left out, and so is the last save, which every
run waits for at its end. A ratio is the time of a step with saves over that without, from the
median of the rounds. On a CPU the writing of a checkpoint uses cores that the steps use too; with
an accelerator it does not.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any
from unittest import mock

from train_step import machine

from dmpo_jax.configs import digits_reference
from dmpo_jax.training import goodput
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.run import train

SIDES = ("none", "background", "waited for")


def run_config(widths: tuple[int, ...], batch_size: int, steps: int, every: int):
  """Config of a run that saves every so many steps."""
  config = digits_reference.get_config()
  config.model.unet.block_out_channels = widths
  config.batch_size, config.num_steps, config.checkpoint.every = batch_size, steps, every
  config.checkpoint.keep, config.num_devices, config.optimizer.warmup_steps = 2, 1, 1
  return config


def measure(side: str, options: argparse.Namespace, folder: pathlib.Path) -> dict[str, float]:
  """Seconds of a step, of the loop's wait for a save, and bytes of a checkpoint.

  The wait is the median of all saves but the first, which compiles, and the last.

  Args:
    side: One of `SIDES`.
    options: Those of the program.
    folder: An empty folder for the run.
  """
  every = options.steps if side == "none" else options.every
  config = run_config(tuple(options.widths), options.batch_size, options.steps, every)
  save, waits = Checkpoints.save, []

  def timed(self, step, state, data):
    start = time.perf_counter()
    save(self, step, state, data)
    if side == "waited for":
      self.wait()
    waits.append(time.perf_counter() - start)

  with contextlib.ExitStack() as stack:
    stack.enter_context(mock.patch.object(Checkpoints, "save", timed))
    train(config, folder, show_progress=False)
  seconds = goodput.read(folder)["seconds"]
  last = folder / "checkpoints" / str(options.steps)
  return {
    "step": seconds["steps"] / options.steps,
    "wait": statistics.median(waits[1:-1]) if waits[1:-1] else 0.0,
    "bytes": sum(path.stat().st_size for path in last.rglob("*") if path.is_file()),
  }


def compare(options: argparse.Namespace) -> dict[str, Any]:
  """All measurements, by side and round, and the ratios of their medians."""
  rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
  with tempfile.TemporaryDirectory(dir=options.folder) as root:
    for i in range(options.repeats):
      for side in SIDES:
        rounds[side].append(measure(side, options, pathlib.Path(root) / f"{i} {side}"))
        print(f"round {i}, {side}: {rounds[side][-1]}", flush=True)
  step = {side: statistics.median(r["step"] for r in rounds[side]) for side in SIDES}
  wait = {side: statistics.median(r["wait"] for r in rounds[side]) for side in SIDES}
  step = {side: step[side] + wait[side] / options.every for side in SIDES}
  return {
    "machine": machine(),
    "rounds": rounds,
    "bytes": rounds["none"][0]["bytes"],
    "step_seconds": step,
    "wait_seconds": wait,
    "ratio": {side: step[side] / step["none"] for side in SIDES[1:]},
    "seconds_per_save": {side: options.every * (step[side] - step["none"]) for side in SIDES[1:]},
  }


def lines(result: dict[str, Any], every: int) -> list[str]:
  """The result as text."""
  text = [
    f"checkpoints of {result['bytes'] / 1e6:.1f} MB every {every} steps of "
    f"{result['step_seconds']['none']:.3f} s"
  ]
  for side, ratio in result["ratio"].items():
    text.append(
      f"  {side}: a step takes {ratio:.3f} of one without saves; a save costs "
      f"{result['seconds_per_save'][side]:.2f} s, of which the loop waits "
      f"{result['wait_seconds'][side]:.3f} s"
    )
  return text


def main() -> None:
  """Measures and prints the ratios."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--widths", type=int, nargs=2, default=[64, 128], help="levels of the UNet")
  parser.add_argument("--batch-size", type=int, default=16, help="examples of a step")
  parser.add_argument("--steps", type=int, default=60, help="steps of a run")
  parser.add_argument("--every", type=int, default=10, help="steps between saves")
  parser.add_argument("--repeats", type=int, default=5, help="runs of each kind")
  parser.add_argument("--folder", type=pathlib.Path, help="where to write (default: $TMPDIR)")
  parser.add_argument("--json", type=pathlib.Path, help="file for all measurements")
  options = parser.parse_args()
  result = compare(options)
  print("\n".join(lines(result, options.every)))
  if options.json:
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
