"""The table of an evaluation: a row for each model and image."""

from collections.abc import Mapping, Sequence

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.optional import import_optional
from dmpo_jax.evaluation.units import Units


def write(
  path: paths.Path,
  units: Units,
  files: Mapping[str, Sequence[paths.Path]],
  scores: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
  """Writes the table as parquet.

  Args:
    path: The file; images in its folder are named relative to it.
    units: Prompts and seeds.
    files: Model -> file of each image.
    scores: Scorer -> model -> score of each image.

  Raises:
    InputError: pyarrow is not installed.
  """
  arrow = import_optional("pyarrow", extra="data")
  parquet = import_optional("pyarrow.parquet", extra="data")
  count, models = len(units.prompts), list(files)
  columns = {
    "model": np.repeat(models, count),
    "prompt_index": np.tile(units.groups, len(models)),
    "prompt": units.prompts * len(models),
    "category": units.categories * len(models),
    "seed": np.tile(units.seeds, len(models)),
    **({} if units.sources is None else {"source": list(units.sources) * len(models)}),
    "image": [_relative(image, path.parent) for model in models for image in files[model]],
  }
  for name, of_models in scores.items():
    columns[f"score {name}" if name in columns else name] = np.concatenate(
      [of_models[model] for model in models]
    )
  table = arrow.table(columns)
  write_atomically(path, lambda stream: parquet.write_table(table, stream))


def _relative(path: paths.Path, folder: paths.Path) -> str:
  return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
