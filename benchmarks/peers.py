"""The two sides as processes of their own, which take turns and state their own memory."""

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


class Peer:
  """A side of a benchmark in a child process; calls go through a pipe, one at a time.

  Args:
    name: For messages.
    side: "module.Class", imported in the child alone. The class has `prepare`, which returns the
      seconds that took, `step`, and `planned_bytes`; further methods are called through as well.
    arguments: Of the class.
  """

  def __init__(self, name: str, side: str, *arguments: Any):
    context = multiprocessing.get_context("spawn")  # a fork would inherit the parent's threads
    self.name = name
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(target=_serve, args=(theirs, side, arguments), daemon=True)
    self.process.start()
    theirs.close()

  def __call__(self, command: str, *arguments: Any) -> Any:
    """Has the child run `command` and returns what it answers."""
    self.pipe.send((command, arguments))
    try:
      answer, error = self.pipe.recv()
    except EOFError as end:
      self.process.join()
      raise RuntimeError(
        f"the {self.name} side ended at {command!r} with status {self.process.exitcode} "
        "(-9: the system ran out of memory)"
      ) from end
    if error:
      raise RuntimeError(f"the {self.name} side failed at {command!r}:\n{error}")
    return answer

  def close(self) -> None:
    """Ends the child."""
    self.pipe.close()
    self.process.join(10)
    self.process.kill()


class _Server:
  """What a child answers to."""

  def __init__(self, side: str, arguments: tuple):
    module, _, name = side.rpartition(".")
    make = getattr(importlib.import_module(module), name)
    self.imported = _memory("VmRSS")
    self.side = make(*arguments)
    self.at_preparation = None

  def prepare(self) -> float:
    """Readies the step and returns the seconds that took; the peak of memory starts anew."""
    seconds = self.side.prepare()
    self.at_preparation = _memory("VmHWM")
    # What the compiler has freed must not count as memory of the steps.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    self.prepared = _memory("VmRSS")
    return seconds

  def turn(self, steps: int) -> tuple[float, float]:
    """Takes steps; returns the mean of a step's seconds and of its processor seconds."""
    started, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
      self.side.step()
    return (time.perf_counter() - started) / steps, (time.process_time() - used) / steps

  def memory(self) -> dict[str, float | None]:
    """Resident memory in MiB: after the imports, at most until the first step, at most since.

    `prepared` is what remained between those two: state, program, and what a compiler left behind.
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
    """Processor time this process has used, over all threads."""
    return time.process_time()


def take_turns(sides: dict[str, Peer], repeats: int, turn_seconds: float) -> dict[str, Any]:
  """Times prepared sides in turns, A B A B: whatever else the machine does falls on all of them.

  Args:
    sides: By name.
    repeats: Rounds; each side has a turn in each.
    turn_seconds: A turn takes as many steps as fill this time, and at least one.

  Returns:
    steps_per_turn; seconds and processor_seconds of a step, by side and round; and
    others_share_of_cores, what other programs had meanwhile.
  """
  steps, turns, used = {}, {key: [] for key in sides}, {key: [] for key in sides}
  for key, side in sides.items():
    steps[key] = max(1, round(turn_seconds / side("turn", 1)[0]))
  before = _processor_seconds(sides)
  for _ in range(repeats):
    for key, side in sides.items():
      time.sleep(0.05)  # idle threads of the other side spin for a moment after its turn
      seconds, processor_seconds = side("turn", steps[key])
      turns[key].append(seconds)
      used[key].append(processor_seconds)
  busy, total, own = (b - a for a, b in zip(before, _processor_seconds(sides), strict=True))
  return {
    "steps_per_turn": steps,
    "others_share_of_cores": max(0.0, (busy - own) / total),
    "seconds": turns,
    "processor_seconds": used,
  }


def _processor_seconds(sides: dict[str, Peer]) -> tuple[float, float, float]:
  """Processor seconds of all programs, of all cores busy or not, and of the sides, so far."""
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
  """Processor time the machine has spent on anything, and in total, since it started."""
  fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
  ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
  return sum(ticks) - sum(ticks[3:5]), sum(ticks)  # the fourth and fifth are idle and waiting


def _memory(field: str) -> float:
  """VmRSS, what is resident now, or VmHWM, the most that was, in MiB."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024
