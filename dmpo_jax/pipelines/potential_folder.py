"""The folder of a learned potential: network, parameters, and the pipeline it belongs to."""

import json
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from dmpo_jax import interop
from dmpo_jax.common import atomic_folders, files, paths
from dmpo_jax.errors import InputError
from dmpo_jax.models import potential as networks
from dmpo_jax.models import trees
from dmpo_jax.pipelines.fingerprints import pipeline_fingerprint
from dmpo_jax.pipelines.steering import Potential

CONFIG, POTENTIAL, LEARNED = "potential.json", "potential.safetensors", "drift.safetensors"
MAX_BYTES = 1 << 32
FORMAT = 1
ADVICE = "make it again with dmpo-jax potential"


def save_potential(folder: paths.Path, potential: Potential) -> None:
  """Writes a potential's folder, whole or not at all.

  Args:
    folder: The folder; one that exists is replaced.
    potential: The potential.

  Raises:
    OSError: It cannot be written.
  """
  content = {
    "format": FORMAT,
    "network": {**potential.config.__dict__, "widths": list(potential.config.widths)},
    "drift": potential.drift,
    "pipeline": dict(potential.pipeline),
    "record": dict(potential.record),
  }
  with atomic_folders.folder_atomically(folder, index=CONFIG) as new:
    (new / CONFIG).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    (new / POTENTIAL).write_bytes(_bytes(potential.params))
    if potential.learned is not None:
      (new / LEARNED).write_bytes(_bytes(potential.learned))


def load_potential(folder: paths.Path, pipeline: interop.Pipeline) -> Potential:
  """Reads a potential's folder.

  Args:
    folder: The folder, such as runs/ddo/potential.
    pipeline: The pipeline that is to be steered, its parameters as they are stored.

  Returns:
    `Potential`.

  Raises:
    InputError: The folder is no potential's, is damaged, or belongs to another pipeline.
  """
  folder = paths.parse(folder)
  content = _description(folder)
  with files.located(folder / CONFIG):
    config = networks.read(content["network"])
  drift, of, record = content["drift"], content["pipeline"], content["record"]
  here = pipeline_fingerprint(pipeline)
  if differing := sorted(key for key in here if of.get(key) != here[key]):
    raise InputError(
      f"the potential in {folder} belongs to another pipeline: its {' and '.join(differing)} "
      "differ, and a potential tilts the samples of its own reference only. Name the pipeline it "
      f"was learned for ({record.get('pipeline', 'not recorded')}), or learn one for this pipeline"
    )
  learned = _read(folder / LEARNED, config) if drift else None
  return Potential(config, _read(folder / POTENTIAL, config), learned, drift, of, record)


def learned_drift(folder: paths.Path) -> str:
  """Name of the drift that a potential has learned, "" for none; errors are `load_potential`'s."""
  return _description(paths.parse(folder))["drift"]


def _description(folder: paths.Path) -> dict[str, Any]:
  """The content of a folder's potential.json, its types checked."""
  if not (folder / CONFIG).is_file():
    hint = f"; did you mean {folder / 'potential'}?" if (folder / "potential").is_dir() else ""
    raise InputError(f"{folder} is no folder of a potential: it has no {CONFIG}{hint}")
  content = files.read_json(folder / CONFIG, advice=ADVICE)
  if content.get("format") != FORMAT:
    raise InputError(
      f"{folder / CONFIG} has format {content.get('format')!r}, this version reads {FORMAT}; "
      f"{ADVICE}"
    )
  for key, kind in (("network", dict), ("drift", str), ("pipeline", dict), ("record", dict)):
    if not isinstance(content.get(key), kind):
      raise InputError(f"{folder / CONFIG} is damaged: {key} is no {kind.__name__}; {ADVICE}")
  return content


def _bytes(params: trees.Tree) -> bytes:
  flat = trees.flatten(params)
  return save({name: np.ascontiguousarray(leaf, np.float32) for name, leaf in flat.items()})


def _read(file: paths.Path, config: networks.PotentialConfig) -> trees.Tree:
  """Parameters of a file, which must fit the network."""
  content = files.read_bytes(file, max_bytes=MAX_BYTES)
  with files.reading(file, "safetensors file of a potential", advice=ADVICE):
    flat = load(content)
  expected = trees.flatten(networks.abstract(config))
  if {k: v.shape for k, v in flat.items()} != {k: v.shape for k, v in expected.items()}:
    raise InputError(f"{file} does not hold the network that {CONFIG} describes; {ADVICE}")
  if bad := [name for name, x in flat.items() if not np.isfinite(x).all()]:
    raise InputError(f"{file} has values that are not finite, in {bad[0]}; {ADVICE}")
  return trees.unflatten({name: flat[name].astype(np.float32) for name in expected})
