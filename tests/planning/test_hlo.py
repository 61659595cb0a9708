"""FLOPs, traffic and collectives of programs: against XLA's count, and of a handwritten program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmpo_jax.planning import collectives, hlo


def compiled(function, *shapes):
  return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def flops(program):
  return sum(each.count * each.flops for each in hlo.operations(hlo.parse(program.as_text())))


def test_a_matrix_product_in_a_loop_counts_once_per_iteration():
  def repeat(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

  assert flops(compiled(repeat, (4, 8), (8, 8))) == 7 * 2 * 4 * 8 * 8


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("argument", [None, 0, 1])
def test_convolutions_and_their_gradients_have_the_flops_that_xla_counts(stride, argument):
  def convolve(x, w):
    return jax.lax.conv_general_dilated(
      x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  def run(x, w):
    if argument is None:
      return convolve(x, w)
    return jax.grad(lambda *inputs: convolve(*inputs).sum(), argument)(x, w)

  program = compiled(run, (2, 6, 7, 3), (3, 3, 3, 5))
  expected = program.cost_analysis()["flops"]
  assert flops(program) == pytest.approx(expected, rel=0.05)  # XLA also counts some additions


KERNEL = (
  'custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", '
  "frontend_attributes={kernel_metadata={"
)
MODULE = """\
HloModule step

%condition (p: (s32[])) -> pred[] {
  %p = (s32[]) parameter(0)
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  %x = bf16[16,77,320]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=0
  %g = bf16[64,77,320]{2,1,0} all-gather(%x), replica_groups=[4,4]<=[16], dimensions={0}
  ROOT %t = (s32[]) tuple(%x)
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0)
  %near = f32[8,16]{1,0:T(8,128)S(1)} copy(%a)
  %q = bf16[2,8,4096,40]{3,2,1,0:T(8,128)(2,1)} constant({...})
  %k = bf16[2,8,128,40]{3,2,1,0:T(8,128)(2,1)} constant({...})
  %qt = bf16[2,8,40,4096]{3,2,1,0:T(8,128)(2,1)} constant({...})
  %kt = bf16[2,8,40,128]{3,2,1,0:T(8,128)(2,1)} constant({...})
  %splash_mha_fwd_residuals.1 = (bf16[2,8,4096,40], f32[2,8,4096,128]) KERNEL
"xprof_metadata":"{}"
}}
  %splash_mha_fwd_no_residuals.3 = bf16[2,8,4096,40] TURNED
"xprof_metadata":"{}"
}}
  %splash_mha_dkv.2 = (bf16[2,1,8,4096,40], bf16[2,8,128,40], bf16[2,8,128,40]) KERNEL
"xprof_metadata":"{}"
}}
  %start = (f32[8,16], f32[8,16]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %sum = f32[8,16]{1,0:T(8,128)} all-reduce(%a), replica_groups={{0,1},{2,3}}, to_apply=%add
  %loop = (s32[]) while(%t), condition=%condition, body=%body
  ROOT %scattered = f32[8,16] reduce-scatter(%a), replica_groups=mesh['data'=2,'fsdp'=8] {'fsdp'}
}
"""


@pytest.fixture(scope="module")
def program():
  text = MODULE.replace("KERNEL", KERNEL).replace("TURNED", KERNEL.replace("%q, %k", "%qt, %kt"))
  return hlo.parse(text)


@pytest.fixture(scope="module")
def operations(program):
  return {each.name: each for each in hlo.operations(program)}


def test_the_bytes_of_an_array_include_the_padding_of_its_tiles(program):
  (x,) = program.computations["body"]["x"].results
  assert x.bytes == 16 * 80 * 384 * 2


def test_arrays_in_on_chip_memory_are_no_traffic(operations):
  assert operations["near"].bytes == 8 * 128 * 4


def test_heads_of_a_kernel_are_padded_to_the_matrix_unit(operations):
  each = 2 * 2 * 8 * 4096 * 128 * 128
  assert operations["splash_mha_fwd_residuals.1"].flops == 2 * each
  # Queries and keys with positions as the minor axis.
  assert operations["splash_mha_fwd_no_residuals.3"].flops == 2 * each


def test_a_kernel_for_all_gradients_has_five_products(operations):
  each = 2 * 2 * 8 * 4096 * 128 * 128
  assert operations["splash_mha_dkv.2"].flops == 5 * each


def test_traffic_of_collectives_depends_on_group_size_and_trip_count(program):
  traffic = collectives.within(program, 16)
  block, shard = 8 * 16 * 4, 16 * 77 * 320 * 2
  assert traffic == {
    "collective-permute": (1, block),
    "all-reduce": (1, block),  # 2 (g - 1) / g with g = 2
    "all-gather": (5, 5 * 3 * shard),
    "reduce-scatter": (1, block * 7 / 8),
  }


def test_a_sum_over_devices_is_one_all_reduce():
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  sharded = NamedSharding(mesh, PartitionSpec("data"))
  x = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=sharded)
  program = jax.jit(lambda x: x.sum(0)).lower(x).compile()
  assert collectives.within(hlo.parse(program.as_text()), 4) == {"all-reduce": (1, 2 * 3 / 4 * 12)}
