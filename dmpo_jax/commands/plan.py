"""Compile a config's train step for a TPU slice, without a TPU, and report memory and time.

    dmpo-jax plan --config configs/sd15_dmpo.py --model sd15 --topology v5e-16 --pairs-per-chip 8 \\
      --inputs latents_and_embeddings --config.mesh.fsdp=16 --config.remat=convolutions

Any key of the config can be set. Only the configs of the pipeline are read; --model takes those of
a published pipeline, without the hub. The command needs libtpu (pip install 'dmpo-jax[tpu]'),
minutes, and up to 18 GB of memory for the largest networks. Exit status: 0 the step fits the chip's
memory, 3 it does not, 2 bad input, 1 the compiler failed. docs/plan.md explains the result.
"""

import argparse
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError

LOGGER = logging.getLogger(__name__)
TAKES_CONFIG = True
DOES_NOT_FIT = 3

# Without these libtpu searches for TPUs instead of compiling for a topology.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from the cache has no text to count in
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--config", required=True, help="a Python file with get_config()")
  parser.add_argument(
    "--topology",
    required=True,
    help="v5e:4x4, v5p:2x2x4 (chips), v5e-16, v5p-32 (Google's names); several slices: 2xv5e-16",
  )
  parser.add_argument(
    "--model",
    default="",
    help="sd15, sd21, sdxl, sd3_medium, sd35_medium or sd35_large instead of config.pipeline",
  )
  parser.add_argument(
    "--inputs",
    default="",
    help="images, latents or latents_and_embeddings (default: those of config.data)",
  )
  parser.add_argument(
    "--size", type=int, default=0, help="height and width of the images in pixels"
  )
  parser.add_argument(
    "--pairs-per-chip",
    type=int,
    default=0,
    help="sets config.batch_size to this number times chips times microbatches",
  )
  parser.add_argument(
    "--search", action="store_true", help="find the largest number of pairs per chip that fits"
  )
  parser.add_argument("--json", type=paths.argument, help="file to write the plan to")
  parser.add_argument(
    "--thorough",
    action="store_true",
    help="compile at XLA's full optimisation level: much slower, nearly the same memory",
  )
  parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
  """Prints the plan and returns the exit status, which shows whether the step fits."""
  if options.child:
    options.child.write_text(json.dumps(_plan(options)))
    return 0
  from dmpo_jax.commands import plan_text

  if options.search:
    plan, tried = search(lambda pairs: _in_child(options, pairs), options.pairs_per_chip or 1)
    plan["search"] = tried
  else:
    plan = _in_child(options, options.pairs_per_chip)
  if options.json:
    write_atomically(options.json, json.dumps(plan, indent=2) + "\n")
  print(plan_text.describe(plan))
  return 0 if plan["fits"] else DOES_NOT_FIT


def search(plan: Callable[[int], dict], first: int) -> tuple[dict, dict[int, float]]:
  """Plan with the largest number of examples per chip that fits.

  Memory is nearly linear in the examples, so each guess is extrapolated from two compiled plans.

  Args:
    plan: f(examples per chip) -> plan.
    first: First guess, at least 1.

  Returns:
    The plan (for 1 example if none fits), and bytes per chip by examples per chip of all guesses.
  """
  plans: dict[int, dict] = {}
  fits, fails, guess = 0, None, first
  while guess:
    plans[guess] = plan(guess)
    total = plans[guess]["total"]
    fit = "fits" if plans[guess]["fits"] else "does not fit"
    LOGGER.info("%d per chip: %s, %.2f GiB", guess, fit, total / 2**30)
    if plans[guess]["fits"]:
      fits = max(fits, guess)
    else:
      fails = guess if fails is None else min(fails, guess)
    guess = next_guess({n: p["total"] for n, p in plans.items()}, fits, fails, plans[guess])
  tried = {n: plans[n]["total"] for n in sorted(plans)}
  return plans[fits or 1], tried


def next_guess(totals: dict[int, float], fits: int, fails: int | None, last: dict) -> int:
  """Next guess of `search`, between `fits` and `fails`; 0 when the search is done.

  Args:
    totals: Bytes per chip by examples per chip, of all plans so far.
    fits: Largest number of examples per chip that fits; 0: none yet.
    fails: Smallest number that does not fit; None: none yet.
    last: The last plan, for the available memory.

  Returns:
    Examples per chip.
  """
  if fails is not None and fails == fits + 1:
    return 0
  lowest = fits + 1
  highest = fails - 1 if fails is not None else max(2 * fits, 1) * 4
  if len(totals) < 2:
    return min(2 * fits, highest) if fits else max(1, (fails or 2) // 2)
  (a, low), (b, high) = sorted(totals.items())[-2:]
  slope = (high - low) / (b - a)
  guess = int(a + (last["available"] - low) / slope) if slope > 0 else highest
  return min(max(guess, lowest), highest)


def _in_child(options: argparse.Namespace, pairs: int) -> dict:
  """Plan, compiled in a process of its own: a compiler's crash ends only that process."""
  with tempfile.TemporaryDirectory() as folder:
    result = pathlib.Path(folder) / "plan.json"
    child = {"config": options.config, "topology": options.topology, "model": options.model}
    child |= {"inputs": options.inputs, "size": options.size, "pairs-per-chip": pairs}
    arguments = [f"--{name}={value}" for name, value in child.items() if value]
    command = [sys.executable, "-m", "dmpo_jax.commands.main", "plan", *arguments, *options.rest]
    environment = {**os.environ, **ENVIRONMENT}
    environment.pop("XLA_FLAGS", None)  # libtpu's compiler does not know a CPU's flags
    if not options.thorough:
      environment["JAX_OPTIMIZATION_LEVEL"] = "O0"
    done = subprocess.run(
      [*command, f"--child={result}"], env=environment, stderr=subprocess.PIPE, text=True
    )
    lines = done.stderr.strip().splitlines()
    if result.exists():
      return json.loads(result.read_text())
  if done.returncode == 2:
    raise InputError(lines[-1].removeprefix("dmpo-jax: ") if lines else "the plan failed")
  if done.returncode < 0:
    raise OSError(
      f"the compiler was killed by signal {-done.returncode}: most likely this machine has too "
      "little memory for it (SDXL needs about 18 GB); use a machine with more"
    )
  raise OSError("the compiler failed; its last lines:\n" + "\n".join(lines[-15:]))


def _plan(options: argparse.Namespace) -> dict:
  """Plan, compiled in this process."""
  from dmpo_jax import pipelines
  from dmpo_jax.interop import published
  from dmpo_jax.planning import inputs, plan, tpu_slices
  from dmpo_jax.training import config as configs
  from dmpo_jax.training import setup
  from dmpo_jax.training.config_file import load_config

  config = load_config(options.config, options.rest)
  slices = tpu_slices.parse(options.topology)
  if options.pairs_per_chip:
    count = config.num_devices or slices.chips
    config.batch_size = options.pairs_per_chip * count * config.grad_accumulation_steps
  config = configs.check(config)
  if options.model:
    pipeline = published.pipeline(options.model)
  elif config.pipeline:
    pipeline = pipelines.load(
      config.pipeline,
      revision=config.revision or None,
      variant=config.variant or None,
      components=(),
    )
  else:
    pipeline = setup.load_pipeline(config, setup.load_examples(config).captions)
  if config.widen and pipelines.build(pipeline).encode_source is None:
    pipeline = pipelines.widen(pipeline)
  functions = pipelines.build(pipeline)
  form = inputs.inputs_from_config(config, functions, options.inputs, options.size)
  return plan.plan_train_step(config, pipeline, slices, form)
