"""PyTorch's sides of the GPU benchmark: diffusers' UNet, with random weights made on the device."""

import pathlib
from typing import Any

import gpu_setting
import torch
from diffusers import UNet2DConditionModel
from torch.nn.functional import logsigmoid

KINDS = ("torch", "torch_compiled", "salesforce")


class Side:
  """A Diffusion-DPO step.

  "torch" has what makes torch fast: bfloat16 autocast, images and weights in channels_last, TF32,
  fused AdamW, the EMA in one call; "torch_compiled" compiles both networks too. "salesforce" takes
  the operations of Diffusion-DPO's published train.py in their order: float16 autocast with scaled
  losses, a reference in float16, AdamW as torch chooses it, no channels_last, winners before
  losers, and its four values a step that the host reads; for SDXL with recomputation of all blocks,
  which that script switches on there. It has no EMA.

  Args:
    model: A key of `gpu_setting.MODELS`.
    kind: One of `KINDS`.
    options: `pairs` as text.
  """

  def __init__(self, model: str, kind: str, options: dict[str, str]):
    setting = gpu_setting.MODELS[model]
    if unknown := set(options) - {"pairs"}:
      raise ValueError(f"torch's sides take pairs, not {sorted(unknown)}")
    if kind not in KINDS:
      raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    self.on = "cuda" if torch.cuda.is_available() else "cpu"
    self.pairs, self.published = int(options.get("pairs", setting.pairs)), kind == "salesforce"
    self.compiles = kind == "torch_compiled"
    torch.manual_seed(0)
    torch.set_default_device(self.on)
    if not self.published:
      torch.set_float32_matmul_precision("high")
    config = {k: v for k, v in gpu_setting.load(model).configs["unet"].items() if k[0] != "_"}
    self.layout = torch.contiguous_format if self.published else torch.channels_last
    self.policy = UNet2DConditionModel.from_config(config).to(memory_format=self.layout)
    self.reference = UNet2DConditionModel.from_config(config).to(memory_format=self.layout)
    self.reference.load_state_dict(self.policy.state_dict())
    self.reference.requires_grad_(False)
    # A float16 gradient of a CPU's convolution takes minutes; the order of operations is the same.
    low = torch.float16 if self.published and self.on == "cuda" else torch.bfloat16
    if self.published:
      self.reference.to(dtype=low)
      if "sdxl" in model:
        self.policy.enable_gradient_checkpointing()
    self.cast = torch.autocast(self.on, dtype=low)
    if setting.lora:
      self._adapt(setting.lora)
    self.policy.train()
    self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
    self.optimizer = self._optimizer(setting.optimizer)
    self.scaler = torch.amp.GradScaler(self.on, enabled=low == torch.float16)
    has_ema = not (self.published or setting.lora)
    self.ema = [p.detach().clone() for p in self.parameters] if has_ema else None
    size, images = gpu_setting.latent_shape(model), 2 * self.pairs
    dtype = low if self.published else torch.float32
    self.latents = torch.randn(images, size[2], *size[:2]).contiguous(memory_format=self.layout)
    context = torch.randn(images, gpu_setting.TOKENS, config["cross_attention_dim"], dtype=dtype)
    self.conditioning: dict[str, Any] = {"encoder_hidden_states": context}
    if config.get("addition_embed_type") == "text_time":
      width = (
        config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
      )
      self.conditioning["added_cond_kwargs"] = {
        "text_embeds": torch.randn(images, width, dtype=dtype),
        "time_ids": torch.full((images, 6), 1024.0, dtype=dtype),
      }
    self.alphas = torch.linspace(0.999, 0.005, 1000)

  def _adapt(self, rank: int) -> None:
    from peft import LoraConfig

    self.policy.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    self.policy.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))

  def _optimizer(self, name: str) -> torch.optim.Optimizer:
    if name == "adafactor":
      return torch.optim.Adafactor(self.parameters, lr=1e-6)
    fused = {} if self.published else {"fused": True}
    return torch.optim.AdamW(self.parameters, lr=1e-6, weight_decay=1e-2, **fused)

  def compile(self) -> None:
    """Takes the first step, in which torch compiles and chooses kernels."""
    if self.compiles:
      self.policy, self.reference = torch.compile(self.policy), torch.compile(self.reference)
    self.step()
    self.first = self.wait()

  def first_loss(self) -> float:
    """The loss of the first step."""
    return self.first

  def step(self) -> None:
    """Takes a step."""
    pairs, beta = self.pairs, 2000.0
    noise = torch.randn(pairs, *self.latents.shape[1:])
    t = torch.randint(0, 1000, (pairs,))
    if self.published:
      noise, t = noise.repeat(2, 1, 1, 1), t.repeat(2)
    else:
      noise = noise.repeat_interleave(2, 0).contiguous(memory_format=self.layout)
      t = t.repeat_interleave(2, 0)
    alpha = self.alphas[t].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * self.latents + (1 - alpha).sqrt() * noise

    def errors(network: torch.nn.Module) -> torch.Tensor:
      with self.cast:
        prediction = network(noisy, t, **self.conditioning).sample
      return (prediction.float() - noise).square().mean((1, 2, 3))

    def difference(errors: torch.Tensor) -> torch.Tensor:
      w, l = errors.chunk(2) if self.published else errors.view(-1, 2).unbind(1)
      return w - l

    if self.published:  # the policy first, as in the script
      policy = errors(self.policy)
    with torch.no_grad():
      reference = errors(self.reference)
    if not self.published:
      policy = errors(self.policy)
    logit = -beta / 2 * (difference(policy) - difference(reference))
    self.loss = -logsigmoid(logit).mean()
    if self.published:
      for value in (self.loss, policy.mean(), reference.mean(), (logit > 0).float().mean()):
        value.item()
    self.scaler.scale(self.loss).backward()
    self.scaler.unscale_(self.optimizer)
    torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
    self.scaler.step(self.optimizer)
    self.scaler.update()
    self.optimizer.zero_grad(set_to_none=True)
    if self.ema is not None:
      with torch.no_grad():
        torch._foreach_lerp_(self.ema, self.parameters, 1e-3)

  def wait(self) -> float:
    """Waits for all steps; returns the loss of the last."""
    if self.on == "cuda":
      torch.cuda.synchronize()
    return self.loss.item()

  def memory(self) -> float | None:
    """Peak memory of the device in GiB, where it says so."""
    return torch.cuda.max_memory_allocated() / 2**30 if self.on == "cuda" else None

  def about(self) -> dict[str, Any]:
    """The device and the version."""
    name = torch.cuda.get_device_name() if self.on == "cuda" else "cpu"
    return {"device": name, "version": f"torch {torch.__version__}"}

  def twice_alike(self) -> bool | None:
    """None: not measured."""
    return None

  def profile(self, folder: pathlib.Path, steps: int) -> list[str]:
    """Profiles steps; returns torch's table of the longest kernels."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (self.on == "cuda")]
    with profile(activities=activities) as trace:
      for _ in range(steps):
        self.step()
      self.wait()
    key = "self_cuda_time_total" if self.on == "cuda" else "self_cpu_time_total"
    text = trace.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=40)
    return text.splitlines()
