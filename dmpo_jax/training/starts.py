"""Count of a run's starts, which ends a run that starts again and again without a new checkpoint.

    python -m dmpo_jax.training.starts gs://bucket/run 5 RUN

launch/worker.sh calls it for runs in buckets and does the same itself on file systems, which need
no Python. Exit status: 0 the run may start, 2 it may not.
"""

import logging
import re
import sys

from dmpo_jax.common import atomic_files, files, logging_setup, paths
from dmpo_jax.errors import InputError, exit_status

LOGGER = logging.getLogger(__name__)
STARTS_FILE = "starts.txt"


def count_start(workdir: paths.Path, limit: int, run: str) -> None:
  """Counts a start in WORKDIR/starts.txt: "RUN STEP COUNT", the starts since the checkpoint STEP.

  Args:
    workdir: Work directory; it need not exist.
    limit: Largest number of starts without a new checkpoint.
    run: Name of the run, without spaces; another run counts anew.

  Raises:
    InputError: The last `limit` starts of the run left no new checkpoint.
  """
  step, count = latest_step(workdir), 0
  file = workdir / STARTS_FILE
  if files.is_file(file):
    match = re.fullmatch(r"(\S+) (\d{1,18}) (\d{1,9})\n?", files.read_text(file))
    if match is None:
      LOGGER.warning("%s is damaged; counting the starts of this run anew", file)
    elif (match[1], int(match[2])) == (run, step):
      count = int(match[3])
  if count >= limit:
    raise InputError(
      f"the last {count} starts left no checkpoint after step {step} in {workdir}; stopping. See "
      "the end of the log, or save more often (config.checkpoint.every)"
    )
  workdir.mkdir(parents=True, exist_ok=True)
  atomic_files.write_atomically(file, f"{run} {step} {count + 1}\n")


def latest_step(workdir: paths.Path) -> int:
  """The step of the last complete checkpoint of a work directory, or 0.

  A checkpoint in a bucket is complete when orbax has written its commit_success.txt; on a file
  system it gets its name only then.
  """
  folder = workdir / "checkpoints"
  try:
    names = [path.name for path in folder.iterdir()]
  except FileNotFoundError:
    return 0
  for step in sorted((int(n) for n in names if re.fullmatch(r"0|[1-9]\d{0,17}", n)), reverse=True):
    if not paths.is_url(folder) or (folder / str(step) / "commit_success.txt").exists():
      return step
  return 0


def main(arguments: list[str]) -> int:
  """Counts a start; the arguments are WORKDIR, LIMIT and RUN."""
  with logging_setup.log_to_stderr():
    try:
      workdir, limit, run = arguments
      if not re.fullmatch(r"\d{1,9}", limit) or not re.fullmatch(r"\S+", run):
        raise InputError(f"expected a whole number and a name without spaces: {limit!r}, {run!r}")
      count_start(paths.parse(workdir), int(limit), run)
    except (InputError, OSError) as error:
      status, message = exit_status(error)
      LOGGER.error("%s", message)
      return status
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
