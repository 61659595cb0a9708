"""Where the time of a profiled program went, by kind of kernel."""

import collections
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import jax

# Kinds in the order in which they are tried: pattern of a kernel's name, without regard to case.
# GPU kernels of cuBLAS, cuDNN, CUTLASS, Triton and XLA; XLA's operations on a CPU.
KINDS = (
  ("attention forward", r"(flash|sdpa|fmha).*(fprop|fwd|forward)"),
  ("attention backward", r"(flash|sdpa|fmha).*(bprop|bwd|backward)"),
  ("attention", r"flash|sdpa|fmha|attention"),
  ("convolution, weight gradient", r"wgrad|convbackwardfilter|conv-backward-filter"),
  ("convolution, input gradient", r"dgrad|convbackwarddata|conv-backward-input"),
  ("convolution", r"fprop|conv(?!ert)"),
  ("matrix product", r"nvjet|gemm|cublas|cutlass|xmma|\bdot|matmul"),
  ("reduction", r"reduce|norm_kernel|welford"),
  ("transpose or copy", r"transpose|copy|memcpy|memset|nchwtonhwc|nhwctonchw"),
  ("concatenation", r"concatenate|catarray"),
  ("elementwise", r"loop_|elementwise|wrapped_|vectorized|select|add|multiply|exponential"),
  ("other fusion", r"fusion|triton"),
)
OTHER = "other"


class Kernel(NamedTuple):
  """All calls of a kernel: its name, seconds in all, and their number."""

  name: str
  seconds: float
  calls: int


def kind(name: str) -> str:
  """The kind of a kernel by its name."""
  return next((k for k, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), OTHER)


def read(folder: pathlib.Path) -> list[Kernel]:
  """The kernels in the newest trace of `jax.profiler` in a folder, the longest first.

  Args:
    folder: The folder that the trace was started with.

  Raises:
    ValueError: There is no trace, or it has no kernel.
  """
  files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
  if not files:
    raise ValueError(f"no trace in {folder}")
  planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
  devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
  total: dict[str, float] = collections.defaultdict(float)
  calls: collections.Counter[str] = collections.Counter()
  for plane in devices or planes:
    for line in plane.lines:
      for event in line.events:
        # A host's plane has the calls of Python beside XLA's operations, which name their program.
        if not devices and "hlo_op" not in dict(event.stats):
          continue
        if devices and not line.name.lower().startswith("stream"):
          continue
        total[event.name] += event.duration_ns / 1e9
        calls[event.name] += 1
  if not total:
    raise ValueError(f"{files[-1]} has no kernel")
  kernels = [Kernel(name, seconds, calls[name]) for name, seconds in total.items()]
  return sorted(kernels, key=lambda kernel: -kernel.seconds)


def table(kernels: Iterable[Kernel], steps: int, longest: int = 2) -> list[str]:
  """Lines in markdown: milliseconds a step by kind, with the longest kernels of each.

  Args:
    kernels: From `read`.
    steps: Steps that the trace holds.
    longest: Number of kernels to name.
  """
  groups: dict[str, list[Kernel]] = collections.defaultdict(list)
  for kernel in kernels:
    groups[kind(kernel.name)].append(kernel)
  seconds = {name: sum(kernel.seconds for kernel in group) for name, group in groups.items()}
  whole = sum(seconds.values())
  lines = ["| kind | ms a step | share | longest kernels |", "|---|---|---|---|"]
  for name in sorted(seconds, key=lambda name: -seconds[name]):
    first = sorted(groups[name], key=lambda kernel: -kernel.seconds)[:longest]
    named = ", ".join(f"`{k.name[:60]}` {1e3 * k.seconds / steps:.2f}" for k in first)
    lines.append(
      f"| {name} | {1e3 * seconds[name] / steps:.2f} | {seconds[name] / whole:.0%} | {named} |"
    )
  return [*lines, f"| all | {1e3 * whole / steps:.2f} | | |"]
