"""Images, captions and preferences as arrays, and the order in which a run sees them."""

from dmpo_jax.data.datasets import DATASETS
from dmpo_jax.data.folder_pairs import StoredPairs
from dmpo_jax.data.in_memory import Examples
from dmpo_jax.data.latents.dataset import EncodedPairs
from dmpo_jax.data.latents.shard import Encoders
from dmpo_jax.data.loader import Loader
from dmpo_jax.data.mixture import StoredLoader
from dmpo_jax.data.pairs import Pair
from dmpo_jax.data.tfds_folder import PairSource, open_folder
from dmpo_jax.data.toy import digits

__all__ = [
  "DATASETS",
  "EncodedPairs",
  "Encoders",
  "Examples",
  "Loader",
  "Pair",
  "PairSource",
  "StoredLoader",
  "StoredPairs",
  "digits",
  "open_folder",
]
