"""The examples of docs/extending.md run: the page is followed in a copy of the repository."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extending.md").read_text()
FILES = dict(re.findall(r'^```python title="(.+?)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE))
# File, line that stays, line that follows it, as the page says in words.
EDITS = [
  (
    "dmpo_jax/losses/__init__.py",
    "from dmpo_jax.losses.mapo import mapo",
    "from dmpo_jax.losses.offset_dpo import offset_dpo",
  ),
  ("dmpo_jax/losses/__init__.py", '  "mapo": mapo,', '  "offset_dpo": offset_dpo,'),
  (
    "tests/losses/cases.py",
    '  "hinge": {"beta": 30.0},',
    '  "offset_dpo": {"beta": 30.0, "offset": 0.5},',
  ),
  (
    "dmpo_jax/evaluation/scorers/__init__.py",
    "from dmpo_jax.evaluation.scorers.pixels import brightness, colourfulness, of_pixels, warmth",
    "from dmpo_jax.evaluation.scorers.sharpness import sharpness",
  ),
  (
    "dmpo_jax/evaluation/scorers/__init__.py",
    '  "warmth": of_pixels(warmth),',
    '  "sharpness": of_pixels(sharpness),',
  ),
  (
    "dmpo_jax/data/convert/sources/__init__.py",
    "from dmpo_jax.data.convert.sources import (",
    "  best_of_two,",
  ),
  (
    "dmpo_jax/data/convert/sources/__init__.py",
    '  "custom": custom,',
    '  "best-of-two": best_of_two,',
  ),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
  """The repository with the page's files and edits."""
  root = tmp_path_factory.mktemp("repository")
  for name in ("dmpo_jax", "configs", "tests"):
    shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copy(ROOT / "pyproject.toml", root)
  # Installed, the configs are a package in dmpo_jax.
  shutil.copytree(ROOT / "configs", root / "dmpo_jax" / "configs", dirs_exist_ok=True)
  for name, text in FILES.items():
    (root / name).write_text(text)
    if name.startswith("configs/"):
      (root / "dmpo_jax" / name).write_text(text)
  for name, line, new in EDITS:
    lines = (root / name).read_text().splitlines()
    lines.insert(lines.index(line) + 1, new)
    (root / name).write_text("\n".join(lines) + "\n")
  main = root / "dmpo_jax/commands/main.py"
  pattern = r"(?<=from dmpo_jax.commands import \()\n|(?<=  for module in \()\n"
  text, count = re.subn(pattern, lambda m: m[0] + "captions, ", main.read_text())
  assert count == 2
  main.write_text(text)
  return root


def run(copy, *arguments):
  own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
  environment = {**own, "PYTHONPATH": str(copy)}
  command = [sys.executable, *arguments]
  result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


def test_the_examples_pass_their_own_tests(copy):
  tests = [name for name in FILES if name.startswith("tests/")]
  assert len(tests) == 3
  run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def test_the_general_tests_cover_the_objective_and_the_source(copy):
  tests = ["tests/losses/test_every_loss.py", "tests/data/convert/test_sources.py"]
  chosen = "offset_dpo or case or contract"
  run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *tests)


def test_the_command_line_lists_them(copy):
  program = ("-m", "dmpo_jax.commands.main")
  assert "offset_dpo" in run(copy, *program, "objectives")
  assert "best-of-two" in run(copy, *program, "data", "convert", "--help")
  assert "sharpness" in run(copy, *program, "data", "judge", "--help")
  assert "--split" in run(copy, *program, "captions", "--help")


def test_the_config_is_valid(copy):
  code = (
    "from dmpo_jax.training import config; from dmpo_jax.configs import digits_offset_dpo as c; "
  )
  run(copy, "-c", code + "config.check(c.get_config())")
