"""Sharding: specs by shape, meshes, batches that do not divide, and gradients on a mesh."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dmpo_jax import models
from dmpo_jax.parallel import sharding


@pytest.mark.parametrize(
  ("shape", "fsdp", "expected"),
  [
    ((3, 3, 320, 640), 4, (None, None, None, "fsdp")),
    ((640, 320), 4, ("fsdp",)),
    ((512, 512), 4, (None, "fsdp")),  # the last of equal axes
    ((1280,), 4, ()),  # too small to be worth a message
    ((49_408, 768), 32, ("fsdp",)),
    ((77, 333), 4, ()),  # nothing divides
    ((3, 129, 512), 256, (None, None, "fsdp")),
    ((640, 320), 1, ()),
  ],
)
def test_an_array_is_sharded_along_its_largest_divisible_axis(shape, fsdp, expected):
  assert sharding.spec(shape, fsdp) == PartitionSpec(*expected)


def test_parameters_and_adam_moments_of_one_shape_have_one_sharding():
  mesh = sharding.make_mesh(4, fsdp=2)
  tree = {"kernel": jax.ShapeDtypeStruct((256, 128), np.float32), "count": np.int32(0)}
  actual = sharding.abstract(mesh, {"params": tree, "mu": tree})
  assert actual["params"]["kernel"].sharding == actual["mu"]["kernel"].sharding
  assert actual["mu"]["kernel"].sharding.spec == PartitionSpec("fsdp")
  assert actual["mu"]["count"].sharding.is_fully_replicated


def test_examples_are_sharded_over_all_devices_in_order():
  mesh = sharding.make_mesh(4, fsdp=2)
  examples = jax.device_put(np.arange(8), sharding.batch(mesh))
  shards = {s.device.id: s.data.tolist() for s in examples.addressable_shards}
  assert [shards[d.id] for d in mesh.devices.flat] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"num_devices": 64}, "num_devices is 64, and there are 4 devices"),
    ({"fsdp": 3}, "fsdp 3 does not multiply out to 4 devices"),
    ({"data": 4, "fsdp": 2}, "data 4 x fsdp 2 does not multiply out to 4 devices"),
    ({"num_devices": 2, "data": 1}, "data 1 x fsdp 1 does not multiply out to 2"),
    ({"slices": 3}, "slices 3 does not divide 4 devices"),
    ({"slices": 2, "fsdp": 4}, "fsdp 4 does not divide the 2 devices of a slice"),
  ],
)
def test_a_mesh_that_does_not_multiply_out_is_refused(arguments, words):
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(**arguments)


def test_simulated_slices_are_groups_of_consecutive_devices_along_data():
  devices = jax.devices()
  mesh = sharding.make_mesh(fsdp=2, slices=2, devices=devices[::-1])
  assert mesh.devices.tolist() == [[devices[3], devices[2]], [devices[1], devices[0]]]


@pytest.mark.parametrize(
  ("slice_of_each", "arguments", "words"),
  [
    ([0, 0, 0, 0], {"slices": 2}, "slices is 2, and the 4 TPU devices lie in 1 slice; set it to 1"),
    ([0, 0, 1, 1], {"slices": 1}, "slices is 1, and the 4 TPU devices lie in 2 slices; set it to"),
    (
      [0, 0, 1, 1],
      {"fsdp": 4},
      r"fsdp 4 does not divide the 2 devices of a slice \(4 devices in 2",
    ),
    ([0, 1, 0, 0], {}, r"the slices have \[3, 1\] devices"),
    ([0, 0, 1, 1], {"num_devices": 3}, r"the slices have \[2, 1\] devices.*change config.num_devi"),
    ([None] * 4, {"slices": 4}, "lie in 1 slice; set it to 1"),
  ],
)
def test_slices_that_the_tpus_do_not_have_are_refused(slice_of_each, arguments, words):
  devices = [types.SimpleNamespace(platform="tpu", slice_index=i) for i in slice_of_each]
  for device in devices:
    if device.slice_index is None:  # as on a TPU that is one slice
      del device.slice_index
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(devices=devices, **arguments)


def test_a_batch_that_does_not_divide_is_refused_with_a_multiple_that_does():
  mesh = sharding.make_mesh(4)
  sharding.check_batch(mesh, 24, 3)
  with pytest.raises(ValueError, match=r"batch_size 20 does not divide over 4 devices x 3.*of 12"):
    sharding.check_batch(mesh, 20, 3)


UNET = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": (64,),
  "down_block_types": ("CrossAttnDownBlock2D",),
  "up_block_types": ("CrossAttnUpBlock2D",),
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "cross_attention_dim": 64,
}


def loss_of(placement, dtype=jnp.float32):
  model = models.build(UNET, compute=models.Compute(remat="full", placement=placement))

  def loss(params, sample, context):
    steps = jnp.arange(len(sample)) * 100
    return jnp.square(model.apply(params, sample, steps, context, dtype=dtype)).mean()

  return loss


def inputs(examples):
  r = np.random.default_rng(0)
  shapes = ((examples, 4, 4, 4), (examples, 5, 64))
  return [r.standard_normal(shape, np.float32) for shape in shapes]


def sums(jaxpr):
  """(primitive, dtype, elements, axes) of every cross-device sum at any depth."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("psum", "psum_invariant", "reduce_scatter"):
      axes = equation.params.get("axes") or equation.params["axis_name"]
      for each in equation.invars:
        yield equation.primitive.name, str(each.aval.dtype), each.aval.size, set(axes)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      yield from sums(inner) if hasattr(inner, "eqns") else ()


def test_gradients_of_sharded_weights_are_reduce_scattered():
  mesh = sharding.make_mesh(4, fsdp=2)
  params = models.abstract(UNET)
  gradient = jax.grad(loss_of(sharding.placement(mesh), jnp.bfloat16))
  actual = list(sums(jax.make_jaxpr(gradient)(params, *inputs(4)).jaxpr))
  sharded = [x.size for x in jax.tree.leaves(params) if sharding.spec(x.shape, 2)]
  scattered = [
    (size, dtype, axes) for name, dtype, size, axes in actual if name == "reduce_scatter"
  ]
  assert sorted(size for size, _, _ in scattered) == sorted(sharded)
  assert {(dtype, *axes) for _, dtype, axes in scattered} == {("bfloat16", "fsdp")}
  shards = [x.size // 2 for x in jax.tree.leaves(params) if sharding.spec(x.shape, 2)]
  over_data = [
    size for name, _, size, axes in actual if name != "reduce_scatter" and axes == {"data"}
  ]
  assert sorted(over_data) == sorted(shards)


@pytest.mark.parametrize("examples", [3, 6, 8])
def test_any_number_of_examples_has_the_gradient_of_one_device(examples):
  mesh = sharding.make_mesh(4, fsdp=2)
  params = models.build(UNET).init(jax.random.key(0))
  sharded = jax.device_put(params, sharding.shardings(mesh, params))
  actual = jax.jit(jax.grad(loss_of(sharding.placement(mesh))))(sharded, *inputs(examples))
  expected = jax.jit(jax.grad(loss_of(None)))(params, *inputs(examples))
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
