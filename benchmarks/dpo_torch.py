"""The same Diffusion-DPO train step in PyTorch, with the networks of diffusers and transformers."""

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

  Torch is given what makes it fast here: AdamW in its fused form, the moving average in one call
  for all parameters, images that lie in its own layout before the clock starts; on a GPU its fused
  attention (the default), TF32 where float32 is left, and images and draws made on the device.

  Args:
    size: Of the benchmark.
    folder: What `dpo_setting.write` wrote.
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
    self.average = [parameter.detach().clone() for parameter in self.parameters]
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
    with np.load(folder / "draws.npz") as arrays:
      self.given = [
        (
          self._put(arrays["timesteps"][i]).long(),
          self._put(arrays["noise"][i]).permute(0, 3, 1, 2).contiguous(),
          self._put(arrays["dropped"][i]),
        )
        for i in range(dpo_setting.CHECKED_STEPS)
      ]
    self.taken = 0

  def _put(self, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(self.on)

  def prepare(self) -> float:
    """Takes two steps that leave no trace: torch compiles and allocates in its first ones."""
    saved = [parameter.detach().clone() for parameter in self.parameters]
    started = time.perf_counter()
    self.step()
    seconds = time.perf_counter() - started
    self.step()
    with torch.no_grad():
      for parameter, average, value in zip(self.parameters, self.average, saved, strict=True):
        parameter.copy_(value)
        average.copy_(value)
    self.optimizer.state.clear()
    self.taken = 0
    return seconds

  def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Timestep, noise and caption dropout of each pair."""
    pairs = self.input_ids.shape[0]
    return (
      torch.randint(0, self.scheduler.config.num_train_timesteps, (pairs,)),
      torch.randn(pairs, *self.images.shape[1:]),
      torch.rand(pairs) < self.settings["caption_dropout"],
    )

  def step(self, draws: tuple | None = None) -> None:
    """Takes a step, with the draws given or its own, and waits for it."""
    mixed = self.dtype != torch.float32
    cast = torch.autocast(self.on, dtype=self.dtype, enabled=mixed)
    timesteps, noise, dropped = draws or self.draw()
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
    decay = min(self.settings["ema_decay"], (1 + self.taken) / (10 + self.taken))
    with torch.no_grad():
      torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
    self.taken += 1
    self.found = {
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
    """The metrics of the first steps, and how far they moved parameters and average.

    The draws are those of the other side.
    """
    rows, initial = [], [parameter.detach().clone() for parameter in self.parameters]
    for draws in self.given:
      self.step(draws)
      rows.append(self.found)
    for name, arrays in {"moved": self.parameters, "average_moved": self.average}.items():
      pairs = zip(arrays, initial, strict=True)
      squares = [(x.detach() - y).double().square().sum().item() for x, y in pairs]
      rows[-1][name] = sum(squares) ** 0.5
    return rows

  def device(self) -> dict[str, float | str | None]:
    """What the device calls itself, and the most of its memory that was taken, in MiB."""
    if self.on == "cpu":
      return {"kind": "cpu", "peak_mib": None}
    return {
      "kind": torch.cuda.get_device_name(),
      "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
    }

  def version(self) -> str:
    """The library and its version."""
    return f"torch {torch.__version__}"

  def planned_bytes(self) -> None:
    """Torch allocates as it goes and plans nothing."""
