"""Initial parameters, sampled with numpy, because compiling the same in JAX takes longer."""

import math
import zlib

import jax
import numpy as np

from dmpo_jax.models import trees

# Leaves with one initial value; CLIP's scale is stored as a logarithm (arXiv 2103.00020, 2.5).
FILLS = {"scale": 1.0, "bias": 0.0, "logit_scale": math.log(1 / 0.07)}
EMBEDDINGS = ("embedding", "class_embedding", "cls_token", "pos_embed")


def init_params(shapes: trees.Tree, key: jax.Array) -> trees.Tree:
  """Initial parameters: scales 1, biases 0, embeddings and kernels normal, CLIP's scale 1/0.07.

  Each array has its own generator, seeded by the key and the array's name, so that its values do
  not depend on the other layers of the network.

  Args:
    shapes: The tree with a `jax.ShapeDtypeStruct` for each array.
    key: A typed key.

  Returns:
    The tree with float32 numpy arrays.
  """
  words = np.asarray(jax.random.key_data(key)).ravel().tolist()

  def sample(name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = name.rsplit(".", 1)[-1]
    if kind in FILLS:
      return np.full(shape, FILLS[kind], np.float32)
    normal = np.random.default_rng([*words, zlib.crc32(name.encode())]).standard_normal
    # Kernels keep the variance of their input; the fan-in is all axes but the last.
    std = 0.02 if kind in EMBEDDINGS else 1 / np.sqrt(np.prod(shape[:-1]))
    return normal(shape, np.float32) * np.float32(std)

  flat = trees.flatten(shapes)
  return trees.unflatten({name: sample(name, leaf.shape) for name, leaf in flat.items()})
