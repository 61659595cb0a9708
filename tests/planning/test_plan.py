"""Plans of a tiny network's train step, compiled for a TPU slice, and invalid arguments."""

import os

import jax
import pytest

from dmpo_jax import interop, models, pipelines
from dmpo_jax.commands import plan as command
from dmpo_jax.commands import plan_text
from dmpo_jax.errors import InputError
from dmpo_jax.interop import published
from dmpo_jax.parallel import sharding
from dmpo_jax.planning import plan, tpu_slices
from dmpo_jax.planning.inputs import Inputs, abstract_batch, inputs_from_config
from dmpo_jax.training import config as configs
from tests.training import tiny

UNET = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": (8,),
  "down_block_types": ("DownBlock2D",),
  "up_block_types": ("UpBlock2D",),
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "cross_attention_dim": 768,
  "attention_head_dim": 2,
  "sample_size": 64,
}


def tiny_config(**mesh):
  """A config for pairs: full fine-tuning with reference and EMA."""
  config = tiny.pairs_config("none")
  config.num_devices, config.batch_size = 0, 8
  config.ema_decay, config.dtype = 0.999, "bfloat16"
  config.mesh.update(mesh)
  return configs.check(config)


def pipeline():
  """SD1.5's pipeline, with a UNet of one level."""
  sd15 = published.pipeline("sd15")
  return interop.Pipeline({}, {**sd15.configs, "unet": UNET}, {}, sd15.tokenizers)


@pytest.fixture(scope="module")
def libtpu():
  """The environment in which libtpu compiles without a TPU."""
  pytest.importorskip("libtpu", reason="pip install 'dmpo-jax[tpu]' to compile for TPUs")
  with pytest.MonkeyPatch.context() as patch:
    for name, value in command.ENVIRONMENT.items():
      patch.setitem(os.environ, name, value)
    level = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", level)


@pytest.fixture(scope="module")
def two_slices(libtpu):
  """The plan of a train step on two slices of four chips, with a reference that moves."""
  config, inputs = tiny_config(fsdp=4), Inputs("latents_and_embeddings", 128)
  with config.unlocked():
    config.reference.kind, config.reference.decay = "ema", 0.995
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "SMALLEST", 64)
    return plan.plan_train_step(config, pipeline(), tpu_slices.parse("2xv5e-4"), inputs)


def test_the_state_is_sharded_over_chips(two_slices):
  sizes = two_slices["bytes"]
  # AdamW has two moments and counters; small arrays, which are replicated, count in all.
  assert 2 * sizes["parameters"] <= sizes["optimizer"] < 2 * sizes["parameters"] + 100
  assert sizes["ema"] == sizes["reference"] == sizes["parameters"]


def test_networks_with_cached_results_take_no_memory(two_slices):
  assert two_slices["bytes"]["frozen"] == 0


def test_the_total_includes_all_arguments_and_temporaries(two_slices):
  arguments = sum(two_slices["bytes"].values())
  assert two_slices["fits"]
  assert arguments + two_slices["temporaries"] <= two_slices["total"] < two_slices["available"]


def test_the_program_has_the_flops_of_the_model(two_slices):
  assert two_slices["program_flops"] > 0.9 * two_slices["model_flops"]


def test_parameters_are_gathered_and_gradients_summed_over_the_chips_of_a_slice(two_slices):
  collectives = two_slices["collectives"]
  assert {"all-gather"} <= collectives.keys()
  assert {"all-reduce", "reduce-scatter"} & collectives.keys()


def test_only_sums_of_less_than_the_gradient_pass_between_slices(two_slices):
  [(kind, traffic)] = two_slices["between_slices"].items()
  assert kind == "all-reduce"
  gradient = sum(4 * x.size for x in jax.tree.leaves(models.abstract(UNET)))
  assert 0 < traffic["bytes"] < gradient / 2
  assert two_slices["seconds"]["between_slices"] == traffic["bytes"] / 3.125e9


def test_a_plan_is_formatted_as_text(two_slices):
  text = plan_text.describe(two_slices)
  assert "2xv5e-4 (each v5e:2x2, 8 chips), mesh data 2 x fsdp 4" in text
  assert "between 2 slices, GB sent by a chip, at 3.125 GB/s\n  all-reduce " in text
  assert "it fits" in text


def test_a_step_that_does_not_fit_has_a_plan_that_says_so(libtpu):
  config = tiny_config(fsdp=4)
  with config.unlocked():
    config.batch_size = 2**15
  result = plan.plan_train_step(
    config, pipeline(), tpu_slices.parse("v5e:2x2"), Inputs("latents_and_embeddings", 512)
  )
  assert not result["fits"]
  assert result["total"] > result["available"] == 15.75 * 2**30
  assert "does NOT fit" in plan_text.describe(result)


def test_both_forms_of_the_compilers_out_of_memory_error_are_parsed():
  used = "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm capacity"
  total = "total memory required for HLO temporaries (3.02T) exceeds available HBM (15.75G)."
  assert plan.parse_out_of_memory(used) == (17.5 * 2**30, 15.75 * 2**30)
  assert plan.parse_out_of_memory(total) == (3.02 * 2**40, 15.75 * 2**30)
  assert plan.parse_out_of_memory("INTERNAL: Ran out of memory in memory space vmem") is None


@pytest.mark.parametrize(
  ("mesh", "batch", "message"),
  [
    ({"fsdp": 3}, 8, r"fsdp 3 does not multiply out to 4 devices"),
    ({"fsdp": 4}, 6, r"batch_size 6 does not divide over 4 devices"),
    ({"slices": 2}, 8, r"config.mesh.slices is 2, and the 4 TPU devices lie in 1 slice"),
  ],
)
def test_a_mesh_or_batch_that_does_not_divide_is_refused_before_compiling(
  libtpu, mesh, batch, message
):
  config = tiny_config(**mesh)
  with config.unlocked():
    config.batch_size = batch
  with pytest.raises(InputError, match=message):
    plan.plan_train_step(
      config, pipeline(), tpu_slices.parse("v5e:2x2"), Inputs("latents_and_embeddings", 128)
    )


@pytest.mark.parametrize(
  ("data", "kind", "size", "inputs"),
  [
    ({"name": "pairs", "size": 256}, "", 0, Inputs("images", 256)),
    (
      {"name": "cached_latents", "embeddings": True},
      "",
      0,
      Inputs("latents_and_embeddings", 512),
    ),
    ({"name": "cached_latents", "embeddings": False}, "", 1024, Inputs("latents", 1024)),
    ({"name": "digits"}, "images", 0, Inputs("images", 512, 1)),
  ],
)
def test_inputs_are_those_of_the_data_set_unless_given(data, kind, size, inputs):
  config = tiny_config()
  with config.unlocked():
    config.data = data
  assert inputs_from_config(config, pipelines.build(pipeline()), kind, size) == inputs


def test_latents_without_an_autoencoder_are_refused():
  functions = pipelines.build(pipeline())._replace(autoencoder=None)
  with pytest.raises(InputError, match="'latents' need an autoencoder"):
    inputs_from_config(tiny_config(), functions, "latents")


def test_the_former_name_of_a_kind_of_inputs_is_refused_with_the_new_one():
  with pytest.raises(InputError, match="'encoded' are called 'latents_and_embeddings' now"):
    inputs_from_config(tiny_config(), pipelines.build(pipeline()), "encoded")


@pytest.mark.parametrize("largest", [0, 1, 2, 5, 13, 64])
def test_the_search_ends_at_the_largest_batch_that_fits(largest):
  calls = []

  def compiled(pairs):
    calls.append(pairs)
    total = 100 + 10 * pairs + (pairs % 3)  # nearly linear
    return {"total": total, "available": 104.5 + 10 * largest, "fits": pairs <= largest}

  best, tried = command.search(compiled, 1)
  assert best["fits"] == (largest > 0)
  assert best["total"] == 100 + 10 * max(largest, 1) + max(largest, 1) % 3
  assert len(calls) == len(set(calls)) == len(tried) <= 8


@pytest.mark.parametrize(
  ("kind", "name", "shape"),
  [("images", "source", (4, 128, 128, 3)), ("latents", "source_latents", (4, 16, 16, 4))],
)
def test_a_batch_of_edits_has_a_source_for_each_example(kind, name, shape):
  edits = pipelines.widen(published.pipeline("sd15"))
  functions = pipelines.build(edits)
  params = {name: models.abstract(edits.configs[name]) for name in ("vae", "text_encoder", "unet")}
  batch = abstract_batch(functions, params, Inputs(kind, 128), 4, None)
  assert getattr(batch, name).shape == shape
  assert params["unet"]["conv_in"]["kernel"].shape == (3, 3, 8, 320)
