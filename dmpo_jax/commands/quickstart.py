"""Train, align, sample and compare small models on real images, and write a report.

A text-conditional reference model is trained on scikit-learn's handwritten digits, then aligned
with DMPO, DPO and conservative DPO on pairs in which heavier strokes are mostly preferred. All
models sample from the same noise and are scored. Interrupted, the same command resumes. Open
WORKDIR/report.html. With --flow the networks are small ones of Stable Diffusion 3.5's kind, trained
by flow matching. With --edits they edit digits by instruction, as InstructPix2Pix does; open
WORKDIR/evaluation/report.html then.
"""

import argparse

from dmpo_jax.common import paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--workdir",
    type=paths.local_argument,
    help="directory of the runs and the report (default: runs/quickstart, with --flow "
    "runs/quickstart_flow, with --edits runs/quickstart_edits)",
  )
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument(
    "--flow", action="store_true", help="a transformer and flow matching in place of a UNet"
  )
  kind.add_argument("--edits", action="store_true", help="models that edit images by instruction")
  parser.add_argument(
    "--images-per-caption",
    type=int,
    default=40,
    help="samples per caption, or edits per instruction, and model (default: 40)",
  )
  parser.add_argument("--reference-steps", type=int, help="training steps of the reference")
  parser.add_argument("--steps", type=int, help="alignment steps of each objective")
  parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> None:
  """Runs the quickstart and prints its table."""
  if options.edits:
    return _run_edits(options)
  from dmpo_jax.demos.digits import quickstart

  name = "flow" if options.flow else "unet"
  default = "runs/quickstart_flow" if options.flow else "runs/quickstart"
  workdir = options.workdir or paths.parse(default)
  results = quickstart.run(
    workdir,
    experiment=quickstart.EXPERIMENTS[name],
    images_per_caption=options.images_per_caption,
    reference_steps=options.reference_steps,
    steps=options.steps,
    show_progress=not options.no_progress,
  )
  print(f"\n{quickstart.text_table(results)}")
  print(f"\nreport: {workdir / 'report.html'}")
  print(f"picture: {workdir / 'comparison.png'}")


def _run_edits(options: argparse.Namespace) -> None:
  from dmpo_jax.demos.digits import edits

  workdir = options.workdir or paths.parse("runs/quickstart_edits")
  results = edits.run(
    workdir,
    edits_per_instruction=options.images_per_caption,
    reference_steps=options.reference_steps,
    steps=options.steps,
    show_progress=not options.no_progress,
  )
  print(f"\n{edits.text_table(results)}")
  print(f"\nreport: {workdir / edits.EVALUATION / 'report.html'}")
  print(f"picture: {workdir / edits.EVALUATION / 'edits.png'}")
