"""LoRA: low-rank updates of linear layers and convolutions, as pure functions of trees.

A LoRA tree has the branches of the base's tree that it adapts, with two factors for each kernel:

    down: [I, r] (linear) or [k, k, I, r] (convolution),   up: [r, O].

The base is shared, never copied or changed: `merge(base, lora, alpha=alpha)` has the base's own
arrays wherever there is no LoRA. Training is `apply(merge(base, lora, alpha=alpha), ...)` with the
gradient in `lora` alone; the frozen reference of a preference loss is `base`.
"""

import fnmatch
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from dmpo_jax.errors import InputError
from dmpo_jax.models import trees

# The attention projections of UNets, the targets of diffusers' LoRA scripts, and those of CLIP.
ATTENTION = ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0")
TEXT_ATTENTION = ("*.q_proj", "*.k_proj", "*.v_proj", "*.out_proj")

Alpha = float | Mapping[str, float]


def init(
  key: jax.Array, params: trees.Tree, *, targets: Iterable[str] = ATTENTION, rank: int
) -> dict[str, Any]:
  """A new LoRA, which does not change the base yet.

      down ~ U(-1/sqrt(n), 1/sqrt(n)),   n = I or k k I,   up = 0

  Args:
    key: Typed key. The factors of a layer depend on the key and the layer's name alone.
    params: The base's tree; arrays or `jax.ShapeDtypeStruct`s.
    targets: Glob patterns; a layer is adapted if one of them matches its full dotted name
      (`*` matches dots too). Only layers with a kernel, linear ones and convolutions, can match.
    rank: r, at least 1 and at most the smaller of n and O of each layer.

  Returns:
    A LoRA tree of float32 numpy arrays.

  Raises:
    InputError: A pattern matches no layer, or a layer is too small for the rank; the message lists
      all.

  Source: peft's default initialisation of lora_A, kaiming_uniform with a = sqrt(5), and of lora_B.
  """
  kernels = _select(params, targets, rank)
  words = np.asarray(jax.random.key_data(key)).ravel().tolist()

  def sample(name: str, shape: tuple[int, ...]) -> np.ndarray:
    bound = math.prod(shape) ** -0.5
    generator = np.random.default_rng([*words, zlib.crc32(name.encode())])
    return generator.uniform(-bound, bound, (*shape, rank)).astype(np.float32)

  flat = {}
  for name, kernel in kernels.items():
    flat[f"{name}.down"] = sample(name, kernel.shape[:-1])
    flat[f"{name}.up"] = np.zeros((rank, kernel.shape[-1]), np.float32)
  return trees.unflatten(flat)


def merge(base: trees.Tree, lora: trees.Tree, *, alpha: Alpha) -> dict[str, Any]:
  """The base with a LoRA merged into its kernels.

      W' = W + (alpha / r) down · up

  computed in float32 at full precision and then cast to the dtype of W. On a bfloat16 base the
  result is the float32 sum rounded once, so that a small update can vanish.

  Args:
    base: The base's tree.
    lora: A LoRA tree for it; ranks may differ from layer to layer.
    alpha: A number for all layers, or one for each layer by its dotted name.

  Returns:
    A tree with the structure and dtypes of `base`; leaves without a LoRA are the same arrays.
    It can be compiled and differentiated. With up = 0 it equals `base`.

  Raises:
    InputError: Layers of the LoRA are not in the base, have another shape, or have no alpha; the
      message lists all.
  """
  layers = layers_of(lora)
  leaves = trees.flatten(base)
  check(layers, base)
  if isinstance(alpha, Mapping):
    missing, surplus = sorted(layers.keys() - alpha.keys()), sorted(alpha.keys() - layers.keys())
    if missing or surplus:
      raise InputError(
        f"alpha must have a number for each layer of the LoRA; without one: {missing or 'none'}; "
        f"no layers: {surplus or 'none'}"
      )
  for name, (down, up) in layers.items():
    scale = (alpha[name] if isinstance(alpha, Mapping) else alpha) / up.shape[0]
    down, up = (jnp.asarray(x, jnp.float32) for x in (down, up))
    update = jnp.tensordot(down, up, axes=1, precision=jax.lax.Precision.HIGHEST)
    kernel = jnp.asarray(leaves[f"{name}.kernel"])
    leaves[f"{name}.kernel"] = (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
  return trees.unflatten(leaves)


def extract(
  base: trees.Tree, tuned: trees.Tree, *, targets: Iterable[str] = ATTENTION, rank: int
) -> dict[str, Any]:
  """The LoRA that best approximates a fine-tuned network's difference from its base.

      down · up = Σ_{i<=r} σ_i u_i v_iᵀ,   down = U sqrt(Σ),   up = sqrt(Σ) Vᵀ

  with the singular values and vectors of D = W_tuned - W_base (a convolution's kernel as a matrix
  [k k I, O]): no matrix of rank r is nearer in the Frobenius norm, and a difference of rank <= r is
  recovered up to float32 rounding. The r largest eigenvalues of D Dᵀ or Dᵀ D, whichever is smaller,
  give them in float64, several times faster than a full decomposition.
  `merge(base, extract(...), alpha=rank)` is the approximated network.

  Args:
    base: The base's tree.
    tuned: A tree of the same structure and shapes. Differences outside the targets, such as those
      of biases and norms, are not in the result.
    targets: Glob patterns of the layers, as in `init`.
    rank: r, as in `init`.

  Returns:
    A LoRA tree of float32 numpy arrays, to be merged with alpha = rank.

  Raises:
    InputError: The trees differ in leaves or shapes, a pattern matches no layer, or a layer is too
      small for the rank; the message lists all.
  """
  old, new = trees.flatten(base), trees.flatten(tuned)
  problems = [f"{name}: only in base" for name in old if name not in new]
  problems += [f"{name}: only in tuned" for name in new if name not in old]
  problems += [
    f"{name}: {list(old[name].shape)} in base, {list(new[name].shape)} in tuned"
    for name in old
    if name in new and old[name].shape != new[name].shape
  ]
  if problems:
    raise InputError(_listed("base and tuned are different networks", problems))
  flat = {}
  for name, kernel in _select(base, targets, rank).items():
    before, after = (np.asarray(x[f"{name}.kernel"]).astype(np.float32) for x in (old, new))
    down, up = _factorise((after - before).reshape(-1, kernel.shape[-1]), rank)
    flat[f"{name}.down"] = down.reshape(*kernel.shape[:-1], rank)
    flat[f"{name}.up"] = up
  return trees.unflatten(flat)


def _factorise(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """The factors [m, r] and [r, n] whose product is nearest to a matrix.

  Each factor has the square roots of the singular values.
  """
  if matrix.shape[0] < matrix.shape[1]:
    up, down = _factorise(matrix.T, rank)
    return np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)
  matrix = matrix.astype(np.float64)
  side = matrix.shape[1]
  squares, right = scipy.linalg.eigh(
    matrix.T @ matrix, subset_by_index=(side - rank, side - 1)
  )  # ascending
  root = np.maximum(squares[::-1], 0) ** 0.25
  left = matrix @ right[:, ::-1] / np.where(root > 0, root, 1)
  return left.astype(np.float32), (root[:, None] * right[:, ::-1].T).astype(np.float32)


def layers_of(lora: trees.Tree) -> dict[str, tuple[Any, Any]]:
  """The factors of a LoRA tree by layer.

  Args:
    lora: A LoRA tree.

  Returns:
    Dotted name of the layer -> (down, up).

  Raises:
    InputError: The tree is no LoRA tree: a leaf has another name, one of a pair is missing, or the
      two have different ranks.
  """
  leaves = trees.flatten(lora)
  names = dict.fromkeys(name.rpartition(".")[0] for name in leaves)
  problems = [
    f"{name}: a leaf of a LoRA is called down or up"
    for name in leaves
    if name.rpartition(".")[2] not in ("down", "up")
  ]
  layers = {}
  for name in names:
    down, up = leaves.get(f"{name}.down"), leaves.get(f"{name}.up")
    if down is None or up is None:
      problems.append(f"{name}: needs both down and up")
    elif down.ndim not in (2, 4) or up.ndim != 2 or down.shape[-1] != up.shape[0]:
      shapes = f"down {list(down.shape)}, up {list(up.shape)}"
      problems.append(f"{name}: {shapes}; expected [I, r] or [k, k, I, r], and [r, O]")
    else:
      layers[name] = (down, up)
  if problems or not layers:
    raise InputError(_listed("this is no LoRA tree", problems or ["it has no layers"]))
  return layers


def mismatches(layers: Mapping[str, tuple[Any, Any]], base: trees.Tree) -> list[str]:
  """Layers of a LoRA that do not fit a network.

  Args:
    layers: From `layers_of`.
    base: The base's tree; arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    A line for each layer that the base does not have or that has another shape in it.
  """
  kernels = _kernels(base)
  problems = []
  for name, (down, up) in layers.items():
    shape = (*down.shape[:-1], up.shape[-1])
    if name not in kernels:
      problems.append(f"{name}: the base has no such linear layer or convolution")
    elif kernels[name].shape != shape:
      problems.append(f"{name}: made for {list(shape)}, the base's is {list(kernels[name].shape)}")
  return problems


def check(layers: Mapping[str, tuple[Any, Any]], base: trees.Tree) -> None:
  """Raises InputError unless the layers of a LoRA fit a network.

  Args:
    layers: From `layers_of`.
    base: The base's tree; arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    InputError: There are `mismatches`; the message lists them.
  """
  if problems := mismatches(layers, base):
    raise InputError(_listed("the LoRA was made for another network", problems))


def _kernels(params: trees.Tree) -> dict[str, Any]:
  """Kernels by the dotted name of their layer."""
  split = ((name.rpartition("."), leaf) for name, leaf in trees.flatten(params).items())
  return {layer: leaf for (layer, _, kind), leaf in split if kind == "kernel"}


def _select(params: trees.Tree, targets: Iterable[str], rank: int) -> dict[str, Any]:
  """The kernels that a pattern matches; InputError unless all of them allow this rank."""
  patterns = (targets,) if isinstance(targets, str) else tuple(targets)
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    raise InputError(f"rank must be an integer of at least 1, got {rank!r}")
  kernels = _kernels(params)
  matched = {p: [name for name in kernels if fnmatch.fnmatchcase(name, p)] for p in patterns}
  problems = [
    f"pattern {p!r} matches no linear layer and no convolution; layers are called like "
    f"{', '.join(list(kernels)[:3]) or 'nothing'}"
    for p, names in matched.items()
    if not names
  ]
  chosen = set().union(*matched.values()) if matched else set()
  for name in (name for name in kernels if name in chosen):
    *inputs, outputs = kernels[name].shape
    side = min(math.prod(inputs), outputs)
    if rank > side:
      problems.append(f"{name} is {list(kernels[name].shape)}: its rank is at most {side}")
  if problems or not patterns:
    raise InputError(_listed(f"no LoRA of rank {rank}", problems or ["targets names no pattern"]))
  return {name: kernel for name, kernel in kernels.items() if name in chosen}


def _listed(title: str, problems: list[str]) -> str:
  return f"{title}:" + "".join(f"\n  {problem}" for problem in problems)
