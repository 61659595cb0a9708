"""Speed of the train step on a GPU, in minutes: one model, a list of variants, a row as measured.

    python benchmarks/gpu.py --model sd15 --variants ours torch salesforce
    python benchmarks/gpu.py --model sd15 --variants ours:remat=none,batch_size=16 \\
      ours:layout=ohwi ours:xla_gpu_deterministic_ops=true --profile --rows rows.jsonl
    python benchmarks/gpu.py --model sdxl --variants ours torch:pairs=2 --seconds 30 \\
      --compile-seconds 240

A variant is a side and its options. Sides: ours; torch (eager, with all that makes it fast);
torch_compiled; salesforce (the operations of Diffusion-DPO's published script, in their order).
Options of ours: config keys (remat, batch_size, optimizer.name, ...), layout=ohwi (kernels of
convolutions in the order that cuDNN takes) and XLA's flags (xla_...); of torch's sides: pairs.

All sides take a Diffusion-DPO step of a UNet on random latents and text embeddings: policy forward
and backward on both images, frozen reference, clipping, optimizer, EMA. Weights are random and made
on the device. That the sides take the same step is checked by benchmarks/train_step.py.

Each variant has a process of its own and two limits, for compiling and for measuring; one that does
not finish is ended, and its row says so. Programs and autotuning results are kept in --cache, which
can be carried to another machine of the same kind. On a CPU the program runs with --model tiny.
"""

import argparse
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SIDES = ("ours", "torch", "torch_compiled", "salesforce")
GROUP = 4  # steps that are dispatched before the host waits
HEADER = (
  "| variant | pairs | s/step | pairs/s | MFU | state, temporaries, peak GiB | compile s | loss "
  "| same bits twice |\n|---|---|---|---|---|---|---|---|---|"
)


def variant(text: str) -> tuple[str, dict[str, str]]:
  """A side and its options from "side:key=value,key=value"."""
  side, _, rest = text.partition(":")
  if side not in SIDES:
    raise argparse.ArgumentTypeError(f"{side!r} is no side; sides are {', '.join(SIDES)}")
  pairs = [item.partition("=") for item in rest.split(",") if item]
  if any(not (key and equals and value) for key, equals, value in pairs):
    raise argparse.ArgumentTypeError(f"options are key=value,key=value, got {rest!r}")
  return side, {key: value for key, _, value in pairs}


def child(model: str, side: str, options: dict[str, str], seconds: float, profile: str) -> None:
  """Measures a variant in this process; writes a line of JSON for each thing that is done."""

  def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)

  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  if side == "ours":
    import gpu_ours

    measured = gpu_ours.Side(model, options)
  else:
    import gpu_torch

    measured = gpu_torch.Side(model, side, options)
  started = time.perf_counter()
  measured.compile()
  tell(pairs=measured.pairs, compile_seconds=time.perf_counter() - started, **measured.about())
  tell(loss=measured.first_loss(), seconds=[])
  end, groups = time.perf_counter() + seconds, []
  while len(groups) < 3 or (time.perf_counter() < end and len(groups) < 25):
    started = time.perf_counter()
    for _ in range(GROUP):
      measured.step()
    measured.wait()
    groups.append((time.perf_counter() - started) / GROUP)
    tell(seconds=groups, memory_gib=measured.memory())
  tell(twice_alike=measured.twice_alike())
  if profile:
    tell(profile=measured.profile(pathlib.Path(profile), 3))


def environment(options: dict[str, str], cache: pathlib.Path) -> dict[str, str]:
  """The environment of a variant: XLA's flags among its options, and the caches of all sides."""
  flags = [f"--{key}={value}" for key, value in options.items() if key.startswith("xla_")]
  return {
    **os.environ,
    "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip(),
    "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "all",
    "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
  }


def measure(command: list[str], env: dict[str, str], compiling: float, measuring: float) -> dict:
  """Runs a child and collects what it writes, up to its limits.

  Args:
    command: The child.
    env: Its environment.
    compiling: Seconds until it must have compiled, from its start.
    measuring: Seconds from then until it must have ended.

  Returns:
    All values that it wrote, and "error" if it failed or was ended.
  """
  result: dict[str, Any] = {}
  process = subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  lines: queue.Queue[str | None] = queue.Queue()
  errors: list[str] = []

  def read() -> None:
    for line in process.stdout:
      lines.put(line)
    lines.put(None)

  readers = [threading.Thread(target=read, daemon=True)]
  readers.append(threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True))
  for reader in readers:
    reader.start()
  limit, what = compiling, "compiling"
  end = time.monotonic() + limit
  try:
    while (line := lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
      if not line.startswith("{"):
        continue
      values = json.loads(line)
      if "compile_seconds" in values:
        limit, what = measuring, "measuring"
        end = time.monotonic() + limit
      result |= values
  except queue.Empty:
    process.kill()
    result["error"] = f"not finished within {limit:g} s of {what}"
  status = process.wait()
  readers[1].join(10)
  if status and "error" not in result:
    last = [line.strip() for line in errors if line.strip()][-1:]
    result["error"] = f"ended with status {status}: {' '.join(last)[:200]}"
  return result


def row(name: str, result: dict, flops: int) -> str:
  """A line of the table."""
  import numpy as np

  from dmpo_jax.models.flops import peak

  cells = [name, str(result.get("pairs", ""))]
  if result.get("seconds"):
    seconds = float(np.median(result["seconds"]))
    rate, best = result["pairs"] / seconds, peak(result["device"])
    spread = f"{min(result['seconds']):.4g} to {max(result['seconds']):.4g}"
    cells += [f"{seconds:.4g} ({spread})", f"{rate:.3g}"]
    cells.append(f"{rate * flops / best:.1%}" if best else "")
  else:
    cells += ["", "", ""]
  keys = ("state_gib", "temporaries_gib", "memory_gib")
  cells.append(", ".join("–" if result.get(k) is None else f"{result[k]:.3g}" for k in keys))
  cells.append(f"{result['compile_seconds']:.1f}" if "compile_seconds" in result else "")
  cells.append(f"{result['loss']:.6g}" if "loss" in result else "")
  cells.append({True: "yes", False: "no"}.get(result.get("twice_alike"), ""))
  if "error" in result:
    cells[-1] = f"{cells[-1]} {result['error']}".strip()
  return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
  """Measures the variants and prints their rows."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--model", default="sd15", help="sd15, sd15_lora, sdxl, sdxl_lora, tiny or tiny_lora")
  add("--variants", nargs="+", type=variant, default=[("ours", {})], metavar="SIDE:KEY=VALUE,...")
  add("--seconds", type=float, default=20, help="time of a variant's timed steps (default: 20)")
  add("--compile-seconds", type=float, default=200, help="limit of compiling (default: 200)")
  add("--run-seconds", type=float, default=90, help="limit of the rest (default: 90)")
  add("--cache", type=pathlib.Path, default=pathlib.Path("gpu_cache"), help="folder of caches")
  add("--profile", action="store_true", help="print where the time of a step goes")
  add("--rows", type=pathlib.Path, help="file to which the rows are written as JSON")
  add("--child", help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  if options.child:
    child(**json.loads(options.child))
    return
  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  os.environ["JAX_PLATFORMS"], inherited = "cpu", os.environ.get("JAX_PLATFORMS")
  import gpu_setting

  if options.model not in gpu_setting.MODELS:
    parser.error(f"--model must be one of {', '.join(gpu_setting.MODELS)}")
  flops = gpu_setting.pair_flops(options.model)
  if inherited is None:
    del os.environ["JAX_PLATFORMS"]
  else:
    os.environ["JAX_PLATFORMS"] = inherited
  print(f"{options.model}: {flops / 1e12:.3g} model TFLOP a pair\n{HEADER}", flush=True)
  for result in measurements(options):
    print(row(result["variant"], result, flops), flush=True)
    if result.get("profile"):
      print("\n".join(["", *result["profile"], ""]), flush=True)
    if options.rows:
      # Whole at every row: a machine that is taken away leaves the rows that it had measured.
      results = [*(json.loads(x) for x in _lines(options.rows)), result]
      options.rows.write_text("".join(json.dumps(x) + "\n" for x in results))


def measurements(options: argparse.Namespace) -> Iterator[dict]:
  """Measures one variant after the other."""
  for side, chosen in options.variants:
    name = side + (":" if chosen else "") + ",".join(f"{k}={v}" for k, v in chosen.items())
    own = {key: value for key, value in chosen.items() if not key.startswith("xla_")}
    folder = str(options.cache / "profiles" / name.replace("/", "_")) if options.profile else ""
    task = {"model": options.model, "side": side, "options": own}
    task |= {"seconds": options.seconds, "profile": folder}
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    env = environment(chosen, options.cache.absolute())
    result = measure(command, env, options.compile_seconds, options.run_seconds)
    yield {"model": options.model, "variant": name, "date": time.strftime("%Y-%m-%d"), **result}


def _lines(file: pathlib.Path) -> list[str]:
  return file.read_text().splitlines() if file.exists() else []


if __name__ == "__main__":
  main()
