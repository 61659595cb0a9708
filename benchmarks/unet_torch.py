"""diffusers' UNet on the same weights: its output, or the gradient of the same loss."""

import os
import pathlib
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel


class TorchSide:
  """The network with its inputs, in torch's own layout.

  Args:
    folder: What `unet_setting.write` wrote.
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
    """Takes a step, in which torch allocates; returns the seconds."""
    started = time.perf_counter()
    self.step()
    return time.perf_counter() - started

  def step(self) -> None:
    if not self.gradient:
      with torch.no_grad():
        self.found = {"output": self.predict()}
      return
    self.network.zero_grad(set_to_none=True)
    loss = ((self.predict() - self.images) ** 2).mean()
    loss.backward()
    self.found = {"loss": loss.detach()}

  def predict(self) -> torch.Tensor:
    return self.network(self.images, self.timesteps, self.context).sample

  def check(self) -> dict[str, float]:
    """The norm of each array that a step computes: output, or loss and slopes by name."""
    self.step()
    found = dict(self.found)
    if self.gradient:
      found |= {name: parameter.grad for name, parameter in self.network.named_parameters()}
    return {name: float(x.double().norm()) for name, x in found.items()}

  def version(self) -> str:
    """The library and its version."""
    return f"torch {torch.__version__}"

  def planned_bytes(self) -> None:
    """Torch allocates as it goes and plans nothing."""
