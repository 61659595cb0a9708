"""The commands of README and docs: dmpo-jax takes them, and their config keys exist."""

import pathlib
import re
import shlex

import pytest

from dmpo_jax.commands import (
  data,
  evaluate,
  export,
  inspect,
  main,
  objectives,
  plan,
  potential,
  quickstart,
  sample,
  score,
  train,
  train_scorer,
)
from dmpo_jax.training.config_file import load_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
  blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
  lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
  return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dmpo-jax ")]


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(
  ("page", "command"), COMMANDS, ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60]
)
def test_a_command_of_the_docs_parses(page, command, monkeypatch):
  monkeypatch.chdir(ROOT)
  for module in (
    data,
    evaluate,
    export,
    inspect,
    objectives,
    plan,
    potential,
    quickstart,
    sample,
    score,
    train,
    train_scorer,
  ):
    monkeypatch.setattr(module, "run", load)
  assert main.main(command) == 0, f"{page}: {command}"


def load(options):
  if getattr(options, "config", None):
    load_config(options.config, options.rest)


def test_readme_and_the_pages_on_data_plans_and_monitoring_have_commands():
  pages = {page for page, _ in COMMANDS}
  assert {"README.md", "data.md", "emoji.md", "monitoring.md", "plan.md", "quickstart.md"} <= pages
