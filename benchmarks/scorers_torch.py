"""transformers' side of the benchmark of scorers: image embeddings of the same CLIP model."""

import os
import pathlib
import time

import numpy as np
import torch
from transformers import CLIPModel


class TorchSide:
  """The model with its images, in torch's own layout.

  Args:
    folder: Output folder of `scorers_setting.write`.
  """

  def __init__(self, folder: pathlib.Path):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    # Loaded weights are mapped from the file until they are read.
    for parameter in self.model.parameters():
      parameter.data = parameter.data.clone()
    self.loading = time.perf_counter() - started
    images = np.load(folder / "images.npy", allow_pickle=False)
    self.images = torch.from_numpy(images).movedim(-1, 1).contiguous()

  def prepare(self) -> float:
    """Takes a first step, which allocates; returns the seconds."""
    started = time.perf_counter()
    self.step()
    return time.perf_counter() - started

  def step(self) -> None:
    with torch.inference_mode():
      self.result = self.model.get_image_features(self.images).pooler_output

  def check(self) -> np.ndarray:
    """The embeddings."""
    self.step()
    return self.result.numpy()

  def loading_seconds(self) -> float:
    """Seconds from files to tensors in memory."""
    return self.loading

  def version(self) -> str:
    """Library and version."""
    return f"torch {torch.__version__}"

  def planned_bytes(self) -> None:
    """None: torch has no memory plan."""
