"""Images, captions and preferences as arrays, and the order in which a run sees them."""

from dmpo_jax.data import digits
from dmpo_jax.data.builder import PairSource, open_folder
from dmpo_jax.data.datasets import DATASETS
from dmpo_jax.data.encode_shard import Encoders
from dmpo_jax.data.encoded_pairs import EncodedPairs
from dmpo_jax.data.folders import StoredLoader
from dmpo_jax.data.loader import Loader
from dmpo_jax.data.pairs import Pair
from dmpo_jax.data.records import Examples
from dmpo_jax.data.stored import StoredPairs

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
