"""Everything that sampled images depend on beside their settings, as short digests."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from dmpo_jax import diffusion, interop
from dmpo_jax.parallel.array_checksums import tree_checksum
from dmpo_jax.pipelines.generate import SamplingInputs

# Fields that say who wrote a config, not what it configures.
PROVENANCE = ("transformers_version", "torch_dtype", "dtype")


def sampling_fingerprint(
  pipeline: interop.Pipeline, solver: diffusion.Solver, inputs: SamplingInputs
) -> dict[str, str]:
  """Digests of the content that images are sampled from, wherever it lies.

  Args:
    pipeline: The pipeline, with its parameters as they are stored; a LoRA is merged.
    solver: The solver with its steps.
    inputs: Inputs of the images; their token ids count.

  Returns:
    "weights", "configs", "solver" and "tokens" -> hexadecimal digest.
  """
  configs = {
    name: {k: v for k, v in config.items() if v is not None and not _is_provenance(k)}
    for name, config in pipeline.configs.items()
    if name != interop.pipeline.SCHEDULER  # the solver has its numbers
  }
  return {
    "weights": tree_checksum(pipeline.params),
    "configs": _digest(json.dumps(configs, sort_keys=True, default=str).encode()),
    "solver": _arrays((solver.steps, solver.initial_scale, solver.clip)),
    "tokens": _arrays((inputs.text, inputs.negative_text)),
  }


def _is_provenance(field: str) -> bool:
  return field.startswith("_") or field in PROVENANCE


def _arrays(tree: Any) -> str:
  """Digest of a tree of small arrays and numbers."""
  parts = [
    f"{jax.tree_util.keystr(path)} {np.asarray(leaf).dtype} {np.asarray(leaf).shape} ".encode()
    + np.ascontiguousarray(leaf).tobytes()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]
  return _digest(b"".join(parts))


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:16]
