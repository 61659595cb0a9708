"""LAION's aesthetic scores: heads on the image features of OpenAI's ViT-L/14."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scorers.base import Kind, Scorer

CLIP = "openai/clip-vit-large-patch14"
# Name -> layers of the head in its file, and whether a ReLU follows each but the last.
HEADS = {
  "v1": (("",), False),
  "v2": (tuple(f"layers.{i}." for i in (0, 2, 4, 6, 7)), False),
  "relu": (tuple(f"layers.{i}." for i in (0, 3, 6, 9, 11)), True),
}


class Head(NamedTuple):
  """A head: linear layers, with or without a ReLU between them.

  Attributes:
    version: "v1" (one layer), "v2" (five without ReLU: one affine map) or "relu" (five with it).
    layers: A weight `[O, I]` and a bias `[O]` each, float64; the last O is 1.
  """

  version: str
  layers: tuple[tuple[np.ndarray, np.ndarray], ...]

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Scores `[N]` of image features of norm 1, `[N, d]`."""
    x = np.asarray(features, np.float64)
    for i, (weight, bias) in enumerate(self.layers):
      x = x @ weight.T + bias[None]
      if HEADS[self.version][1] and i + 1 < len(self.layers):
        x = np.maximum(x, 0)
    return x[:, 0]


def read_head(file: str | os.PathLike) -> Head:
  """Reads a head as LAION publishes it.

  Args:
    file: `sa_0_4_vit_l_14_linear.pth` (V1), `sac+logos+ava1-l14-linearMSE.pth` (V2), or
      `ava+logos-l14-reluMSE.pth` (ReLU); safetensors with the same names are read too.

  Returns:
    A `Head`.

  Raises:
    InputError: The file is missing or damaged, or has other tensors.
  """
  from dmpo_jax import interop

  tensors = interop.open_tensors(file)
  for version, (prefixes, _) in HEADS.items():
    names = [f"{prefix}{leaf}" for prefix in prefixes for leaf in ("weight", "bias")]
    if set(names) == set(tensors):
      return Head(version, _layers(tensors, prefixes, file))
  raise InputError(
    f"{file} is no aesthetic head: it has {', '.join(sorted(tensors)[:4])}...; expected weight and "
    "bias of one layer (V1), or of layers 0, 2, 4, 6, 7 (V2) or 0, 3, 6, 9, 11 (ReLU)"
  )


def _layers(tensors: Mapping, prefixes: tuple[str, ...], file: object) -> tuple:
  layers, inputs = [], None
  for prefix in prefixes:
    weight, bias = (tensors[f"{prefix}{leaf}"] for leaf in ("weight", "bias"))
    outputs = 1 if prefix == prefixes[-1] else bias.shape[0]
    fits = len(weight.shape) == 2 and bias.shape == (outputs,) == weight.shape[:1]
    if not fits or inputs not in (None, weight.shape[1]):
      raise InputError(
        f"{file}: {prefix}weight is {list(weight.shape)} and {prefix}bias {list(bias.shape)}, "
        f"expected [{outputs}, {inputs or 'd'}] and [{outputs}]"
      )
    inputs = outputs
    layers.append(tuple(np.asarray(t.read(None), np.float64) for t in (weight, bias)))
  return tuple(layers)


def load(weights: str, *, dtype: str, batch_size: int, devices, clip: str = CLIP) -> Scorer:
  """Aesthetic score of an image, from about 1 to 10; prompts have no effect.

      s = head(image / |image|)

  with the image features of OpenAI's ViT-L/14.

  Args:
    weights: File of a head, see `read_head`.
    dtype: "float32" or "bfloat16"; the head is computed in float64.
    batch_size: Images at once on all devices.
    devices: Devices that share a batch; None: those of this process.
    clip: Folder or repository of the CLIPModel that the head was trained on.

  Returns:
    A `Scorer` with features, named by the head's version.

  Raises:
    InputError: A file cannot be had, or the head does not fit the features.

  Source: christophschuhmann/improved-aesthetic-predictor (V2, ReLU), LAION-AI/aesthetic-predictor
    (V1).
  """
  from dmpo_jax.evaluation.scorers.clip_features import load_features
  from dmpo_jax.evaluation.scorers.preprocess import Preprocessing

  head = read_head(weights)
  compute = {"dtype": dtype, "batch_size": batch_size, "devices": devices}
  features = load_features(clip, preprocessing=Preprocessing(0, crop="torchvision"), **compute)
  inputs = head.layers[0][0].shape[1]
  if inputs != features.dimension:
    raise InputError(
      f"{weights} is a head of features of {inputs} numbers, and {clip} ({features.architecture}) "
      f"has {features.dimension}; give its model: clip=FOLDER"
    )
  return Scorer(
    f"aesthetic ({head.version})",
    lambda images, prompts: head.scores(features.images(images)),
    features.images,
  )


KIND = Kind(
  load,
  "LAION's aesthetic score of the image alone, about 1 to 10; V1, V2 or ReLU by its weights.",
  "the .pth file of a head; published in LAION-AI/aesthetic-predictor (V1) and "
  "christophschuhmann/improved-aesthetic-predictor (V2, ReLU) on GitHub. CLIP's weights are those "
  f"of {CLIP}, or clip=FOLDER",
)
