"""Conversion of preference data to a TFDS folder: streaming, in parallel, and resumable.

A plan divides the source into chunks. Any number of processes and hosts that see the same output
folder convert them in any order (`shard`); `finalize` makes the data set of the converted chunks.
Every step can be killed and repeated, and the result is the same to the byte.
"""

import concurrent.futures
import concurrent.futures.process
import functools
import itertools
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable

from dmpo_jax.data import captions, resumable, tfds_folder
from dmpo_jax.data.convert import finalize, moves, paths, source_reader
from dmpo_jax.data.convert import options as convert_options
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.shard import convert_chunk
from dmpo_jax.data.convert.tables import Table
from dmpo_jax.errors import InputError, short

PLAN_VERSION = "2.1.0"
MAX_WORKERS = 4096


def convert(
  source: source_reader.Source,
  out: pathlib.Path,
  options: Options,
  *,
  workers: int = 1,
  host: int = 0,
  hosts: int = 1,
  progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> dict | None:
  """Converts a source, or resumes an interrupted conversion.

  Args:
    source: From `source_reader.find`.
    out: Folder that becomes the data set; all hosts must see the same one.
    options: Options of the conversion.
    workers: Processes on this machine.
    host: Number of this host, 0 to hosts - 1.
    hosts: Number of hosts that share the work.
    progress: Called with an iterable of finished chunks and their number; wraps the iterable.

  Returns:
    The report (see `report.summary`), or None while chunks of other hosts are missing.

  Raises:
    InputError: The source or an option is invalid, or the folder holds something else.
    OSError: A file cannot be written.
  """
  convert_options.check(options)
  _check_rejected(source, options)
  resumable.check_hosts(host, hosts)
  if not 1 <= workers <= MAX_WORKERS:
    raise InputError(f"workers must be from 1 to {MAX_WORKERS:,}, got {short(workers)}")
  if options.tokenizer is not None:
    captions.tokenizer(options.tokenizer)  # before anything is written
  folder, tables = paths.folder(out), source_reader.plan(source, rows=options.rows_per_shard)
  with folder.session(_plan(source, tables, options), host=host, hosts=hosts) as is_complete:
    if is_complete:
      return tfds_folder.check_files(folder.out)
    chunks = [chunk for table in tables for chunk in table.chunks]
    own = range(host, len(chunks), hosts)
    unfinished = folder.unfinished(own, functools.partial(moves.restart_damaged, folder))
    jobs = [(folder, i, source, chunks[i], options) for i in unfinished]
    for _ in progress(_run(jobs, workers), len(jobs)):
      pass
    return folder.finish(
      len(chunks),
      lambda: finalize.finish(folder, source.kind, tables, options),
      tfds_folder.read_report,
    )


def _check_rejected(source: source_reader.Source, options: Options) -> None:
  """Raises unless `rejected` is given where a data set has one edit for each instruction."""
  if source.module.ONE_EDIT and options.rejected == "none":
    raise InputError(
      f"{source.kind} has one edit for each instruction and no rejected image; --rejected=source "
      "makes pairs in which the edit is preferred to its unedited source (for pairs against a "
      "model's own edits, convert so first, then use `dmpo-jax data generate --edits`)"
    )
  if not source.module.ONE_EDIT and options.rejected != "none":
    raise InputError(
      f"--rejected={options.rejected} is for data sets with one edit for each instruction; "
      f"{source.kind} has rejected images; leave it out"
    )


def missing(out: pathlib.Path) -> int:
  """Number of chunks of an unfinished conversion that are not converted yet."""
  return len(paths.folder(out).missing(resumable.shards(out)))


def _plan(source: source_reader.Source, tables: list[Table], options: Options) -> dict:
  """The values that decide every byte of the data set, for `ResumableFolder.start`."""
  return {
    "version": PLAN_VERSION,
    "record": tfds_folder.VERSION,
    "source": source.kind,
    "split": source.split,
    "options": convert_options.immutable(options),
    "sha256": {
      paths.as_text(name): table.fingerprint
      for name, table in zip(source.files, tables, strict=True)
    },
    "shards": sum(len(table.chunks) for table in tables),
  }


def _run(jobs: list[tuple], workers: int) -> Iterable[int]:
  """Converts chunks and yields after each; after an error, running workers end their chunks."""
  if workers == 1 or len(jobs) <= 1:
    for job in jobs:
      convert_chunk(*job)
      yield 1
    return
  # Spawned: a fork would copy the locks of the parent's threads (grain, XLA) in any state.
  pool = concurrent.futures.ProcessPoolExecutor(
    min(workers, len(jobs)),
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
  )
  with pool:
    waiting = iter(jobs)
    try:
      running = _submit(pool, itertools.islice(waiting, 2 * workers))
      while running:
        done, running = concurrent.futures.wait(
          running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
          future.result()
          yield 1
        running |= _submit(pool, itertools.islice(waiting, len(done)))
    except concurrent.futures.process.BrokenProcessPool as error:
      raise ChildProcessError(
        "a worker process was killed, perhaps by the system for lack of memory; run the same "
        "command again to resume, with fewer --workers if memory was the reason"
      ) from error
    except KeyboardInterrupt:  # what a chunk wrote so far is worth nothing
      for worker in list((pool._processes or {}).values()):
        worker.kill()
      raise
    finally:
      pool.shutdown(cancel_futures=True)


def _submit(pool: concurrent.futures.ProcessPoolExecutor, jobs: Iterable[tuple]) -> set:
  """Submits chunks; workers that start meanwhile never see Ctrl-C, not even before `_start_worker`.

  A new process inherits the signals that this thread blocks. Another thread may still take a
  Ctrl-C, so it is kept until the workers have started: half a start would be a traceback of theirs.
  """
  handler = signal.getsignal(signal.SIGINT)
  if threading.current_thread() is not threading.main_thread() or not callable(handler):
    return {pool.submit(convert_chunk, *job) for job in jobs}
  pressed = []
  signal.signal(signal.SIGINT, lambda *arguments: pressed.append(arguments))
  blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    futures = {pool.submit(convert_chunk, *job) for job in jobs}
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    signal.signal(signal.SIGINT, handler)
  if pressed:
    handler(*pressed[0])
  return futures


def _start_worker() -> None:
  """Leaves Ctrl-C to the parent, and ends this worker when its parent is killed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
