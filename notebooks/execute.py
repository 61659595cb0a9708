"""Runs a notebook from top to bottom and writes it back with its outputs.

    python notebooks/execute.py notebooks/01_objectives.ipynb [--images docs/images]

needs pip install 'dmpo-jax[notebooks]'. A cell that fails stops it, and nothing is written. What is
written is the same on every machine: no times, no counters of a session, no versions.
"""

import argparse
import os
import pathlib

import nbformat
from nbclient import NotebookClient


def execute(path: pathlib.Path, settings: dict[str, str]) -> nbformat.NotebookNode:
  """The notebook with its outputs, run by this Python in a process of its own.

  Args:
    path: The notebook; it is not changed.
    settings: Environment variables its kernel sees beside ours.

  Returns:
    The notebook, metadata of the run removed.

  Raises:
    nbclient.exceptions.CellExecutionError: A cell failed.
  """
  notebook = nbformat.read(path, as_version=4)
  client = NotebookClient(notebook, timeout=3600, kernel_name="python3", record_timing=False)
  client.execute(cwd=str(path.parent), env={**os.environ, "JAX_PLATFORMS": "cpu", **settings})
  notebook.metadata = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
  }
  for cell in notebook.cells:
    for output in cell.get("outputs", []):
      # The size of an image is in the image; "<IPython.core.display.Image object>" says nothing.
      if "image/png" in output.get("data", {}):
        output["data"] = {"image/png": output["data"]["image/png"]}
        output["metadata"] = {}
  return notebook


def main() -> None:
  """Executes the notebooks given on the command line in place, at their full settings."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("notebooks", nargs="+", type=pathlib.Path)
  parser.add_argument(
    "--images", type=pathlib.Path, help="a folder to write the figures to as well"
  )
  options = parser.parse_args()
  images = str(options.images.resolve()) if options.images else ""
  for path in options.notebooks:
    done = execute(path, {"DMPO_NOTEBOOK_SMALL": "", "DMPO_NOTEBOOK_IMAGES": images})
    nbformat.write(done, path)
    print(path)


if __name__ == "__main__":
  main()
