"""Images, captions and preferences as arrays, in the order in which a run sees them."""

import importlib

# Name -> its module. The modules are imported at first use: the command line needs
# `data.convert.sources` for its help, but neither grain nor jax.
_EXPORTS = {
  "CachedLatents": "latents.dataset",
  "DATASETS": "datasets",
  "Examples": "in_memory",
  "FolderLoader": "loader",
  "FolderPairs": "folder_pairs",
  "LatentEncoders": "latents.shard",
  "Loader": "loader",
  "Pair": "pairs",
  "PairSource": "tfds_folder",
  "RENAMED": "datasets",
  "open_folder": "tfds_folder",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str):
  if name not in _EXPORTS:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
