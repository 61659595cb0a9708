"""Files of users and strangers are read in one place, and none of them runs code."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dmpo_jax"
# Raw readers, and where each may stand: beside the reader of all, in a `files.reading` block with
# its own checks, or where the text is the program's own.
RAW = {
  "json.load": (),
  "json.loads": (
    "commands/plan.py",  # the result of its own subprocess
    "common/files.py",
    "common/leases.py",  # a damaged lease is none
    "common/local_copies.py",  # a damaged index is none
    "data/convert/tables/json_rows.py",  # a damaged row is counted or skipped
    "data/latents/cache.py",  # values as JSON would return them
    "data/resumable.py",
    "parallel/processes.py",  # messages between processes
    "pipelines/fingerprints.py",
    "pipelines/latent_encoders.py",
  ),
  "np.load": (
    "data/convert/chunk_index.py",
    "data/pair_index.py",
    "demos/digits/samples.py",
    "training/potential/samples.py",
  ),
  "read_text": (
    "commands/plan.py",
    "commands/program_cache.py",  # /proc
    "common/files.py",
    "common/leases.py",  # /proc
    "common/local_copies.py",
    "common/file_lock.py",  # a token
  ),
  "safe_open": (),
}
# What would run code of a file, and where it may stand.
CODE = {
  "AutoTokenizer": set(),
  "Unpickler": set(),
  "eval": set(),
  "exec": {"training/config_file.py"},  # a config is a program
  "pickle.load": {"data/convert/tables/parquet.py"},  # of an unnamed file that it has just written
  "pickle.loads": set(),
  "torch.load": set(),
  "yaml.load": set(),
}


def calls(path):
  """Names that a file calls, with the module before a dot where it is a plain name."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      function = node.func
      if isinstance(function, ast.Name):
        yield function.id, node
      elif isinstance(function, ast.Attribute):
        yield function.attr, node
        if isinstance(function.value, ast.Name):
          yield f"{function.value.id}.{function.attr}", node


FILES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("reader", RAW)
def test_a_raw_reader_stands_in_few_places(reader):
  users = set()
  for name, path in FILES.items():
    for called, node in calls(path):
      module = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
      ours = module and node.func.value.id.endswith("files")  # common.files has these names too
      if called == reader and not ours:
        users.add(name)
  assert users == set(RAW[reader])


@pytest.mark.parametrize("call", CODE)
def test_no_code_of_a_file_is_run(call):
  users = {name for name, path in FILES.items() if call in {called for called, _ in calls(path)}}
  assert users == CODE[call]


def test_arrays_are_never_unpickled():
  for name, path in FILES.items():
    for called, node in calls(path):
      if called == "np.load":
        allow = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        assert allow.get("allow_pickle") is False, name
