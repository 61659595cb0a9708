"""The layers of the package: a file imports from lower layers and from its own folder only."""

import ast
import pathlib

import pytest

import dmpo_jax

ROOT = pathlib.Path(dmpo_jax.__file__).parent
LAYERS = {
  "common": 0,
  "losses": 1,
  "diffusion": 1,
  "models": 2,
  "data": 2,
  "ddo": 2,
  "parallel": 3,
  "interop": 3,
  "sampling": 3,
  "pipelines": 4,
  "evaluation": 5,
  "training": 6,
  "planning": 7,
  "demos": 7,
  "reward": 7,
  "commands": 8,
}
# What a package of the base install must do without, and what is too slow to import for all.
NOT_AT_IMPORT = {"torch", "tensorflow", "sklearn", "matplotlib", "tensorboardX", "diffusers"}
# Rooms that know a model family by its interface alone, and names that they do not use.
NEUTRAL = {"losses", "data", "parallel", "sampling", "training", "evaluation", "planning"}
FAMILY_NAMES = {"unet", "vae", "text_encoder", "text_encoder_2", "time_ids", "alphas_cumprod"}
# data/datasets.py tells the new name of a former option; diffusers_parity.py calls diffusers.
EXCEPTIONS = {"datasets.py": {"time_ids"}, "diffusers_parity.py": {"vae"}}
FILES = sorted(ROOT.rglob("*.py"))


def _folder(file: pathlib.Path) -> str:
  parts = file.relative_to(ROOT).parts
  return parts[0] if len(parts) > 1 else ""


def _imports(nodes) -> set[str]:
  """Full names of the modules that import statements among nodes name."""
  names = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"relative import in line {node.lineno}"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def _tree(file: pathlib.Path) -> ast.Module:
  return ast.parse(file.read_text())


def test_every_folder_of_the_package_has_a_layer():
  folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
  assert folders == set(LAYERS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_imports_from_lower_layers_and_its_own_folder(file):
  here = _folder(file)
  for name in _imports(ast.walk(_tree(file))):
    package, *rest = name.split(".")
    if package != "dmpo_jax" or not rest or rest[0] not in LAYERS:
      continue
    lower = here and LAYERS[rest[0]] < LAYERS[here]
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


def test_the_rule_sees_an_import_from_a_higher_layer():
  names = _imports(ast.walk(ast.parse("def f():\n  from dmpo_jax.training import run")))
  assert names == {"dmpo_jax.training.run"}
  assert LAYERS["training"] > LAYERS["losses"]


def _names(tree: ast.Module) -> set[str]:
  """Names, attributes, arguments and exact strings of a module."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      names.add(node.id)
    elif isinstance(node, ast.Attribute):
      names.add(node.attr)
    elif isinstance(node, ast.arg | ast.keyword) and node.arg:
      names.add(node.arg)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      names.add(node.value)
  return names


@pytest.mark.parametrize(
  "file",
  [file for file in FILES if _folder(file) in NEUTRAL],
  ids=lambda f: str(f.relative_to(ROOT)),
)
def test_a_room_that_knows_families_by_their_interface_names_no_component(file):
  assert _names(_tree(file)) & FAMILY_NAMES <= EXCEPTIONS.get(file.name, set())


def test_no_two_benchmarks_import_each_other():
  folder = pathlib.Path(__file__).parent.parent / "benchmarks"
  stems = {file.stem for file in folder.glob("*.py")}
  imports = {
    file.stem: {name.split(".")[0] for name in _imports(ast.walk(_tree(file)))} & stems
    for file in folder.glob("*.py")
  }
  while leaves := [stem for stem, names in imports.items() if not names & set(imports)]:
    for stem in leaves:
      del imports[stem]
  assert not imports, f"these import each other in a circle: {sorted(imports)}"
