"""The Diffusion-DPO train step of this project against the same step in PyTorch.

    python benchmarks/train_step.py --repeats 15 --json train_step.json
    python benchmarks/train_step.py --sizes middle --layouts parts=2 data=2 fsdp=2 fsdp=2,parts=2
    python benchmarks/train_step.py --device gpu --sizes sd15 --torch eager compiled

All sides take the step that Diffusion-DPO asks for: the text encoder, the policy forward and
backward on all images of the pairs, the frozen reference forward, the DPO loss, a clip of the
gradient's norm, AdamW, a moving average of the parameters. They start from the same files and get
the same batch. With the same noise and timesteps their losses, gradient norms and parameters are
compared first; after that each side draws its own, as in training, and is timed.

The sides live in processes of their own on the same cores or the same card and take turns, A B A B:
whatever else the machine does falls on all. A ratio is that of the medians of the turns, ours over
the other; its interval comes from resampling whole rounds. On a CPU it means little where other
programs had a share of the cores (stated as `others`): threads that wait for each other suffer from
that more than their work does. The time our side takes to compile is stated apart, as is torch's
first step. Linux only, for it reads /proc.

--layouts adds our own step on a mesh (data, fsdp) or with a batch in parts, so that what sharding
and accumulation cost is seen; on a CPU the devices are simulated on the same cores, and nothing can
get faster there. --device gpu computes in bfloat16 (torch: autocast) and states the utilisation of
the card: model FLOPs of the pairs over its peak.

All sides inherit the environment. XLA returns a step's temporary arrays to the system and has each
page of them cleared anew in the next step; large pages make that cheap on a CPU:

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/train_step.py
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import tempfile
import time
from typing import Any

from interleaved import Worker, time_interleaved

# The largest relative difference of any checked number at which two sides took the same step, and
# of the loss of the first step alone, before rounding has gone through an optimizer. In bfloat16
# libraries round in different places.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


# What is compared: numbers of which nothing has cancelled. Logits and rewards are differences of
# them.
CHECKED = ("loss", "policy_w", "policy_l", "reference_w", "reference_l", "gradient_norm")
CHECKED_AT_THE_END = ("moved", "average_moved")


def disagreement(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
  """The largest relative difference over the checked steps of each number that is compared."""
  return {
    name: max(abs(a[name] / b[name] - 1) for a, b in zip(ours, theirs, strict=True) if name in b)
    for name in (*CHECKED, *CHECKED_AT_THE_END)
    if name in theirs[-1]
  }


def measure(
  size: Any, sides: dict[str, tuple], repeats: int, turn_seconds: float, folder: pathlib.Path
) -> dict:
  """Checks and times all sides at one size.

  Args:
    size: A `dpo_setting.Size`.
    sides: Name -> ("module.Class", further arguments); the first is "ours".
    repeats: Rounds; each side has a turn in each.
    turn_seconds: A turn takes as many steps as fill this time, and at least one.
    folder: An empty folder.

  Returns:
    All that was measured, ready for JSON.

  Raises:
    RuntimeError: A side fails, or one does not take the same step as ours.
  """
  import dpo_setting

  dpo_setting.write(size, folder)
  with contextlib.ExitStack() as stack:
    workers = {}
    for name, (kind, *arguments) in sides.items():
      workers[name] = Worker(name, kind, size, folder, *arguments)
      stack.callback(workers[name].close)
    for side in workers.values():  # one after the other, so that none slows another down
      side("start")
    prepared = {name: side("prepare") for name, side in workers.items()}
    checks = {name: side("check") for name, side in workers.items()}
    first, difference = {}, {}
    for name in list(workers)[1:]:
      difference[name] = disagreement(checks["ours"], checks[name])
      first[name] = abs(checks["ours"][0]["loss"] / checks[name][0]["loss"] - 1)
      if (
        first[name] > LOSS_TOLERANCE[size.dtype]
        or max(difference[name].values()) > TOLERANCE[size.dtype]
      ):
        raise RuntimeError(f"{name} and ours do not take the same step: {checks}")

    timed = time_interleaved(workers, repeats, turn_seconds)

    def ratios(what: str) -> dict[str, dict]:
      return {name: ratio(timed[what]["ours"], timed[what][name]) for name in workers}

    return {
      "pairs": size.pairs,
      "first_loss_difference": first,
      "difference": difference,
      "checks": checks,
      **timed,
      "ratio": ratios("seconds"),
      "processor_time": ratios("processor_seconds"),
      "prepare_seconds": prepared,
      "memory_mib": {name: side("memory") for name, side in workers.items()},
      "device": {name: side("device") for name, side in workers.items()},
      "versions": {name: side("version") for name, side in workers.items()},
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
    "median_seconds": float(medians[1]),
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
  f"{'size':8} {'side':20} {'pairs':>5} {'s':>8} {'pairs/s':>8} {'used':>6} "
  f"{'ours/side [95%]':>20} {'fastest':>7} {'first s':>8} {'MiB':>8} {'differs':>8}"
)


def rows(result: dict, flops: float) -> list[str]:
  """The lines of a size; memory is the device's, or that of the steps beyond the imports."""
  from dmpo_jax.models.flops import peak

  lines = []
  for name, found in result["ratio"].items():
    memory, device = result["memory_mib"][name], result["device"][name]
    grown = device["peak_mib"] or memory["peak_steps"] - memory["imported"]
    rate, best = result["pairs"] / found["median_seconds"], peak(device["kind"])
    used = "" if best is None else f"{rate * flops / (best * result['devices'][name]):.1%}"
    interval = "{:.2f} [{:.2f}, {:.2f}]".format(found["ratio"], *found["ratio_95"])
    differs = result["first_loss_difference"].get(name)
    lines.append(
      f"{result['size']:8} {name:20} {result['pairs']:5} {found['median_seconds']:8.3f} "
      f"{rate:8.2f} {used:>6} {'' if name == 'ours' else interval:>20} "
      f"{'' if name == 'ours' else format(found['ratio_of_fastest'], '.2f'):>7} "
      f"{result['prepare_seconds'][name]:8.1f} {grown:8.0f} "
      f"{'' if differs is None else format(differs, '.1e'):>8}"
    )
  return lines


def details(result: dict) -> str:
  """What does not fit into the table."""
  parts = [f"  {result['size']}: others had {result['others_share_of_cores']:.0%} of the cores"]
  for name, seconds in result["seconds"].items():
    used, memory = result["processor_time"][name], result["memory_mib"][name]
    line = f"  {name}: {min(seconds):.3f} to {max(seconds):.3f} s"
    if name != "ours":
      line += "; ratio of processor time {:.2f} [{:.2f}, {:.2f}]".format(
        used["ratio"], *used["ratio_95"]
      )
      found = result["difference"][name]
      differs = max(found, key=found.get)
      line += (
        f"; over {len(result['checks'][name])} steps {', '.join(found)} agree with ours within "
        f"{found[differs]:.1e} ({differs})"
      )
    planned = memory["planned_temporaries"]
    line += (
      f"; peak MiB of the process: imports {memory['imported']:.0f}, until the first step "
      f"{memory['peak_preparing']:.0f}, then {memory['prepared']:.0f}, steps "
      f"{memory['peak_steps']:.0f}" + (f"; XLA plans {planned:.0f}" if planned else "")
    )
    parts.append(line)
  return "\n".join(parts)


def layout(text: str) -> dict[str, int]:
  """The arguments of our side in "fsdp=2,parts=4"; ValueError if there is another one."""
  found = {key: int(value) for key, value in (item.split("=") for item in text.split(","))}
  if not found or set(found) - {"data", "fsdp", "parts"} or min(found.values()) < 1:
    raise ValueError(text)
  return found


def flops_of(size: Any) -> float:
  """Model FLOPs of a pair at a size."""
  from dmpo_jax.pipelines import stable_diffusion_flops

  unet, text = size.model["unet"], size.model["text_encoder"]
  return sum(
    stable_diffusion_flops.per_example(
      {"unet": unet, "text_encoder": {**text, "vocab_size": 1}},
      height=unet["sample_size"],
      width=unet["sample_size"],
      tokens=text["max_position_embeddings"],
    ).values()
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = ("digits", "middle", "large", "sd15")
  parser.add_argument("--sizes", nargs="+", choices=names, default=names[:3])
  parser.add_argument("--pairs", type=int, help="pairs of a batch, in place of the size's")
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of networks (default: float32 on a CPU, bfloat16 on a GPU)",
  )
  parser.add_argument("--remat", default="none", help="our rematerialisation policy")
  parser.add_argument(
    "--torch",
    nargs="*",
    choices=("eager", "compiled"),
    default=["eager"],
    help="torch's side, or sides, or none (compiled needs a compiler)",
  )
  parser.add_argument(
    "--layouts",
    nargs="+",
    type=layout,
    default=[],
    metavar="data=N,fsdp=N,parts=N",
    help="our step on meshes and in accumulated parts, beside the plain one",
  )
  parser.add_argument("--repeats", type=int, default=15, help="turns of each side")
  parser.add_argument(
    "--turn-seconds", type=float, default=1.0, help="a turn takes the steps that fill this time"
  )
  parser.add_argument("--cores", type=int, help="use so many of the cores only")
  parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
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
    os.sched_setaffinity(0, cores[-options.cores :])  # all sides inherit it
  # This process only writes what the sides read. Compile times are those of a first run.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  if options.device == "cpu":
    os.environ["JAX_PLATFORMS"] = "cpu"
  else:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the sides share the card
  sides = {"ours": ("dpo_ours.OurSide",)}
  for given in options.layouts:
    name = "ours " + ",".join(f"{key}={value}" for key, value in given.items())
    sides[name] = ("dpo_ours.OurSide", *(given.get(key, 1) for key in ("data", "fsdp", "parts")))
  for kind in options.torch:
    torch_options = {
      "compile": kind == "compiled",
      "channels_last": options.torch_channels_last,
      "device": "cuda" if options.device == "gpu" else "cpu",
    }
    sides[f"torch {kind}"] = ("dpo_torch.TorchSide", torch_options)
  if len(sides) == 1:
    parser.error("nothing to compare: give --torch or --layouts")

  import dpo_setting

  results, about = [], machine()
  for name in options.sizes:
    size = dpo_setting.SIZES[name]()
    size = size._replace(
      pairs=options.pairs or size.pairs,
      dtype=options.dtype or ("float32" if options.device == "cpu" else "bfloat16"),
      remat=options.remat,
    )
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary)
      result = measure(size, sides, options.repeats, options.turn_seconds, folder)
    result |= {"size": name, "dtype": size.dtype, "remat": size.remat}
    result["devices"] = {n: math.prod([1, *s[1:3]]) if "=" in n else 1 for n, s in sides.items()}
    if not results:
      about |= {"device": result["device"]["ours"]["kind"], **result["versions"]}
      print(", ".join(f"{key} {value}" for key, value in about.items()))
      print(HEADER)
    print("\n".join(rows(result, flops_of(size))), flush=True)
    results.append(result)
  about["load_average_after"] = os.getloadavg()[0]
  print(
    f"s: median of a step's seconds over {options.repeats} turns; used: model FLOPs over the "
    "device's peak; fastest: ratio of the\nfastest turns; first s: compiling, or torch's first "
    "step; MiB: the device's peak, or that of the process's steps beyond its\nimports; differs: "
    f"loss of the first step; load average {about['load_average']:.1f} to "
    f"{about['load_average_after']:.1f}"
  )
  for result in results:
    print(details(result))
  if options.json:
    options.json.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
  main()
