"""The partitioner rematerialises no array of a sharded gradient involuntarily."""

import os
import subprocess
import sys

SCRIPT = """
import functools, sys
import jax, jax.numpy as jnp
from dmpo_jax import models
from dmpo_jax.parallel import sharding

mesh = sharding.make_mesh(data=2, fsdp=4)
placement = sharding.placement(mesh) if sys.argv[1] == "placed" else None
unet = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": (128, 256),
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "cross_attention_dim": 128,
}
model = models.build(unet, compute=models.Compute("plain", "full", placement))

def loss(params, sample, context):
  return (model.apply(params, sample, jnp.arange(16), context) ** 2).mean()

params = sharding.abstract(mesh, models.abstract(unet))
inputs = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding.batch(mesh))
          for s in ((16, 8, 8, 4), (16, 7, 128))]
out = jax.tree.map(lambda x: x.sharding, params)
with jax.set_mesh(mesh):
  jax.jit(jax.grad(loss), out_shardings=out).lower(params, *inputs).compile()
"""
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from there is not partitioned again
  "TF_CPP_MIN_LOG_LEVEL": "0",
  "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
}


def compiler_output(kind: str) -> str:
  """Standard error of compiling the gradient of a UNet."""
  command = [sys.executable, "-c", SCRIPT, kind]
  done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stderr


def test_nothing_is_rematerialised_involuntarily_where_networks_are_placed():
  assert "Involuntary full rematerialization" not in compiler_output("placed")


def test_left_to_the_compiler_the_same_network_is_not():
  assert "Involuntary full rematerialization" in compiler_output("left")
