"""Time of the Diffusion-DPO train step against the same step in PyTorch.

    python benchmarks/train_step.py --repeats 15 --json train_step.json
    python benchmarks/train_step.py --sizes middle --layouts microbatches=2 data=2 fsdp=2
    python benchmarks/train_step.py --device gpu --sizes sd15 --torch eager compiled

All sides take the whole step: the text encoder, the policy forward and backward on all images of
the pairs, the frozen reference forward, the DPO loss, gradient clipping, AdamW and the EMA. They
start from the same files and the same batch. First their losses, gradient norms and parameters are
compared with the same noise and timesteps; then each side samples its own, as in training, and is
timed.

Each side has its own process on the same cores or GPU, and they take turns, A B A B, so that other
load on the machine affects all of them. A ratio is that of the medians of the turns, ours over the
other; its interval comes from resampling whole rounds. On a CPU it means little when other programs
use the cores (column `others`), since that slows threads that wait for each other more than their
work. Our compile time and torch's first step are reported separately. Linux only: it reads /proc.

--layouts adds our step on a mesh (data, fsdp) or with microbatches, which shows the cost of
sharding and gradient accumulation; on a CPU the devices are simulated on the same cores, so nothing
gets faster. --device gpu computes in bfloat16 (torch: autocast) and reports MFU.

All sides inherit the environment. On a CPU, XLA frees a step's temporary arrays and the system
clears each of their pages again in the next step; large pages make that cheap:

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

# Largest relative difference of all checked numbers, and of the first step's loss, at which two
# sides take the same step. In bfloat16 the libraries round in different places.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


# The compared numbers. Logits and rewards, their differences, lose digits by cancellation.
CHECKED = ("loss", "policy_w", "policy_l", "reference_w", "reference_l", "gradient_norm")
CHECKED_AT_THE_END = ("change", "ema_change")


def disagreement(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
  """Largest relative difference of each compared number over the checked steps."""
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
    repeats: Number of rounds; each side has one turn per round.
    turn_seconds: Length of a turn, which has at least one step.
    folder: An empty folder.

  Returns:
    Measurements as JSON values.

  Raises:
    RuntimeError: A side fails, or takes another step than ours.
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
  """Ratio of the medians with a 95% interval, from rounds resampled with replacement."""
  import numpy as np

  rounds = np.array([ours, theirs])  # [2, rounds]
  resampled = np.random.default_rng(0).integers(rounds.shape[1], size=(resamples, rounds.shape[1]))
  a, b = np.median(rounds[:, resampled], axis=-1)  # [resamples] each
  low, high = np.quantile(a / b, [0.025, 0.975])
  medians = np.median(rounds, axis=1)
  return {
    "median_seconds": float(medians[1]),
    "ratio": float(medians[0] / medians[1]),
    "ratio_95": [float(low), float(high)],
    "ratio_of_fastest": float(rounds[0].min() / rounds[1].min()),
  }


def machine() -> dict[str, Any]:
  """Properties of the machine that the results depend on."""
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
  f"{'size':8} {'side':20} {'pairs':>5} {'s':>8} {'pairs/s':>8} {'MFU':>6} "
  f"{'ours/side [95%]':>20} {'fastest':>7} {'first s':>8} {'MiB':>8} {'differs':>8}"
)


def rows(result: dict, flops: float) -> list[str]:
  """Lines of the table; memory is the device's, or that of the process beyond its imports."""
  from dmpo_jax.models.flops import peak

  lines = []
  for name, ratios in result["ratio"].items():
    memory, device = result["memory_mib"][name], result["device"][name]
    memory_mib = device["peak_mib"] or memory["peak_steps"] - memory["imported"]
    rate, best = result["pairs"] / ratios["median_seconds"], peak(device["kind"])
    mfu = "" if best is None else f"{rate * flops / (best * result['devices'][name]):.1%}"
    interval = "{:.2f} [{:.2f}, {:.2f}]".format(ratios["ratio"], *ratios["ratio_95"])
    differs = result["first_loss_difference"].get(name)
    lines.append(
      f"{result['size']:8} {name:20} {result['pairs']:5} {ratios['median_seconds']:8.3f} "
      f"{rate:8.2f} {mfu:>6} {'' if name == 'ours' else interval:>20} "
      f"{'' if name == 'ours' else format(ratios['ratio_of_fastest'], '.2f'):>7} "
      f"{result['prepare_seconds'][name]:8.1f} {memory_mib:8.0f} "
      f"{'' if differs is None else format(differs, '.1e'):>8}"
    )
  return lines


def details(result: dict) -> str:
  """Further measurements of a size as text."""
  lines = [
    f"  {result['size']}: other programs used {result['others_share_of_cores']:.0%} of the cores"
  ]
  for name, seconds in result["seconds"].items():
    used, memory = result["processor_time"][name], result["memory_mib"][name]
    line = f"  {name}: {min(seconds):.3f} to {max(seconds):.3f} s"
    if name != "ours":
      line += "; ratio of processor time {:.2f} [{:.2f}, {:.2f}]".format(
        used["ratio"], *used["ratio_95"]
      )
      difference = result["difference"][name]
      largest = max(difference, key=difference.get)
      line += (
        f"; over {len(result['checks'][name])} steps {', '.join(difference)} agree within "
        f"{difference[largest]:.1e} ({largest})"
      )
    planned = memory["planned_temporaries"]
    line += (
      f"; peak MiB of the process: imports {memory['imported']:.0f}, until the first step "
      f"{memory['peak_preparing']:.0f}, then {memory['prepared']:.0f}, steps "
      f"{memory['peak_steps']:.0f}" + (f"; XLA plans {planned:.0f}" if planned else "")
    )
    lines.append(line)
  return "\n".join(lines)


def layout(text: str) -> dict[str, int]:
  """Layout in a text such as "fsdp=2,microbatches=4"; raises ValueError if it is malformed."""
  sizes = {key: int(value) for key, value in (item.split("=") for item in text.split(","))}
  if not sizes or set(sizes) - {"data", "fsdp", "microbatches"} or min(sizes.values()) < 1:
    raise ValueError(text)
  return sizes


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
  parser.add_argument("--pairs", type=int, help="pairs per batch (default: that of the size)")
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="dtype of the networks (default: float32 on a CPU, bfloat16 on a GPU)",
  )
  parser.add_argument("--remat", default="none", help="our rematerialisation policy")
  parser.add_argument(
    "--torch",
    nargs="*",
    choices=("eager", "compiled"),
    default=["eager"],
    help="torch's sides, or none (compiled needs a compiler)",
  )
  parser.add_argument(
    "--layouts",
    nargs="+",
    type=layout,
    default=[],
    metavar="data=N,fsdp=N,microbatches=N",
    help="our step on meshes and with gradient accumulation, beside the plain one",
  )
  parser.add_argument("--repeats", type=int, default=15, help="turns of each side")
  parser.add_argument("--turn-seconds", type=float, default=1.0, help="length of a turn")
  parser.add_argument("--cores", type=int, help="number of cores to use (default: all)")
  parser.add_argument("--json", type=pathlib.Path, help="file for all measurements")
  parser.add_argument(
    "--torch-channels-last",
    action="store_true",
    help="channels_last layout of torch's images and weights",
  )
  options = parser.parse_args()
  if options.repeats < 3:
    parser.error("--repeats must be at least 3")
  cores = sorted(os.sched_getaffinity(0))
  if options.cores is not None:
    if not 1 <= options.cores <= len(cores):
      parser.error(f"--cores must be from 1 to {len(cores)}")
    os.sched_setaffinity(0, cores[-options.cores :])  # inherited by all sides
  # Compile times are those of a first run. This process only writes the files of the sides.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  if options.device == "cpu":
    os.environ["JAX_PLATFORMS"] = "cpu"
  else:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the sides share the GPU
  sides = {"ours": ("dpo_ours.OurSide",)}
  for sizes in options.layouts:
    name = "ours " + ",".join(f"{key}={value}" for key, value in sizes.items())
    sides[name] = (
      "dpo_ours.OurSide",
      *(sizes.get(key, 1) for key in ("data", "fsdp", "microbatches")),
    )
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
    f"s: median seconds per step over {options.repeats} turns; MFU: model FLOPs over the "
    "device's peak; fastest: ratio of the\nfastest turns; first s: compiling, or torch's first "
    "step; MiB: peak memory of the device, or of the process beyond its\nimports; differs: "
    f"loss of the first step; load average {about['load_average']:.1f} to "
    f"{about['load_average_after']:.1f}"
  )
  for result in results:
    print(details(result))
  if options.json:
    options.json.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
  main()
