"""Forward and gradient of the UNet against PyTorch's, alternating in one process.

    python benchmarks/unet.py [small] [middle]

Prints the least wall-clock and processor time of each. Processor time says more where other
programs use the machine, and there PyTorch runs with one thread: its waiting threads would count.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DConditionModel

from dmpo_jax import models

SMALL = {
  "in_channels": 1,
  "out_channels": 1,
  "block_out_channels": (32, 64),
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 32,
  "attention_head_dim": 4,
}
MIDDLE = {**SMALL, "in_channels": 4, "out_channels": 4, "block_out_channels": (64, 128)}
CASES = {"small": (SMALL, (128, 8, 8, 1)), "middle": (MIDDLE, (8, 32, 32, 4))}
REPEATS = 8


def ours(config, implementation, inputs):
  """The compiled functions, after printing what compiling took."""
  config = {"_class_name": "UNet2DConditionModel", **config}
  model = models.build(config, implementation=implementation)
  params = jax.tree.map(jnp.asarray, model.init(jax.random.key(0)))

  def loss(params, x, t, context):
    return jnp.mean((model.apply(params, x, t, context) - x) ** 2)

  functions = {}
  for name, function in (("forward", loss), ("gradient", jax.grad(loss))):
    start = time.process_time()
    compiled = jax.jit(function).lower(params, *inputs).compile()
    seconds = time.process_time() - start
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(f"  {implementation} {name}: compiled in {seconds:.1f} s, {temporary:.0f} MiB temporary")
    functions[name, implementation] = lambda run=compiled: jax.block_until_ready(
      run(params, *inputs)
    )
  return functions


def theirs(config, inputs):
  """The same in PyTorch."""
  x, t, context = (torch.from_numpy(a) for a in inputs)
  x, t = x.movedim(-1, 1).contiguous(), t.long()
  network = UNet2DConditionModel(**config)

  def loss():
    return ((network(x, t, context).sample - x) ** 2).mean()

  def forward():
    with torch.no_grad():
      loss()

  def gradient():
    network.zero_grad(set_to_none=True)
    loss().backward()

  return {("forward", "torch"): forward, ("gradient", "torch"): gradient}


def main(names):
  torch.set_num_threads(1)
  random = np.random.default_rng(0)
  for name in names or CASES:
    config, shape = CASES[name]
    print(name, shape)
    inputs = (
      random.standard_normal(shape, np.float32),
      random.integers(0, 1000, shape[0], dtype=np.int32),
      random.standard_normal((shape[0], 8, 32), np.float32),
    )
    functions = {**ours(config, "plain", inputs), **ours(config, "cpu", inputs)}
    functions |= theirs(config, inputs)
    least = dict.fromkeys(functions, (np.inf, np.inf))
    for _ in range(REPEATS):
      for key, function in functions.items():
        wall, processor = time.perf_counter(), time.process_time()
        function()
        taken = time.perf_counter() - wall, time.process_time() - processor
        least[key] = tuple(np.minimum(least[key], taken))
    for (what, who), (wall, processor) in least.items():
      ratio = processor / least[what, "torch"][1]
      print(
        f"  {what} {who}: wall {1e3 * wall:.0f} ms, processor {1e3 * processor:.0f} ms, "
        f"{ratio:.2f} of torch's"
      )


if __name__ == "__main__":
  main(sys.argv[1:])
