"""List the losses: equation, hyperparameters with defaults, requirements, source.

The list comes from the functions and their docstrings. The columns after the hyperparameters show
whether a loss needs the errors of a frozen reference, residual tensors beside the errors, and a
statistic over the global batch. Hyperparameters without a default are required; the docstrings have
published values.

  dmpo-jax objectives plot --out objectives.png dmpo dpo   plots value and slope against the logit
"""

import argparse
import inspect
import json
import textwrap

from dmpo_jax.commands import objectives_plot

WIDTH = 100
COLUMNS = "{:<19}{:<52}{:<11}{:<11}{}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--json", action="store_true", help="a JSON list instead of the table")
  plot = parser.add_subparsers(dest="part", metavar="plot").add_parser(
    "plot", help="plot value and slope against the logit, with the settings of configs/digits_*"
  )
  plot.add_argument("names", nargs="*", metavar="NAME", help="losses to plot (default: all)")
  plot.add_argument("--out", default="objectives.png", metavar="FILE", help="PNG file to write")


def run(options: argparse.Namespace) -> None:
  """Prints the table, or writes the plot."""
  if options.part == "plot":
    objectives_plot.write(options.names, options.out)
    return
  rows = describe_all()
  print(json.dumps(rows, indent=2, ensure_ascii=False) if options.json else table(rows))


def describe_all() -> list[dict]:
  """Descriptions of all losses in alphabetical order.

  Returns:
    A dict for each: `name`, `summary`, `equation` (lines), `required` (hyperparameters without
    default), `hyperparameters` (defaults by name), `source`, and the fields of
    `losses.Requirements`.

  Raises:
    ValueError: A docstring has no equation or no source.
  """
  from dmpo_jax import losses

  return [_describe(name, losses.LOSSES[name]) for name in sorted(losses.LOSSES)]


def _describe(name: str, function) -> dict:
  summary, _, rest = inspect.getdoc(function).partition("\n")
  text, _, _ = rest.partition("\nArgs:")
  equation = [line[4:] for line in text.splitlines() if line.startswith("    ")]
  _, _, source = rest.partition("\nSource:")
  if not equation or not source.strip():
    raise ValueError(f"the docstring of {name} has no indented equation or no section 'Source:'")
  parameters = [
    p
    for p in inspect.signature(function).parameters.values()
    if p.kind is inspect.Parameter.KEYWORD_ONLY
  ]
  return {
    "name": name,
    "summary": summary,
    "equation": equation,
    "required": [p.name for p in parameters if p.default is p.empty],
    "hyperparameters": {p.name: p.default for p in parameters if p.default is not p.empty},
    "source": " ".join(source.split()),
    **function.requirements._asdict(),
  }


def table(rows: list[dict]) -> str:
  """Descriptions as text of at most 100 columns."""
  head = COLUMNS.format("loss", "hyperparameters", "reference", "residuals", "batch")
  lines = [head, "-" * WIDTH]
  for row in rows:
    arguments = row["required"] + [f"{k}={v!r}" for k, v in row["hyperparameters"].items()]
    wrapped = "base" in row["required"]  # a wrapper has the requirements of its base too
    flags = [
      "yes" if row[key] else "base's" if wrapped else "-"
      for key in ("reference", "residuals", "needs_global_batch")
    ]
    lines.append(COLUMNS.format(row["name"], ", ".join(arguments) or "-", *flags).rstrip())
    lines += textwrap.wrap(row["summary"], WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
    lines += [f"      {line}" for line in row["equation"]]
    indent = {"initial_indent": "  source: ", "subsequent_indent": "    "}
    lines += [*textwrap.wrap(row["source"], WIDTH, **indent), ""]
  return "\n".join(lines[:-1])
