"""The notebooks run at small settings, and are committed with the outputs of a full run.

Their own cells hold the assertions: theory against training, closed forms against the library.
"""

import base64
import pathlib
import re
import runpy

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Those that train networks.
SLOW = {"02_toy_modes", "03_align_stable_diffusion", "04_ddo"}
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def outputs(notebook):
  return [o for cell in notebook.cells for o in cell.get("outputs", [])]


def images(notebook):
  found = [o["data"] for o in outputs(notebook) if "data" in o]
  return [base64.b64decode(d["image/png"]) for d in found if "image/png" in d]


def test_all_notebooks_are_there():
  names = ["01_objectives", "02_toy_modes", "03_align_stable_diffusion", "04_ddo"]
  assert [p.stem for p in NOTEBOOKS] == names


@pytest.mark.parametrize(
  "path",
  [pytest.param(p, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in NOTEBOOKS],
  ids=lambda p: p.stem,
)
def test_a_notebook_runs_from_top_to_bottom_and_its_assertions_hold(path, tmp_path):
  execute = runpy.run_path(str(ROOT / "notebooks" / "execute.py"))["execute"]
  settings = {"DMPO_NOTEBOOK_SMALL": "1", "DMPO_NOTEBOOK_IMAGES": str(tmp_path)}
  # Most of the time goes into compiling; what is computed at these settings is little.
  done = execute(path, {**settings, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})
  assert len(images(done)) == len(list(tmp_path.glob("*.png"))) >= 3
  assert not any("IPython.core" in str(output) for output in outputs(done))


def test_an_assertion_that_does_not_hold_fails_the_run(tmp_path):
  execute = runpy.run_path(str(ROOT / "notebooks" / "execute.py"))["execute"]
  path = tmp_path / "wrong.ipynb"
  cells = [nbformat.v4.new_code_cell("assert 1 + 1 == 3", id="a")]
  nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
  with pytest.raises(Exception, match="AssertionError"):
    execute(path, {})


@every
def test_a_committed_notebook_was_run_in_order_without_an_error(path):
  notebook = nbformat.read(path, as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs(notebook))


@every
def test_a_committed_notebook_says_nothing_of_the_machine_it_ran_on(path):
  text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
  assert not re.search(r"/(home|opt|root|tmp|usr|work)/", text)
  assert not re.search(r"\d{4}-\d{2}-\d{2}T|iopub|\"version\"", text)


def test_the_figures_of_all_notebooks_stay_below_a_megabyte_and_a_half():
  found = [len(png) for path in NOTEBOOKS for png in images(nbformat.read(path, as_version=4))]
  assert 0 < sum(found) < 1.5e6


@every
def test_the_figures_in_docs_are_those_of_the_notebook(path):
  kept = {p.read_bytes() for p in (ROOT / "docs" / "images").glob("*.png")}
  assert all(png in kept for png in images(nbformat.read(path, as_version=4)))
