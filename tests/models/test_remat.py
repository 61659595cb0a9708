"""Rematerialisation and sharding change memory and layout, but no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmpo_jax import models
from dmpo_jax.errors import InputError
from tests.models import torch_map

UNET = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": (8,),
  "down_block_types": ("CrossAttnDownBlock2D",),
  "up_block_types": ("CrossAttnUpBlock2D",),
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "cross_attention_dim": 12,
  "attention_head_dim": 2,
}
VAE = {
  "_class_name": "AutoencoderKL",
  "block_out_channels": (8,),
  "down_block_types": ("DownEncoderBlock2D",),
  "up_block_types": ("UpDecoderBlock2D",),
  "layers_per_block": 1,
  "norm_num_groups": 4,
}
TEXT = {
  "architectures": ["CLIPTextModel"],
  "hidden_size": 8,
  "intermediate_size": 16,
  "num_attention_heads": 2,
  "num_hidden_layers": 2,
  "vocab_size": 20,
}
PARAMS = models.build(UNET).init(jax.random.key(0))
R = np.random.default_rng(0)
SAMPLE = R.standard_normal((4, 6, 4, 4), np.float32)
CONTEXT = R.standard_normal((4, 5, 12), np.float32)


def gradient_of(**options):
  """(params, sample, context) -> (weighted sum of the prediction, gradients for params, sample)."""
  model = models.build(UNET, compute=models.Compute(**options))
  w = np.random.default_rng(1).standard_normal(SAMPLE.shape, np.float32)

  def loss(params, sample, context):
    return (w * model.apply(params, sample, jnp.arange(4) * 300, context)).sum()

  return jax.value_and_grad(loss, (0, 1))


def spec(shape):
  """The sharding of a parameter: its first axis over "fsdp" if 2 divides it."""
  return PartitionSpec("fsdp") if shape[0] % 2 == 0 else PartitionSpec()


def placement(mesh):
  """Parameters sharded over one axis of the mesh, examples over both."""
  split = PartitionSpec(("data", "fsdp"))

  def shard_map(function):
    def on_mesh(params, inputs):
      specs = (jax.tree.map(lambda x: spec(x.shape), params), split)
      return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(
        params, inputs
      )

    return on_mesh

  def all_gather(x, full_shape):
    replicated = spec(full_shape) == PartitionSpec()
    assert x.shape == (full_shape[0] // (1 if replicated else 2), *full_shape[1:])
    return x if replicated else jax.lax.all_gather(x, "fsdp", tiled=True)

  return models.Placement(shard_map, all_gather)


def recording(gathers):
  """Compute on one device whose placement appends (shard, full shape) of each all-gather."""

  def all_gather(w, full_shape):
    gathers.append((w, full_shape))
    return w

  return models.Compute(placement=models.Placement(lambda function: function, all_gather))


@pytest.fixture(scope="module")
def expected():
  """Loss and gradients without rematerialisation, on one device."""
  return torch_map.jit(gradient_of())(PARAMS, SAMPLE, CONTEXT)


def compare(actual, expected):
  assert torch_map.relative(actual[0], expected[0]) < 1e-5
  name, off = torch_map.worst(actual[1][0], expected[1][0])
  assert off < 1e-4, name
  assert torch_map.relative(actual[1][1], expected[1][1]) < 1e-4


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_a_policy_changes_no_gradient(policy, expected):
  compare(torch_map.jit(gradient_of(remat=policy))(PARAMS, SAMPLE, CONTEXT), expected)


def test_a_placement_on_four_devices_changes_no_gradient(expected):
  mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  params = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x.shape))), PARAMS)
  options = {"remat": "convolutions", "placement": placement(mesh)}
  actual = torch_map.jit(gradient_of(**options))(params, SAMPLE, CONTEXT)
  compare(actual, expected)


def count(name, jaxpr):
  """Number of occurrences of a primitive at any depth."""
  total = 0
  for equation in jaxpr.eqns:
    total += equation.primitive.name == name
    for value in equation.params.values():
      for inner in value if isinstance(value, list | tuple) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        total += count(name, inner) if hasattr(inner, "eqns") else 0
  return total


@pytest.fixture(scope="module")
def operations():
  """Policy -> number of (matrix products, convolutions) in the traced gradient."""
  actual = {}
  for policy in models.remat.POLICIES:
    jaxpr = jax.make_jaxpr(gradient_of(remat=policy))(PARAMS, SAMPLE, CONTEXT).jaxpr
    actual[policy] = [count(n, jaxpr) for n in ("dot_general", "conv_general_dilated")]
  return actual


@pytest.mark.parametrize("policy", ["weights", "dots"])
def test_policies_that_save_results_recompute_no_product(policy, operations):
  assert operations[policy] == operations["none"]


def test_convolutions_saves_convolutions_and_recomputes_products(operations):
  assert operations["convolutions"][0] > operations["dots"][0]
  assert operations["convolutions"][1] == operations["dots"][1]


def test_only_full_recomputes_attention(operations):
  assert operations["attention"][0] < operations["full"][0]


def test_full_recomputes_convolutions_too(operations):
  assert operations["full"][1] > operations["convolutions"][1]


def test_every_network_gathers_each_weight_with_its_full_shape():
  for config in (UNET, VAE, TEXT):
    gathers = []
    compute = recording(gathers)
    params = models.abstract(config)
    if config is VAE:
      vae = models.build_autoencoder(config, compute=compute)
      image = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
      moments = jax.eval_shape(vae.encode, params, image)
      jax.eval_shape(vae.decode, params, moments.mean)
    elif config is TEXT:
      ids = jax.ShapeDtypeStruct((1, 7), jnp.int32)
      jax.eval_shape(models.build(config, compute=compute).apply, params, ids)
    else:
      inputs = (SAMPLE, jnp.arange(4), CONTEXT)
      jax.eval_shape(models.build(config, compute=compute).apply, params, *inputs)
    assert sum(w.size for w, _ in gathers) == models.trees.count(params)
    assert all(w.shape == full_shape for w, full_shape in gathers)


def test_weights_are_gathered_in_the_compute_dtype():
  gathers = []
  apply = models.build(UNET, compute=recording(gathers)).apply
  jax.eval_shape(
    lambda p, x, c: apply(p, x, jnp.arange(4), c, dtype=jnp.bfloat16), PARAMS, SAMPLE, CONTEXT
  )
  assert {w.dtype for w, _ in gathers if w.ndim > 1} == {jnp.dtype(jnp.bfloat16)}


def test_an_unknown_policy_is_refused_with_the_nearest():
  with pytest.raises(InputError, match=r"policy 'dot'.*did you mean 'dots'"):
    models.build(UNET, compute=models.Compute(remat="dot"))
