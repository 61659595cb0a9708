"""Small caches of latents for tests.

The networks are three lines of numpy, so that every stored number is known.
"""

import pathlib

import numpy as np

from dmpo_jax.data import CachedLatents, LatentEncoders
from dmpo_jax.data.latents.options import Options
from tests.data import test_folder_pairs as folder_pairs

SIZE = 16
VIEWS = Options(
  size=SIZE, crop="random", flip=True, augmentations=3, dtype="float32", pairs_per_shard=4
)


def latents(images):
  """[n, H, W, 3] bytes -> the pixels as means, and log variances of -16."""
  mean = images.astype(np.float32)
  return np.stack([mean, np.full_like(mean, -16)], axis=1)


def text(ids):
  """[n, L] -> embeddings that hold the token ids, [n, L, 2] and [n, 3]."""
  hidden = np.stack([ids["input_ids"], 1 + ids["input_ids"]], axis=-1).astype(np.float32)
  return {"hidden": hidden, "pooled": hidden[:, :3, 0] / 3}


def encoders(**changes) -> LatentEncoders:
  networks = LatentEncoders(
    fingerprint={"encoders": {"vae": {"weights": "a"}}, "tokenizers": {"tokenizer": "t"}},
    tokenize=folder_pairs.tokenize,
    latents=latents,
    text=text,
    pairs=3,
    captions=4,
    channels=3,
  )
  return networks._replace(**changes)


def load(folder, *, batch_size=4, seed=0, processes=(0, 1), **options):
  examples = CachedLatents(folder=str(folder), **options)
  index, count = processes
  return examples.loader(batch_size=batch_size, seed=seed, process_index=index, process_count=count)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
