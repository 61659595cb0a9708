"""The Diffusion-DPO train step of this project against the same step in PyTorch, on one CPU.

    python benchmarks/train_step.py --repeats 15 --json train_step.json

Both sides take the step that Diffusion-DPO asks for: the text encoder, the policy forward and
backward on all images of the pairs, the frozen reference forward, the DPO loss, a clip of the
gradient's norm, AdamW, a moving average of the parameters. They start from the same files and get
the same batch. With the same noise and timesteps their losses, gradient norms and parameters are
compared first; after that each side draws its own, as in training, and is timed.

The sides live in two processes on the same cores and take turns, A B A B: whatever else the machine
does falls on both. The ratio is that of the medians of the turns; its interval comes from
resampling whole rounds. It means little where other programs had a share of the cores (stated as
`others`): threads that wait for each other suffer from that more than their work does. The time our
side takes to compile is stated apart, as is torch's first step. Linux only, for it reads /proc.

Both sides inherit the environment. XLA returns a step's temporary arrays to the system and has each
page of them cleared anew in the next step; large pages make that cheap:

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/train_step.py
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile
import time
from typing import Any

from peers import Peer, take_turns

# The largest relative difference of any checked number at which both took the same step.
TOLERANCE = 1e-3
# Loss of the first step alone, before rounding has gone through an optimizer.
LOSS_TOLERANCE = 1e-4


def disagreement(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
  """The largest relative difference over the checked steps of each number both sides state."""
  return {
    name: max(abs(a[name] / b[name] - 1) for a, b in zip(ours, theirs, strict=True) if name in b)
    for name in theirs[-1]
  }


def measure(name: str, repeats: int, turn_seconds: float, options: dict[str, Any]) -> dict:
  """Checks and times both sides at one size.

  Args:
    name: Key of `dpo_setting.SIZES`.
    repeats: Rounds; each side has a turn in each.
    turn_seconds: A turn takes as many steps as fill this time, and at least one.
    options: Of the torch side: `compile` and `channels_last`.

  Returns:
    All that was measured, ready for JSON.

  Raises:
    RuntimeError: A side fails, or the two do not take the same step.
  """
  import dpo_setting

  size = dpo_setting.SIZES[name]()
  with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
    folder = pathlib.Path(temporary)
    dpo_setting.write(size, folder)
    ours = Peer("jax", "dpo_ours.OurSide", size, folder)
    theirs = Peer("torch", "dpo_torch.TorchSide", size, folder, options)
    stack.callback(ours.close)
    stack.callback(theirs.close)
    sides = {"ours": ours, "torch": theirs}
    for side in sides.values():  # one after the other, so that neither slows the other down
      side("start")
    prepared = {key: side("prepare") for key, side in sides.items()}
    checks = {key: side("check") for key, side in sides.items()}
    difference = disagreement(checks["ours"], checks["torch"])
    first = abs(checks["ours"][0]["loss"] / checks["torch"][0]["loss"] - 1)
    if first > LOSS_TOLERANCE or max(difference.values()) > TOLERANCE:
      raise RuntimeError(f"size {name!r}: the sides do not take the same step: {checks}")

    timed = take_turns(sides, repeats, turn_seconds)
    return {
      "size": name,
      "pairs": size.pairs,
      "first_loss_difference": first,
      "difference": difference,
      "checks": checks,
      **timed,
      "processor_time": ratio(*(timed["processor_seconds"][key] for key in ("ours", "torch"))),
      "prepare_seconds": prepared,
      "memory_mib": {key: side("memory") for key, side in sides.items()},
      "versions": {key: side("version") for key, side in sides.items()},
      **ratio(*(timed["seconds"][key] for key in ("ours", "torch"))),
    }


def ratio(ours: list[float], theirs: list[float], resamples: int = 4000) -> dict[str, Any]:
  """Ratio of the medians with a 95% interval, from rounds drawn with replacement."""
  import numpy as np

  rounds = np.array([ours, theirs])  # [2, rounds]
  drawn = np.random.default_rng(0).integers(rounds.shape[1], size=(resamples, rounds.shape[1]))
  a, b = np.median(rounds[:, drawn], axis=-1)  # [resamples] each
  low, high = np.quantile(a / b, [0.025, 0.975])
  medians = np.median(rounds, axis=1)
  return {
    "median_seconds": {"ours": float(medians[0]), "torch": float(medians[1])},
    "ratio": float(medians[0] / medians[1]),
    "ratio_95": [float(low), float(high)],
    "ratio_of_fastest": float(rounds[0].min() / rounds[1].min()),
  }


def machine() -> dict[str, Any]:
  """What the figures depend on beside the code."""
  cpus = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  model = next((line.split(":")[1].strip() for line in cpus if line.startswith("model name")), "")
  return {
    "cpu": model or platform.processor(),
    "cores": len(os.sched_getaffinity(0)),
    "load_average": os.getloadavg()[0],
    "python": platform.python_version(),
    "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    "diffusers": importlib.metadata.version("diffusers"),
    "date": time.strftime("%Y-%m-%d %H:%M"),
  }


HEADER = (
  f"{'size':8} {'pairs':>5} {'ours s':>8} {'torch s':>8} {'ours/torch [95%]':>20} "
  f"{'fastest':>7} {'others':>6} {'compile s':>9} {'torch 1st':>9} {'MiB ours':>8} "
  f"{'MiB torch':>9} {'loss differs':>12}"
)


def row(result: dict) -> str:
  """One line of the table; memory is that of the steps, beyond what the imports take."""
  seconds, prepared, memory = (
    result[key] for key in ("median_seconds", "prepare_seconds", "memory_mib")
  )
  grown = {key: memory[key]["peak_steps"] - memory[key]["imported"] for key in memory}
  interval = "{:.2f} [{:.2f}, {:.2f}]".format(result["ratio"], *result["ratio_95"])
  return (
    f"{result['size']:8} {result['pairs']:5} {seconds['ours']:8.3f} {seconds['torch']:8.3f} "
    f"{interval:>20} {result['ratio_of_fastest']:7.2f} {result['others_share_of_cores']:6.0%} "
    f"{prepared['ours']:9.1f} {prepared['torch']:9.1f} {grown['ours']:8.0f} {grown['torch']:9.0f} "
    f"{result['first_loss_difference']:12.1e}"
  )


def details(result: dict) -> str:
  """What does not fit into the table."""
  memory = result["memory_mib"]
  parts = [
    f"{key}: imports {m['imported']:.0f}, until the first step {m['peak_preparing']:.0f}, "
    f"then {m['prepared']:.0f}, steps {m['peak_steps']:.0f}"
    for key, m in memory.items()
  ]
  used = result["processor_time"]
  spread = {key: f"{min(s):.3f} to {max(s):.3f}" for key, s in result["seconds"].items()}
  differs = max(result["difference"], key=result["difference"].get)
  return (
    f"  {result['size']}: seconds ours {spread['ours']}, torch {spread['torch']}; "
    "ratio of processor time {:.2f} [{:.2f}, {:.2f}]\n".format(used["ratio"], *used["ratio_95"])
    + f"  peak MiB of the process: {'; '.join(parts)}; XLA plans "
    f"{memory['ours']['planned_temporaries']:.0f} for temporaries\n"
    f"  over {len(result['checks']['ours'])} steps {', '.join(result['difference'])} agree within "
    f"{result['difference'][differs]:.1e} ({differs})"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = ("digits", "middle", "large")
  parser.add_argument("--sizes", nargs="+", choices=names, default=names)
  parser.add_argument("--repeats", type=int, default=15, help="turns of each side")
  parser.add_argument(
    "--turn-seconds", type=float, default=1.0, help="a turn takes the steps that fill this time"
  )
  parser.add_argument("--cores", type=int, help="use so many of the cores only")
  parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
  parser.add_argument(
    "--torch-compile", action="store_true", help="torch.compile on the networks (needs a compiler)"
  )
  parser.add_argument(
    "--torch-channels-last", action="store_true", help="torch's images and weights channels last"
  )
  options = parser.parse_args()
  if options.repeats < 3:
    parser.error("--repeats must be at least 3")
  cores = sorted(os.sched_getaffinity(0))
  if options.cores is not None:
    if not 1 <= options.cores <= len(cores):
      parser.error(f"--cores must be from 1 to {len(cores)}")
    os.sched_setaffinity(0, cores[-options.cores :])  # both sides inherit it
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compile times are those of a first run
  torch_options = {"compile": options.torch_compile, "channels_last": options.torch_channels_last}
  about = {**machine(), "torch_options": torch_options}
  results = []
  for name in options.sizes:
    result = measure(name, options.repeats, options.turn_seconds, torch_options)
    if not results:
      about.update(result["versions"])
      print(", ".join(f"{key} {value}" for key, value in about.items()))
      print(HEADER)
    print(row(result), flush=True)
    results.append(result)
  about["load_average_after"] = os.getloadavg()[0]
  print(
    f"s: median of a step's seconds over {options.repeats} turns; fastest: ratio of the fastest "
    "turns; others: share of the cores\nthat other programs had; MiB: peak while stepping, beyond "
    f"what the imports take; load average {about['load_average']:.1f} to "
    f"{about['load_average_after']:.1f}"
  )
  for result in results:
    print(details(result))
  if options.json:
    options.json.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
  main()
