"""Time of the UNet, forward and gradient, against diffusers' on the same CPU.

    python benchmarks/unet.py --json unet.json
    python benchmarks/unet.py --quick

The networks are SD1.5's at several widths, and two small ones. Both sides read the same weights and
inputs, and their results are compared first. Each side has its own process on the same cores, and
they take turns, A B A B, so that other load on the machine affects both; the ratio is that of the
medians of the turns, with an interval from resampling whole rounds. Tracing and compile times are
reported separately, and so is the time to trace SD1.5 and SDXL at full size. Linux only.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

from interleaved import Worker, time_interleaved
from train_step import machine, ratio

# Largest relative difference of an array's norm at which both sides compute the same.
TOLERANCE = 1e-3
QUICK = ["small"]


def difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
  """Largest difference of two norms, relative to theirs or to 1e-4 of the largest.

  Raises:
    RuntimeError: The sides have different arrays.
  """
  if ours.keys() != theirs.keys():
    raise RuntimeError(f"only one side has {sorted(ours.keys() ^ theirs.keys())}")
  # Some gradients, of biases before a norm, are zero but for rounding.
  floor = 1e-4 * max(theirs.values())
  return max(abs(ours[name] - norm) / max(norm, floor) for name, norm in theirs.items())


def measure(
  name: str, gradient: bool, implementation: str, repeats: int, turn_seconds: float
) -> dict[str, Any]:
  """Checks and times both sides for one network.

  Args:
    name: Key of `unet_setting.SIZES`.
    gradient: Whether to compute forward and backward, or forward alone.
    implementation: `attention` of `models.Compute`.
    repeats: Number of rounds; each side has one turn per round.
    turn_seconds: Length of a turn, which has at least one step.

  Returns:
    Measurements as JSON values.

  Raises:
    RuntimeError: A side fails, or the results differ.
  """
  import unet_setting

  with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
    folder = pathlib.Path(temporary)
    unet_setting.write(unet_setting.SIZES[name], folder)
    sides = {
      "ours": Worker("jax", "unet_ours.OurSide", folder, gradient, implementation),
      "torch": Worker("torch", "unet_torch.TorchSide", folder, gradient),
    }
    for side in sides.values():  # one after the other, so that neither slows the other down
      stack.callback(side.close)
      side("start")
    prepared = {key: side("prepare") for key, side in sides.items()}
    differs = difference(*(side("check") for side in sides.values()))
    if differs > TOLERANCE:
      raise RuntimeError(f"{name!r}: the sides differ by {differs:.1e} in the norm of an array")
    timed = time_interleaved(sides, repeats, turn_seconds)
    return {
      "size": name,
      "what": "gradient" if gradient else "forward",
      "difference": differs,
      **timed,
      "processor_time": ratio(*(timed["processor_seconds"][key] for key in sides)),
      "tracing_seconds": sides["ours"]("tracing_seconds"),
      "prepare_seconds": prepared,
      "memory_mib": {key: side("memory") for key, side in sides.items()},
      "versions": {key: side("version") for key, side in sides.items()},
      **ratio(*(timed["seconds"][key] for key in sides)),
      "median_seconds": {
        key: statistics.median(seconds) for key, seconds in timed["seconds"].items()
      },
    }


def trace_full_size() -> dict[str, dict[str, float]]:
  """Seconds to build and to trace SD1.5 and SDXL at full size, without computing anything."""
  import jax
  import numpy as np
  import unet_setting

  from dmpo_jax import models

  def struct(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)

  sd15 = unet_setting.stable_diffusion(320, 1, 64)
  cases = {
    "SD1.5": (sd15.config, 64, {}),
    "SDXL": (unet_setting.SDXL, 128, {"text_embeds": struct(1, 1280), "time_ids": struct(1, 6)}),
  }
  seconds = {}
  for name, (config, pixels, more) in cases.items():
    started = time.perf_counter()
    model, params = models.build(config), models.abstract(config)
    built = time.perf_counter()
    context = struct(1, 77, config["cross_attention_dim"])
    jax.eval_shape(model.apply, params, struct(1, pixels, pixels, 4), struct(1), context, **more)
    seconds[name] = {"build": built - started, "eval_shape": time.perf_counter() - built}
  return seconds


HEADER = (
  f"{'size':8} {'what':8} {'ours s':>8} {'torch s':>8} {'ours/torch [95%]':>20} {'processor':>9} "
  f"{'others':>6} {'trace s':>7} {'compile s':>9} {'differs':>8}"
)


def row(result: dict[str, Any]) -> str:
  """One line of the table."""
  seconds = result["median_seconds"]
  interval = "{:.2f} [{:.2f}, {:.2f}]".format(result["ratio"], *result["ratio_95"])
  compiling = result["prepare_seconds"]["ours"] - result["tracing_seconds"]
  return (
    f"{result['size']:8} {result['what']:8} {seconds['ours']:8.3f} {seconds['torch']:8.3f} "
    f"{interval:>20} {result['processor_time']['ratio']:9.2f} "
    f"{result['others_share_of_cores']:6.0%} {result['tracing_seconds']:7.1f} {compiling:9.1f} "
    f"{result['difference']:8.1e}"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = ("small", "middle", "sd64", "sd128", "sd192", "sd320")
  parser.add_argument("--sizes", nargs="+", choices=names, default=["small", "sd64", "sd128"])
  parser.add_argument("--repeats", type=int, default=9, help="turns of each side")
  parser.add_argument("--turn-seconds", type=float, default=1.0, help="length of a turn")
  parser.add_argument(
    "--implementation",
    default="cpu",
    help="our implementation of attention and norms: cpu or plain",
  )
  parser.add_argument("--cores", type=int, help="number of cores to use (default: all)")
  parser.add_argument("--json", type=pathlib.Path, help="file for all measurements")
  parser.add_argument(
    "--quick", action="store_true", help="the smallest network, three short turns"
  )
  options = parser.parse_args()
  if options.quick:
    options.sizes, options.repeats, options.turn_seconds = QUICK, 3, 0.2
  if options.repeats < 3:
    parser.error("--repeats must be at least 3")
  cores = sorted(os.sched_getaffinity(0))
  if options.cores is not None:
    if not 1 <= options.cores <= len(cores):
      parser.error(f"--cores must be from 1 to {len(cores)}")
    os.sched_setaffinity(0, cores[-options.cores :])  # inherited by both sides
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compile times are those of a first run
  about = {**machine(), "implementation": options.implementation}
  traced = trace_full_size()
  results = []
  for name in options.sizes:
    for gradient in (False, True):
      result = measure(
        name, gradient, options.implementation, options.repeats, options.turn_seconds
      )
      if not results:
        about.update(result["versions"])
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        print(HEADER)
      print(row(result), flush=True)
      results.append(result)
  about["load_average_after"] = os.getloadavg()[0]
  print(
    f"s: median seconds per step over {options.repeats} turns; processor: ratio of processor "
    "time; others: fraction of the cores that\nother programs used; compile: lowering included; "
    f"load average {about['load_average']:.1f} to {about['load_average_after']:.1f}"
  )
  for name, seconds in traced.items():
    print(
      f"{name} at full size: {seconds['build']:.1f} s to build, {seconds['eval_shape']:.1f} s "
      "for jax.eval_shape"
    )
  if options.json:
    measurements = {"machine": about, "full_size": traced, "results": results}
    options.json.write_text(json.dumps(measurements, indent=2) + "\n")


if __name__ == "__main__":
  main()
