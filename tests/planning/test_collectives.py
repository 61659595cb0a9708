"""Collectives within a slice and between slices, in programs that libtpu compiles."""

import jax
import jax.numpy as jnp
import pytest

from dmpo_jax.commands.plan import ENVIRONMENT
from dmpo_jax.parallel import sharding
from dmpo_jax.planning import collectives, hlo, tpu_slices

SEND = (
  "  %send = (f32[6,8,128]{{2,1,0}}, u32[], token[]) send(%x, %after), channel_id=2, "
  "is_host_transfer=true, "
  'frontend_attributes={{_xla_megascale_target="{{1,2}}x{{0:3}}",'
  '_xla_megascale_transfer_type="{}"}}'
)
MODULE = """\
HloModule step

ENTRY %main (x: f32[6,8,128]) -> f32[6,8,128] {{
  %x = f32[6,8,128]{{2,1,0}} parameter(0)
  %after = token[] after-all()
{}
}}
"""


@pytest.mark.parametrize(
  ("transfer", "kind", "factor"),
  [
    ("ALL_REDUCE", "all-reduce", 3 / 2),  # of four slices
    ("ALL_GATHER", "all-gather", 3),
    ("REDUCE_SCATTER", "reduce-scatter", 3 / 4),
    ("ALL_TO_ALL", "all-to-all", 3 / 4),
    ("ONE_TO_ONE", "collective-permute", 1),
  ],
)
def test_a_transfer_to_other_slices_is_the_collective_that_its_attributes_name(
  transfer, kind, factor
):
  program = hlo.parse(MODULE.format(SEND.format(transfer)))
  assert collectives.between(program, 4) == {kind: (1, factor * 6 * 8 * 128 * 4)}
  assert collectives.within(program, 4) == {}
  assert hlo.operations(program) == []


@pytest.mark.parametrize("fsdp", [2, 4])
def test_gradients_are_summed_in_a_slice_before_each_chip_sends_its_share(fsdp, monkeypatch):
  pytest.importorskip("libtpu", reason="pip install 'dmpo-jax[tpu]' to compile for TPUs")
  for key, value in ENVIRONMENT.items():
    monkeypatch.setenv(key, value)
  mesh = sharding.make_mesh(fsdp=fsdp, devices=tpu_slices.devices(tpu_slices.parse("2xv5e-4")))
  placement = sharding.placement(mesh)

  def network(params, x):
    return jnp.tanh(x @ placement.all_gather(params.astype(jnp.bfloat16), (1024, 2048)))

  def loss(params, x):
    return jnp.square(placement.shard_map(network)(params, x).astype(jnp.float32)).mean()

  params = jax.ShapeDtypeStruct((1024, 2048), jnp.float32)
  x = jax.ShapeDtypeStruct((64, 1024), jnp.bfloat16, sharding=sharding.batch(mesh))
  gradient = jax.jit(jax.grad(loss), out_shardings=sharding.shardings(mesh, params))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    compiled = gradient.lower(sharding.abstract(mesh, params), x).compile()
  program = hlo.parse(compiled.as_text())
  # Each of the four chips of a slice sends a fourth of the float32 gradient to the other one.
  assert collectives.between(program, 2) == {"all-reduce": (1, params.size * 4 / 4)}
  within = collectives.within(program, 4)
  assert within["all-gather"][1] > 0
  assert {"reduce-scatter", "all-reduce"} & within.keys()
