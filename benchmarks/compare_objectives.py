"""Compares objectives at equal movement, over seeds and rates of flipped labels.

    python benchmarks/compare_objectives.py --reference runs/quickstart/reference/pipeline
    python benchmarks/compare_objectives.py --reference runs/quickstart/reference/pipeline \
      --flips 0 0.2 --all
    python benchmarks/compare_objectives.py --data emoji --reference runs/emoji/reference/pipeline \
      --folder data/emoji --pairs data/emoji_pairs

The movement of a model is the mean squared distance of its predictions from the reference's on
fixed noised held-out images. Every run ends where its movement reaches the last of the levels, and
is measured at each: change of the score that labelled the pairs, win rate over the reference,
fraction of right samples, Vendi score, and change of the held-out error. All models sample from the
same noise. Runs of one seed share data order, timesteps, noise and flips; seeds share the
reference, which is frozen for all objectives. Flips are on top of the noise that the labels have by
themselves.

Every run has a file in the work directory, and a run that has one is not repeated: stop the command
at any time and give it again. The report, report.md with compare.png, is over all runs of the work
directory; --report writes it without training.
"""

import argparse
import itertools
import json
import pathlib
import time

import compare_report
import jax
from compare_setting import CENTRAL, digits_setting, emoji_setting, objectives
from compare_training import Trainer, run, scores

from dmpo_jax.common import files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError

SOLVER_STEPS, GUIDANCE = 8, 2.0


def parse(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("names", nargs="*", help=f"objectives (default: {' '.join(CENTRAL)})")
  add("--all", action="store_true", help="all objectives")
  add("--data", choices=("digits", "emoji"), default="digits")
  add("--reference", type=pathlib.Path, required=True, help="pipeline folder")
  add("--folder", type=pathlib.Path, help="emoji: folder of dmpo-jax data emoji")
  add("--pairs", type=pathlib.Path, help="emoji: converted pairs")
  add("--workdir", type=pathlib.Path, help="default: runs/compare/DATA")
  add("--seeds", type=int, default=5, help="runs of each kind (default: 5)")
  add(
    "--flips", type=float, nargs="*", default=[0.0, 0.1, 0.2, 0.3], help="rates of flipped labels"
  )
  add("--levels", type=float, nargs="*", default=[0.003, 0.006, 0.012], help="movements, ascending")
  add("--steps", type=int, default=40, help="most steps of a run (default: 40)")
  add("--every", type=int, default=5, help="steps between measurements of the movement")
  add("--batch-size", type=int, default=16, help="pairs (default: 16)")
  add("--rate", type=float, default=5e-5, help="AdamW's rate (default: 5e-5)")
  add("--warmup", type=int, default=10, help="steps of warm-up (default: 10)")
  add("--per-caption", type=int, default=5, help="samples of a caption (default: 5)")
  add("--budget", type=float, help="seconds after which no further run starts")
  add("--report", action="store_true", help="write the report of finished runs alone")
  return parser.parse_args(arguments)


def main(arguments=None):
  options = parse(arguments)
  started = time.monotonic()
  workdir = options.workdir or pathlib.Path("runs/compare") / options.data
  sections = objectives()
  names = list(sections) if options.all else options.names or list(CENTRAL)
  if unknown := sorted(set(names) - set(sections)):
    raise InputError(f"no objective {unknown[0]!r}; choose from {', '.join(sections)}")
  if sorted(set(options.levels)) != options.levels or options.levels[0] <= 0:
    raise InputError(f"--levels must be positive and ascending, got {options.levels}")
  setting = {
    "data": options.data,
    "reference": str(options.reference.absolute()),
    **{key: getattr(options, key) for key in ("levels", "steps", "every", "batch_size")},
    **{key: getattr(options, key) for key in ("rate", "warmup", "per_caption")},
  }
  check_setting(workdir, setting)
  jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
  # Seed by seed, so that a budget that ends early leaves fewer seeds and not fewer rates.
  order = itertools.product(range(options.seeds), options.flips, names)
  missing = [one for one in order if not file_of(workdir, *one).exists()]
  if missing and not options.report:
    train_missing(options, workdir, sections, missing, started)
  compare_report.write(workdir, setting, read_runs(workdir), list(sections))
  print(f"report: {workdir / 'report.md'}")


def file_of(workdir, seed, flip_rate, name):
  """File of a run."""
  return workdir / "runs" / f"{name}-flip{round(100 * flip_rate):02d}-seed{seed}.json"


def read_runs(workdir):
  """All finished runs."""
  return [files.read_json(path) for path in sorted((workdir / "runs").glob("*.json"))]


def check_setting(workdir, setting):
  """Raises if the work directory holds runs of other settings."""
  (workdir / "runs").mkdir(parents=True, exist_ok=True)
  path = workdir / "setting.json"
  if not path.exists():
    write_atomically(path, json.dumps(setting, indent=2) + "\n")
  elif (stored := files.read_json(path)) != setting:
    different = sorted(key for key in {*stored, *setting} if stored.get(key) != setting.get(key))
    raise InputError(
      f"{workdir} holds runs with another {different[0]} ({stored.get(different[0])}, now "
      f"{setting.get(different[0])}); choose another --workdir"
    )


def train_missing(options, workdir, sections, missing, started):
  """Trains the runs that have no file yet, in order."""
  if options.data == "digits":
    setting = digits_setting(options.reference, options.per_caption)
  elif not (options.folder and options.pairs):
    raise InputError("--data emoji needs --folder and --pairs")
  else:
    setting = emoji_setting(
      options.reference, options.per_caption, folder=options.folder, pairs=options.pairs
    )
  setting.config.batch_size = options.batch_size
  setting.config.optimizer.learning_rate = options.rate
  setting.config.optimizer.warmup_steps = options.warmup
  trainer = Trainer(setting, sections, solver_steps=SOLVER_STEPS, guidance=GUIDANCE)
  baseline = trainer.sample(trainer.initial)
  write_atomically(
    workdir / "reference.json", json.dumps(scores(setting, baseline, baseline)) + "\n"
  )
  for done, (seed, flip_rate, name) in enumerate(missing):
    if options.budget and time.monotonic() - started > options.budget:
      print(f"budget used up: {len(missing) - done} runs are left")
      return
    begun, used = time.monotonic(), time.process_time()
    result = run(
      trainer,
      name,
      seed,
      flip_rate,
      levels=options.levels,
      max_steps=options.steps,
      every=options.every,
      baseline=baseline,
    )
    seconds, processor = time.monotonic() - begun, time.process_time() - used
    result = {"name": name, "seed": seed, "flip_rate": flip_rate, **result}
    result |= {"loss": sections[name], "seconds": seconds, "processor_seconds": processor}
    write_atomically(file_of(workdir, seed, flip_rate, name), json.dumps(result) + "\n")
    last = result["points"][-1]
    print(
      f"{done + 1}/{len(missing)} {name} flips {flip_rate:.0%} seed {seed}: {last['step']:.0f} "
      f"steps, movement {last['movement']:.4f}, gain {last['gain']:+.3f}, {seconds:.0f} s "
      f"({processor:.0f} s of processor time)",
      flush=True,
    )


if __name__ == "__main__":
  main()
