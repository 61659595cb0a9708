"""PyTorch's side of the train step benchmark, with the networks of diffusers and transformers."""

import os
import pathlib
import time
from typing import Any

import dpo_setting
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.nn.functional import logsigmoid
from transformers import CLIPTextModel
from transformers.utils import logging


class TorchSide:
  """The step with its state and its batch.

  Torch has its fast options: fused AdamW, the EMA in one call for all parameters, images in its own
  layout before the timer starts; on a GPU fused attention (the default), TF32 for float32, and
  images and noise on the device.

  Args:
    size: Size of the benchmark.
    folder: Output folder of `dpo_setting.write`.
    options: `compile`, `channels_last` (both False or True), and `device`, "cpu" or "cuda".
  """

  def __init__(self, size: dpo_setting.Size, folder: pathlib.Path, options: dict[str, Any]):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    self.on, self.dtype = options["device"], getattr(torch, size.dtype)
    torch.set_default_device(self.on)
    logging.disable_progress_bar()
    self.settings = dpo_setting.config(size).to_dict()
    layout = torch.channels_last if options["channels_last"] else torch.contiguous_format
    policy, reference = (
      UNet2DConditionModel.from_pretrained(folder / name / "unet")
      .eval()
      .to(self.on, memory_format=layout)
      for name in ("policy", "reference")
    )
    self.text_encoder = CLIPTextModel.from_pretrained(folder / "reference" / "text_encoder")
    self.text_encoder.eval().requires_grad_(False).to(self.on)
    reference.requires_grad_(False)
    self.scheduler = DDIMScheduler.from_pretrained(folder / "reference" / "scheduler")
    self.parameters = list(policy.parameters())
    self.ema = [parameter.detach().clone() for parameter in self.parameters]
    o = self.settings["optimizer"]
    self.optimizer = torch.optim.AdamW(
      self.parameters,
      lr=o["learning_rate"],
      betas=(o["b1"], o["b2"]),
      eps=o["eps"],
      weight_decay=o["weight_decay"],
      fused=True,
    )
    self.policy, self.reference = (
      torch.compile(network) if options["compile"] else network for network in (policy, reference)
    )
    with np.load(folder / "batch.npz") as arrays:
      images = self._put(arrays["pixels"])  # [pairs, 2, H, W, C]
      images = images.flatten(0, 1).permute(0, 3, 1, 2)  # [2 pairs, C, H, W]
      self.images = images.contiguous(memory_format=layout)
      self.input_ids = self._put(arrays["input_ids"]).long()
      self.null_ids = self._put(arrays["null_input_ids"]).long()
    with np.load(folder / "noise.npz") as arrays:
      self.samples = [
        (
          self._put(arrays["timesteps"][i]).long(),
          self._put(arrays["noise"][i]).permute(0, 3, 1, 2).contiguous(),
          self._put(arrays["dropped"][i]),
        )
        for i in range(dpo_setting.CHECKED_STEPS)
      ]
    self.steps = 0

  def _put(self, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(self.on)

  def prepare(self) -> float:
    """Takes two steps and undoes them; returns the seconds of the first, which compiles."""
    saved = [parameter.detach().clone() for parameter in self.parameters]
    started = time.perf_counter()
    self.step()
    seconds = time.perf_counter() - started
    self.step()
    with torch.no_grad():
      for parameter, averaged, value in zip(self.parameters, self.ema, saved, strict=True):
        parameter.copy_(value)
        averaged.copy_(value)
    self.optimizer.state.clear()
    self.steps = 0
    return seconds

  def sample_noise(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Timestep, noise and caption dropout of each pair."""
    pairs = self.input_ids.shape[0]
    return (
      torch.randint(0, self.scheduler.config.num_train_timesteps, (pairs,)),
      torch.randn(pairs, *self.images.shape[1:]),
      torch.rand(pairs) < self.settings["caption_dropout"],
    )

  def step(self, sample: tuple | None = None) -> None:
    """Takes a step with a noise sample or, if None, a new one, and waits for it."""
    mixed = self.dtype != torch.float32
    cast = torch.autocast(self.on, dtype=self.dtype, enabled=mixed)
    timesteps, noise, dropped = sample or self.sample_noise()
    noise, timesteps = noise.repeat_interleave(2, 0), timesteps.repeat_interleave(2, 0)
    with torch.no_grad(), cast:
      ids = torch.where(dropped[:, None], self.null_ids, self.input_ids)
      context = self.text_encoder(ids).last_hidden_state.repeat_interleave(2, 0)  # [2 pairs, L, D]
      noisy = self.scheduler.add_noise(self.images, noise, timesteps)  # [2 pairs, C, H, W]

    def errors(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
      with cast:
        prediction = network(noisy, timesteps, context).sample
      return (prediction.float() - noise).square().mean((1, 2, 3)).view(-1, 2).unbind(1)

    with torch.no_grad():
      reference_w, reference_l = errors(self.reference)
    policy_w, policy_l = errors(self.policy)
    beta = self.settings["loss"]["beta"]
    logit = -beta / 2 * ((policy_w - reference_w) - (policy_l - reference_l))
    loss = -logsigmoid(logit).mean()
    self.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings["optimizer"]["clip_norm"])
    self.optimizer.step()
    decay = min(self.settings["ema_decay"], (1 + self.steps) / (10 + self.steps))
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, self.parameters, 1 - decay)
    self.steps += 1
    self.metrics = {
      "loss": loss.item(),
      "policy_w": policy_w.mean().item(),
      "policy_l": policy_l.mean().item(),
      "reference_w": reference_w.mean().item(),
      "reference_l": reference_l.mean().item(),
      "gradient_norm": norm.item(),
    }
    if self.on != "cpu":
      torch.cuda.synchronize()

  def check(self) -> list[dict[str, float]]:
    """Metrics of the first steps with our noise, and norms of the change of parameters and EMA."""
    rows, initial = [], [parameter.detach().clone() for parameter in self.parameters]
    for sample in self.samples:
      self.step(sample)
      rows.append(self.metrics)
    for name, arrays in {"change": self.parameters, "ema_change": self.ema}.items():
      pairs = zip(arrays, initial, strict=True)
      squares = [(x.detach() - y).double().square().sum().item() for x, y in pairs]
      rows[-1][name] = sum(squares) ** 0.5
    return rows

  def device(self) -> dict[str, float | str | None]:
    """Kind of the device, and its peak memory in MiB."""
    if self.on == "cpu":
      return {"kind": "cpu", "peak_mib": None}
    return {
      "kind": torch.cuda.get_device_name(),
      "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
    }

  def version(self) -> str:
    """Library and version."""
    return f"torch {torch.__version__}"

  def planned_bytes(self) -> None:
    """None: torch has no memory plan."""
