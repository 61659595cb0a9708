"""README, CONTRIBUTING and docs: the files that they name exist, and their prose is narrow."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "benchmarks|configs|docs|dmpo_jax|launch|notebooks|tests"
FILE = re.compile(rf"(?<![\w./])(?:{FOLDERS})/[\w./*]+\.(?:py|sh|md|ipynb)\b")
every = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


@every
def test_the_files_that_a_page_names_exist(page):
  text = page.read_text()
  new = set(re.findall(r'title="(.+?)"', text))  # files that a reader makes
  names = set(FILE.findall(text)) - new
  assert not [name for name in names if not list(ROOT.glob(name)) and not _is_pattern(name)]


def _is_pattern(name):
  return "NAME" in name or name == "dmpo_jax/pipelines/toy.py"


@every
def test_prose_has_at_most_100_columns(page):
  lines = page.read_text().splitlines()
  assert not [line for line in lines if len(line) > 100 and not line.startswith("|")]
