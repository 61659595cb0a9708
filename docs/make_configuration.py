"""Writes docs/configuration.md from the source of the default config, data sets and losses.

python docs/make_configuration.py
"""

import ast
import functools
import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable

from ml_collections import ConfigDict

from dmpo_jax import losses
from dmpo_jax.data.datasets import DATASETS
from dmpo_jax.diffusion import flow_timesteps, flow_weights, timesteps, weights
from dmpo_jax.training import config
from dmpo_jax.training.config_ranges import RANGES

PAGE = pathlib.Path(__file__).with_name("configuration.md")
INTRO = """\
<!-- Made by docs/make_configuration.py from dmpo_jax/training/config.py; edit that file. -->

# Configuration

A config is a Python file with `get_config()`. It changes keys of
`dmpo_jax.training.config.default()`:

```python
from ml_collections import ConfigDict

from dmpo_jax.training.config import default


def get_config():
  config = default()
  config.pipeline = "runs/quickstart/reference/pipeline"
  config.data = ConfigDict({"name": "pairs", "folder": "data/mine", "size": 8})
  config.loss = ConfigDict({"name": "dmpo", "beta": 1000.0, "alpha": 0.01})
  config.batch_size, config.num_steps, config.checkpoint.every = 32, 160, 40
  config.optimizer.learning_rate = 5e-5
  return config
```

`--config.loss.alpha=0.05` sets a key on the command line, `--config FILE:ARGUMENT` passes an
argument to `get_config`. An unknown key is an error that names the nearest known one, and so is a
number out of its range (numbers as float32 rounds them) or a value of another type. The files in
[configs](../configs) are complete experiments.

A config file is a program: `dmpo-jax train --config FILE` runs it, and it can do all that you can.
Only run configs that you trust; read those of others first.
"""
CHOICES = {
  "data": ("Data", "a data set and its keys.", DATASETS),
  "loss": (
    "Loss",
    "an objective and its keys. `base` is such a section, too.\n"
    "[Controls](objectives.md#controls) may stand beside them.",
    losses.LOSSES,
  ),
}
# Functions whose docstrings show the section's possible values.
SECTIONS = {
  "`timesteps`": timesteps.make,
  "`timesteps` with flow matching": flow_timesteps.make,
  "`timestep_weights`": weights.make,
  "`timestep_weights` with flow matching": flow_weights.make,
}


def page() -> str:
  """Text of docs/configuration.md."""
  comments = _comments(config.default)
  defaults = config.default()
  sections = {"": []}
  for key, comment in comments.items():
    value = functools.reduce(lambda section, part: section[part], key.split("."), defaults)
    if isinstance(value, ConfigDict) and key not in config.OPEN_SECTIONS:
      if "." not in key:
        sections[key] = []
      continue
    plain = value.to_dict() if isinstance(value, ConfigDict) else value
    # The comment of a section within a section stands for its keys.
    meaning = comment or (comments[key.rpartition(".")[0]] if key.count(".") > 1 else "")
    sections[key.partition(".")[0] if "." in key else ""].append(
      (f"`{key}`", f"`{plain!r}`", str(RANGES.get(key, "")), meaning)
    )
  parts = [INTRO]
  for name, rows in sections.items():
    title = f"## The section `{name}`\n" if name else "## Keys\n"
    parts += [
      title,
      _text(comments.get(name)),
      _table(rows, ("key", "default", "range", "meaning")),
    ]
  for name, (title, text, functions) in CHOICES.items():
    parts += [f"## {title}\n", f"`config.{name}` has the `name` of {text}\n"]
    for option, function in functions.items():
      parts += [f"### `{option}`\n", _text(inspect.getdoc(function).splitlines()[0])]
      parts += [_table(_arguments(function))]
  for name, function in SECTIONS.items():
    block = re.search(r"^    .*?(?=^$)", inspect.getdoc(function), re.DOTALL | re.MULTILINE)[0]
    parts += [f"## Values of {name}\n", f"```\n{textwrap.dedent(block)}```\n"]
  return "\n".join(part for part in parts if part)


def _comments(function: Callable) -> dict[str, str]:
  """Comment above each assignment `config.KEY = ...` of a function, by dotted key, in order."""
  source = inspect.getsource(function)
  lines = source.splitlines()
  comments = {}
  for node in ast.parse(source).body[0].body:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
      end = node.lineno - 1
      start = end
      while lines[start - 1].strip().startswith("#"):
        start -= 1
      text = " ".join(line.strip().removeprefix("#").strip() for line in lines[start:end])
      for target in node.targets:
        comments[ast.unparse(target).removeprefix("config.")] = text
  return comments


def _arguments(function: Callable) -> list[tuple[str, str, str]]:
  """Keyword-only arguments of a function: name, default, and its entry in the docstring."""
  meanings = _meanings(inspect.getdoc(function))
  rows = []
  for name, parameter in inspect.signature(function).parameters.items():
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
      required = parameter.default is inspect.Parameter.empty
      default = "required" if required else f"`{parameter.default!r}`"
      rows.append((f"`{name}`", default, meanings[name]))
  return rows


def _meanings(doc: str) -> dict[str, str]:
  """Entries of the section `Args:` of a docstring."""
  section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, flags=re.DOTALL | re.MULTILINE)
  entries = re.findall(r"^  (\w+): (.*?)(?=^  \w+: |\Z)", section[1], re.DOTALL | re.MULTILINE)
  return {name: " ".join(text.split()) for name, text in entries}


def _table(
  rows: list[tuple[str, ...]], head: tuple[str, ...] = ("key", "default", "meaning")
) -> str:
  if not rows:
    return ""
  lines = [head, ("---",) * len(head), *rows]
  return "".join("| " + " | ".join(x.replace("|", "\\|") for x in line) + " |\n" for line in lines)


def _text(text: str | None) -> str:
  return f"{text}\n" if text else ""


if __name__ == "__main__":
  PAGE.write_text(page())
