"""Images a second of CLIP's image encoders, against transformers in torch on the same CPU.

    python benchmarks/scorers.py --json scorers.json
    python benchmarks/scorers.py --sizes H/14 --loading --repeats 3
    python benchmarks/scorers.py --quick

Both sides read the same random weights, in float32, and their embeddings are compared first. Each
side has its own process on the same cores, and they take turns, A B A B, so that other load on the
machine affects both; the ratio is that of the medians of the turns, with an interval from
resampling whole rounds. Loading is timed from files in the page cache to arrays in memory. H/14
writes a file of 3.9 GB, and each side holds the weights in memory. Linux only.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import tempfile
from typing import Any

import numpy as np
from interleaved import Worker, time_interleaved
from train_step import machine, ratio

# Largest deviation of an embedding, relative to the largest number.
TOLERANCE = 1e-4


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Largest deviation of the embeddings, relative to the largest number of theirs."""
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def measure(
  name: str, implementation: str | None, repeats: int, turn_seconds: float
) -> dict[str, Any]:
  """Checks and times both sides for one model.

  Args:
    name: Key of `scorers_setting.SIZES`.
    implementation: `attention` of `models.Compute`.
    repeats: Number of rounds; each side has one turn per round.
    turn_seconds: Length of a turn, which has at least one step.

  Returns:
    Measurements as JSON values.

  Raises:
    RuntimeError: A side fails, or the embeddings differ.
  """
  import scorers_setting

  size = scorers_setting.SIZES[name]
  with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
    folder = pathlib.Path(temporary)
    scorers_setting.write(size, folder)
    sides = {
      "ours": Worker("jax", "scorers_ours.OurSide", folder, implementation),
      "torch": Worker("torch", "scorers_torch.TorchSide", folder),
    }
    for side in sides.values():  # one after the other, so that neither slows the other down
      stack.callback(side.close)
      side("start")
    prepared = {key: side("prepare") for key, side in sides.items()}
    differs = difference(*(side("check") for side in sides.values()))
    if differs > TOLERANCE:
      raise RuntimeError(f"{name!r}: the embeddings of the sides differ by {differs:.1e}")
    timed = time_interleaved(sides, repeats, turn_seconds)
    medians = {key: statistics.median(seconds) for key, seconds in timed["seconds"].items()}
    return {
      "size": name,
      "batch": size.batch,
      "difference": differs,
      **timed,
      "images_per_second": {key: size.batch / seconds for key, seconds in medians.items()},
      "processor_time": ratio(*(timed["processor_seconds"][key] for key in sides)),
      "loading_seconds": {key: side("loading_seconds") for key, side in sides.items()},
      "file_bytes": (folder / "model.safetensors").stat().st_size,
      "prepare_seconds": prepared,
      "memory_mib": {key: side("memory") for key, side in sides.items()},
      "versions": {key: side("version") for key, side in sides.items()},
      **ratio(*(timed["seconds"][key] for key in sides)),
    }


def measure_loading(name: str, repeats: int) -> dict[str, Any]:
  """Times loading alone, in turns, each in a new process.

  Args:
    name: Key of `scorers_setting.SIZES`.
    repeats: Number of processes of each side.

  Returns:
    Seconds and peak of memory in MiB (imports included) by side, as JSON values.
  """
  import scorers_setting

  sides = {"ours": ("scorers_ours.OurSide", None), "torch": ("scorers_torch.TorchSide",)}
  seconds, peak = {key: [] for key in sides}, {key: [] for key in sides}
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    scorers_setting.write(scorers_setting.SIZES[name], folder)
    for _ in range(repeats):
      for key, (side, *rest) in sides.items():
        worker = Worker(key, side, folder, *rest)
        worker("start")
        seconds[key].append(worker("loading_seconds"))
        status = pathlib.Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
        line = next(line for line in status if line.startswith("VmHWM:"))
        peak[key].append(int(line.split()[1]) / 1024)
        worker.close()
  return {"size": name, "loading_seconds": seconds, "peak_mib": peak}


HEADER = (
  f"{'size':6} {'batch':>5} {'ours im/s':>9} {'torch':>7} {'ours/torch time [95%]':>21} "
  f"{'fastest':>7} {'processor':>9} {'others':>6} {'load s':>6} {'torch':>6} {'peak MiB':>8} "
  f"{'torch':>7} {'compile':>7} {'differs':>8}"
)


def row(result: dict[str, Any]) -> str:
  """One line of the table; peak memory is that of the steps beyond the imports."""
  speed, loading = result["images_per_second"], result["loading_seconds"]
  peak = {k: m["peak_steps"] - m["imported"] for k, m in result["memory_mib"].items()}
  interval = "{:.2f} [{:.2f}, {:.2f}]".format(result["ratio"], *result["ratio_95"])
  return (
    f"{result['size']:6} {result['batch']:5} {speed['ours']:9.2f} {speed['torch']:7.2f} "
    f"{interval:>21} {result['ratio_of_fastest']:7.2f} {result['processor_time']['ratio']:9.2f} "
    f"{result['others_share_of_cores']:6.0%} {loading['ours']:6.1f} {loading['torch']:6.1f} "
    f"{peak['ours']:8.0f} {peak['torch']:7.0f} {result['prepare_seconds']['ours']:7.1f} "
    f"{result['difference']:8.1e}"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = ("tiny", "B/32", "L/14", "H/14")
  parser.add_argument("--sizes", nargs="+", choices=names, default=["B/32", "L/14"])
  parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
  parser.add_argument("--turn-seconds", type=float, default=2.0, help="length of a turn")
  parser.add_argument("--implementation", help="our attention: cpu (default) or plain")
  parser.add_argument("--json", type=pathlib.Path, help="file for all measurements")
  parser.add_argument("--loading", action="store_true", help="measure loading alone")
  parser.add_argument("--cores", type=int, help="number of cores to use (default: all)")
  parser.add_argument("--quick", action="store_true", help="the smallest model, three short turns")
  options = parser.parse_args()
  if options.quick:
    options.sizes, options.repeats, options.turn_seconds = ["tiny"], 3, 0.2
  if options.repeats < 3:
    parser.error("--repeats must be at least 3")
  cores = sorted(os.sched_getaffinity(0))
  if options.cores is not None:
    if not 1 <= options.cores <= len(cores):
      parser.error(f"--cores must be from 1 to {len(cores)}")
    os.sched_setaffinity(0, cores[-options.cores :])  # inherited by both sides
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compile times are those of a first run
  about, results = {**machine(), "implementation": options.implementation or "cpu"}, []
  for name in options.sizes:
    if options.loading:
      results.append(measure_loading(name, options.repeats))
      print(json.dumps(results[-1]), flush=True)
      continue
    result = measure(name, options.implementation, options.repeats, options.turn_seconds)
    if not results:
      about.update(result["versions"])
      print(", ".join(f"{key} {value}" for key, value in about.items()))
      print(HEADER)
    print(row(result), flush=True)
    results.append(result)
  about["load_average_after"] = os.getloadavg()[0]
  print(f"load average {about['load_average']:.1f} to {about['load_average_after']:.1f}")
  if options.json:
    options.json.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
  main()
