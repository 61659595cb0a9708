"""Conversion of preference data to a TFDS folder: streaming, in parallel, and resumable.

A source is cut into pieces by its plan. Pieces are converted in any order, by any number of
processes and hosts that see the same output folder; each leaves files that appear whole or not at
all. When the last one is there the set is finished: duplicates are found, shards get their final
names, the report and TFDS's metadata are written. Every step can be killed and done again, and the
result is the same to the byte.
"""

import concurrent.futures
import concurrent.futures.process
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.data import tfds_folder
from dmpo_jax.data.convert import finalize, sources
from dmpo_jax.data.convert import options as convert_options
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.shard import convert_piece, paths
from dmpo_jax.data.convert.tables import Piece
from dmpo_jax.errors import InputError

PLAN = "plan.json"
WORKING = "conversion"


def convert(
  source: sources.Source,
  out: pathlib.Path,
  options: Options,
  *,
  workers: int = 1,
  host: int = 0,
  hosts: int = 1,
  progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> dict | None:
  """Converts a source, or goes on where a conversion was interrupted.

  Args:
    source: From `sources.find`.
    out: Folder that becomes the data set; all hosts must see the same one.
    options: How.
    workers: Processes on this machine.
    host: Number of this host, 0 to hosts - 1.
    hosts: How many hosts share the work.
    progress: Wraps the iterable of finished pieces (total given) to show how far it is.

  Returns:
    The report (see `conversion_report`), or None while pieces of other hosts are missing.

  Raises:
    InputError: The source or an option is bad, or the folder holds something else.
    OSError: A file cannot be written.
  """
  convert_options.check(options)
  if not (workers >= 1 and hosts >= 1 and 0 <= host < hosts):
    raise InputError(f"workers {workers}, host {host} of {hosts}: hosts count from 0")
  out, folder = pathlib.Path(out), pathlib.Path(out) / WORKING
  plan = _plan(source, options)
  _begin(out, folder, plan)
  if (out / "dataset_info.json").exists():
    finalize.clean(folder)
    return tfds_folder.read_report(out)
  pieces = [Piece(*piece) for piece in plan["pieces"]]
  left = [i for i in range(host, len(pieces), hosts) if not paths(folder, i)["done"].exists()]
  jobs = [(folder, i, source, pieces[i], options) for i in left]
  for _ in progress(_run(jobs, workers), len(jobs)):
    pass
  if any(not paths(folder, i)["done"].exists() for i in range(len(pieces))):
    return None
  try:
    return finalize.finish(out, folder, source.kind, pieces, options)
  except FileNotFoundError:
    # Two hosts may see the last piece at once; what the other one has finished is gone from here.
    if (out / "dataset_info.json").exists():
      return tfds_folder.read_report(out)
    raise


def missing(out: pathlib.Path) -> int:
  """How many pieces of an unfinished conversion are not converted yet."""
  folder = pathlib.Path(out) / WORKING
  count = len(json.loads((pathlib.Path(out) / PLAN).read_text(encoding="utf-8"))["pieces"])
  return sum(not paths(folder, i)["done"].exists() for i in range(count))


def _plan(source: sources.Source, options: Options) -> dict:
  """What is converted and how; equal plans give equal folders."""
  tables = sources.plan(source, rows=options.rows_per_shard)
  names = source.files or ["winner"]
  return {
    "record": tfds_folder.VERSION,
    "source": source.kind,
    "part": source.part,
    "files": {name: t.fingerprint for name, t in zip(names, tables, strict=True)},
    "options": convert_options.lasting(options),
    "pieces": [list(piece) for table in tables for piece in table.pieces],
  }


def _begin(out: pathlib.Path, folder: pathlib.Path, plan: dict) -> None:
  """Writes the plan, or checks that the one that is there is the same."""
  path = out / PLAN
  strange = out.exists() and (not out.is_dir() or any(p.name != WORKING for p in out.iterdir()))
  if strange and not path.exists():
    raise InputError(f"{out} exists and holds no conversion; choose another folder")
  for name in ("units", "shards"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  if not path.exists():
    text = json.dumps(plan, indent=1, sort_keys=True) + "\n"
    write_atomically(path, text, scratch=folder)
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise InputError(f"{path} is no plan of a conversion: {error}") from error
  if different := differences(found, plan):
    raise InputError(
      f"{out} holds a conversion of other files, of files that have changed, or with other "
      "options; resume with the same source and options, or choose another folder:\n"
      + describe(different)
    )


def _run(jobs: list[tuple], workers: int) -> Iterable[int]:
  """Converts pieces and yields as they are done; after an error those under way are finished."""
  if workers == 1 or len(jobs) <= 1:
    for job in jobs:
      convert_piece(*job)
      yield 1
    return
  # Spawned, not forked: the parent may have threads (grain, XLA) that a fork would leave halves of.
  pool = concurrent.futures.ProcessPoolExecutor(
    min(workers, len(jobs)),
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
  )
  with pool:
    waiting = iter(jobs)
    running = {pool.submit(_job, *j) for j in itertools.islice(waiting, 2 * workers)}
    try:
      while running:
        done, running = concurrent.futures.wait(
          running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
          future.result()
          yield 1
        running |= {pool.submit(_job, *j) for j in itertools.islice(waiting, len(done))}
    except concurrent.futures.process.BrokenProcessPool as error:
      raise ChildProcessError(
        "a worker process died (killed for want of memory?); the same command goes on where it "
        "was, with fewer --workers if need be"
      ) from error
    finally:
      pool.shutdown(cancel_futures=True)


def _job(folder, number, source, piece, options) -> None:
  convert_piece(folder, number, source, piece, options)


def _start_worker() -> None:
  """Ctrl-C is the parent's to handle; and a worker whose parent was killed ends, not waits."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
