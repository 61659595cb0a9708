"""The layers of the package: a file imports from lower floors and from its own folder only."""

import ast
import pathlib

import pytest

import dmpo_jax

ROOT = pathlib.Path(dmpo_jax.__file__).parent
FLOORS = {
  "common": 0,
  "losses": 1,
  "diffusion": 1,
  "models": 2,
  "data": 2,
  "parallel": 3,
  "interop": 3,
  "sampling": 3,
  "pipelines": 4,
  "training": 5,
  "evaluation": 5,
  "planning": 6,
  "demos": 6,
  "commands": 7,
}
# What a package of the base install must do without, and what is too slow to import for all.
NOT_AT_IMPORT = {"torch", "tensorflow", "sklearn", "matplotlib", "tensorboardX", "diffusers"}
FILES = sorted(ROOT.rglob("*.py"))


def _folder(file: pathlib.Path) -> str:
  parts = file.relative_to(ROOT).parts
  return parts[0] if len(parts) > 1 else ""


def _imports(nodes) -> set[str]:
  """Full names of the modules that import statements among nodes name."""
  found = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"relative import in line {node.lineno}"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def _tree(file: pathlib.Path) -> ast.Module:
  return ast.parse(file.read_text())


def test_every_folder_of_the_package_has_a_floor():
  folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
  assert folders == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_imports_from_lower_floors_and_its_own_folder(file):
  here = _folder(file)
  for name in _imports(ast.walk(_tree(file))):
    package, *rest = name.split(".")
    if package != "dmpo_jax" or not rest or rest[0] not in FLOORS:
      continue
    lower = here and FLOORS[rest[0]] < FLOORS[here]
    assert lower or rest[0] == here, f"{here or 'the root'} may not import {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_used(file):
  top = {name.split(".")[0] for name in _imports(_tree(file).body)}
  assert not top & NOT_AT_IMPORT


def test_losses_need_jax_and_numpy_only():
  allowed = {"jax", "numpy", "dmpo_jax", "math", "typing", "numbers", "collections", "functools"}
  for file in (ROOT / "losses").glob("*.py"):
    found = {name.split(".")[0] for name in _imports(ast.walk(_tree(file)))}
    assert found <= allowed, f"{file.name} imports {found - allowed}"


def test_the_rule_sees_an_import_from_a_higher_floor():
  names = _imports(ast.walk(ast.parse("def f():\n  from dmpo_jax.training import run")))
  assert names == {"dmpo_jax.training.run"}
  assert FLOORS["training"] > FLOORS["losses"]
