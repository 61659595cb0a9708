"""The option of commands that score images."""

import argparse
import hashlib
import json
import re
import textwrap
from typing import Any

from dmpo_jax.common import choose, paths
from dmpo_jax.evaluation.scorers import COMMON, SCORERS


def add_scorer(parser: argparse.ArgumentParser, *names: str, **settings: object) -> None:
  """Declares an option that `evaluation.scorers.parse_scorer` reads.

  Args:
    parser: The command's parser.
    *names: The option's names.
    **settings: Further settings of `add_argument` (required, action).
  """
  parser.add_argument(
    *names,
    dest="scorer",
    metavar="NAME[=WEIGHTS][,OPTION=VALUE]",
    help=f"a scorer: {', '.join(sorted(SCORERS))}; see dmpo-jax score --help",
    **settings,
  )


def described() -> str:
  """All scorers with their options and where their weights are published, for a help text."""
  lines, indent = [], " " * 6
  for name, kind in sorted(SCORERS.items()):
    options = [key for key in choose.keyword_parameters(kind.load) if key not in COMMON]
    lines.append(f"  {name}{'=WEIGHTS' if kind.weights else ''}")
    texts = [kind.description]
    texts += [f"WEIGHTS: {kind.weights}."] if kind.weights else []
    texts += [f"Options: {', '.join(options)}."] if options else []
    for text in texts:
      lines += textwrap.wrap(
        text, 94, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
      )
  lines.append("All take dtype=bfloat16 and batch_size=N: pickscore=FOLDER,dtype=bfloat16")
  return "\n".join(lines) + "\n"


def key_of(text: str) -> Any:
  """All that the scores of a scorer depend on, in JSON: its text, its files by size and time.

  Args:
    text: As `evaluation.scorers.parse_scorer` takes it.

  Returns:
    [text, digest of the files that it names].
  """
  stats = []
  for value in re.split(",[a-z_]+=", text.partition("=")[2]):
    path = paths.parse(value)
    if not value or not path.exists():
      continue
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats += [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
  return [text, hashlib.sha256(json.dumps(stats).encode()).hexdigest()]
