"""Interleaved timing of implementations ("sides"), each in a worker process of its own."""

import ctypes
import gc
import importlib
import multiprocessing
import os
import pathlib
import time
import traceback
from typing import Any

MIB = 2**20


class Worker:
  """One side of a benchmark in a child process, called over a pipe, one call at a time.

  Args:
    name: Name of the side, for messages.
    side: "module.Class", imported in the child only. The class has `prepare`, which returns the
      seconds it took, `step` and `planned_bytes`; other methods can be called too.
    arguments: Arguments of the class.
  """

  def __init__(self, name: str, side: str, *arguments: Any):
    context = multiprocessing.get_context("spawn")  # a fork would inherit the parent's threads
    self.name = name
    self.pipe, child_pipe = context.Pipe()
    self.process = context.Process(target=_serve, args=(child_pipe, side, arguments), daemon=True)
    self.process.start()
    child_pipe.close()

  def __call__(self, command: str, *arguments: Any) -> Any:
    """Calls a method of the side, or of `_Server`, in the child and returns its result.

    Args:
      command: Name of the method; "start", the first call, constructs the side.
      *arguments: Arguments of the method.

    Raises:
      RuntimeError: The call failed, or the child ended.
    """
    self.pipe.send((command, arguments))
    try:
      result, error = self.pipe.recv()
    except EOFError as end:
      self.process.join()
      raise RuntimeError(
        f"the {self.name} side ended at {command!r} with status {self.process.exitcode} "
        "(-9: the system ran out of memory)"
      ) from end
    if error:
      raise RuntimeError(f"the {self.name} side failed at {command!r}:\n{error}")
    return result

  def close(self) -> None:
    """Ends the child."""
    self.pipe.close()
    self.process.join(10)
    self.process.kill()


class _Server:
  """The side in the child, and measurements of the child's memory and time."""

  def __init__(self, side: str, arguments: tuple):
    module, _, name = side.rpartition(".")
    make = getattr(importlib.import_module(module), name)
    self.imported = _memory("VmRSS")
    self.side = make(*arguments)
    self.at_preparation = None

  def prepare(self) -> float:
    """Prepares the step and resets the peak of memory; returns the seconds of the preparation."""
    seconds = self.side.prepare()
    self.at_preparation = _memory("VmHWM")
    # Memory that the compiler has freed must not count as memory of the steps.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    self.prepared = _memory("VmRSS")
    return seconds

  def turn(self, steps: int) -> tuple[float, float]:
    """Runs steps; returns mean seconds and mean processor seconds of a step."""
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(steps):
      self.side.step()
    return (time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps

  def memory(self) -> dict[str, float | None]:
    """Resident memory in MiB: after imports, peak of the preparation, and peak of the steps.

    `prepared` is the memory before the first step: state, program, and remains of the compiler.
    """
    planned = self.side.planned_bytes()
    return {
      "imported": self.imported,
      "peak_preparing": self.at_preparation,
      "prepared": self.prepared,
      "peak_steps": _memory("VmHWM"),
      "planned_temporaries": planned and planned / MIB,
    }

  def cpu_seconds(self) -> float:
    """Processor time of this process, over all threads."""
    return time.process_time()


def time_interleaved(sides: dict[str, Worker], repeats: int, turn_seconds: float) -> dict[str, Any]:
  """Times prepared sides in turns, A B A B, so that other load of the machine affects all of them.

  Args:
    sides: Name -> side.
    repeats: Number of rounds; each side has one turn per round.
    turn_seconds: Length of a turn; it has at least one step.

  Returns:
    steps_per_turn; seconds and processor_seconds of a step, by side and round; and
    others_share_of_cores, the fraction of processor time that other programs used.
  """
  steps, seconds, cpu_seconds = {}, {key: [] for key in sides}, {key: [] for key in sides}
  for key, side in sides.items():
    steps[key] = max(1, round(turn_seconds / side("turn", 1)[0]))
  before = _processor_seconds(sides)
  for _ in range(repeats):
    for key, side in sides.items():
      time.sleep(0.05)  # idle threads of the other side spin briefly after its turn
      step_seconds, step_cpu_seconds = side("turn", steps[key])
      seconds[key].append(step_seconds)
      cpu_seconds[key].append(step_cpu_seconds)
  busy, total, own = (b - a for a, b in zip(before, _processor_seconds(sides), strict=True))
  return {
    "steps_per_turn": steps,
    "others_share_of_cores": max(0.0, (busy - own) / total),
    "seconds": seconds,
    "processor_seconds": cpu_seconds,
  }


def _processor_seconds(sides: dict[str, Worker]) -> tuple[float, float, float]:
  """Processor seconds so far: of all programs, of all cores with idle time, and of the sides."""
  return *busy_and_all_seconds(), sum(side("cpu_seconds") for side in sides.values())


def _serve(pipe: Any, side: str, arguments: tuple) -> None:
  server = None
  while True:
    try:
      command, values = pipe.recv()
    except EOFError:
      return
    try:
      if command == "start":
        server = _Server(side, arguments)
        pipe.send((None, None))
      else:
        target = server if hasattr(server, command) else server.side
        pipe.send((getattr(target, command)(*values), None))
    except Exception:
      pipe.send((None, traceback.format_exc()))


def busy_and_all_seconds() -> tuple[float, float]:
  """Busy and total processor time of the machine since it started."""
  fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
  ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
  return sum(ticks) - sum(ticks[3:5]), sum(ticks)  # the fourth and fifth are idle and iowait


def _memory(field: str) -> float:
  """VmRSS, the resident memory, or VmHWM, its peak, in MiB."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024
