"""diffusers' side of the UNet benchmark: output, or gradient of the same loss."""

import os
import pathlib
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel


class TorchSide:
  """The network with its inputs, in torch's own layout.

  Args:
    folder: Output folder of `unet_setting.write`.
    gradient: Whether a step is forward and backward of mean((output - images)^2), or forward alone.
  """

  def __init__(self, folder: pathlib.Path, gradient: bool):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    self.network = UNet2DConditionModel.from_pretrained(folder).eval()
    self.gradient = gradient
    with np.load(folder / "inputs.npz") as arrays:
      self.images = torch.from_numpy(arrays["images"]).movedim(-1, 1).contiguous()
      self.timesteps = torch.from_numpy(arrays["timesteps"]).long()
      self.context = torch.from_numpy(arrays["context"])

  def prepare(self) -> float:
    """Takes a first step, which allocates; returns the seconds."""
    started = time.perf_counter()
    self.step()
    return time.perf_counter() - started

  def step(self) -> None:
    if not self.gradient:
      with torch.no_grad():
        self.result = {"output": self.predict()}
      return
    self.network.zero_grad(set_to_none=True)
    loss = ((self.predict() - self.images) ** 2).mean()
    loss.backward()
    self.result = {"loss": loss.detach()}

  def predict(self) -> torch.Tensor:
    return self.network(self.images, self.timesteps, self.context).sample

  def check(self) -> dict[str, float]:
    """Norm of each result: output, or loss and gradients by name."""
    self.step()
    arrays = dict(self.result)
    if self.gradient:
      arrays |= {name: parameter.grad for name, parameter in self.network.named_parameters()}
    return {name: float(x.double().norm()) for name, x in arrays.items()}

  def version(self) -> str:
    """Library and version."""
    return f"torch {torch.__version__}"

  def planned_bytes(self) -> None:
    """None: torch has no memory plan."""
