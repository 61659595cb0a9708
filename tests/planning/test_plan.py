"""Planning: a tiny network's step compiled for a TPU slice, and what is refused before that."""

import os

import jax
import pytest

from dmpo_jax import interop
from dmpo_jax.commands import plan as command
from dmpo_jax.commands import plan_text
from dmpo_jax.errors import InputError
from dmpo_jax.interop import published
from dmpo_jax.planning import plan, tpu_slices
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
  """A config of pairs, full fine-tuning with reference and average."""
  config = tiny.pairs_config("none")
  config.num_devices, config.batch_size = 0, 8
  config.ema_decay, config.dtype = 0.999, "bfloat16"
  config.mesh.update(mesh)
  return configs.check(config)


def pipeline():
  """SD1.5's, with a UNet of one level."""
  found = published.pipeline("sd15")
  return interop.Pipeline({}, {**found.configs, "unet": UNET}, {}, found.tokenizer)


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
def found(libtpu):
  """The plan of a step on four chips."""
  config, inputs = tiny_config(fsdp=4), plan.Inputs("encoded", 128)
  return plan.make(config, pipeline(), tpu_slices.parse("v5e:2x2"), inputs)


def test_the_state_is_split_over_chips(found):
  parts = found["bytes"]
  # AdamW's two moments and its counters; arrays too small to be split count alike.
  assert 2 * parts["parameters"] <= parts["optimizer"] < 2 * parts["parameters"] + 100
  assert parts["average"] == parts["reference"] == parts["parameters"]


def test_networks_whose_results_are_stored_are_not_held(found):
  assert found["bytes"]["frozen"] == 0


def test_all_that_is_held_is_in_the_total(found):
  held = sum(found["bytes"].values())
  assert found["fits"]
  assert held + found["temporaries"] <= found["total"] < found["available"]


def test_the_program_holds_the_arithmetic_of_the_model(found):
  assert found["program_flops"] > 0.9 * found["model_flops"]


def test_gradients_are_summed_over_chips(found):
  moved = found["collectives"]
  assert {"all-gather"} <= moved.keys()
  assert {"all-reduce", "reduce-scatter"} & moved.keys()


def test_a_plan_is_told_in_words(found):
  text = plan_text.describe(found)
  assert "v5e-4 (v5e:2x2, 4 chips), mesh data 1 x fsdp 4" in text
  assert "it fits" in text


def test_a_step_that_does_not_fit_is_told_from_one_that_does(libtpu):
  config = tiny_config(fsdp=4)
  with config.unlocked():
    config.batch_size = 2**15
  found = plan.make(config, pipeline(), tpu_slices.parse("v5e:2x2"), plan.Inputs("encoded", 512))
  assert not found["fits"]
  assert found["total"] > found["available"] == 15.75 * 2**30
  assert "does NOT fit" in plan_text.describe(found)


def test_both_of_the_compiler_s_messages_about_memory_are_read():
  used = "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded hbm capacity"
  total = "total memory required for HLO temporaries (3.02T) exceeds available HBM (15.75G)."
  assert plan.overflow(used) == (17.5 * 2**30, 15.75 * 2**30)
  assert plan.overflow(total) == (3.02 * 2**40, 15.75 * 2**30)
  assert plan.overflow("INTERNAL: Ran out of memory in memory space vmem") is None


@pytest.mark.parametrize(
  ("mesh", "batch", "message"),
  [
    ({"fsdp": 3}, 8, r"fsdp 3 does not multiply out to 4 devices"),
    ({"fsdp": 4}, 6, r"batch_size 6 does not divide over 4 devices"),
  ],
)
def test_what_does_not_divide_is_refused_before_compiling(libtpu, mesh, batch, message):
  config = tiny_config(**mesh)
  with config.unlocked():
    config.batch_size = batch
  with pytest.raises(InputError, match=message):
    plan.make(config, pipeline(), tpu_slices.parse("v5e:2x2"), plan.Inputs("encoded", 128))


@pytest.mark.parametrize(
  ("data", "kind", "size", "wanted"),
  [
    ({"name": "pairs", "size": 256}, "", 0, plan.Inputs("images", 256)),
    ({"name": "cached_latents", "embeddings": True}, "", 0, plan.Inputs("encoded", 512)),
    ({"name": "cached_latents", "embeddings": False}, "", 1024, plan.Inputs("latents", 1024)),
    ({"name": "digits"}, "images", 0, plan.Inputs("images", 512, 1)),
  ],
)
def test_a_batch_is_what_the_data_set_gives_unless_it_is_asked_otherwise(data, kind, size, wanted):
  config = tiny_config()
  with config.unlocked():
    config.data = data
  assert plan.inputs_of(config, UNET, published.SD_VAE, kind, size) == wanted


def test_latents_without_an_autoencoder_are_refused():
  with pytest.raises(InputError, match="'latents' are an autoencoder's"):
    plan.inputs_of(tiny_config(), UNET, None, "latents", 0)


@pytest.mark.parametrize("largest", [0, 1, 2, 5, 13, 64])
def test_the_search_ends_at_the_most_that_fit(largest):
  asked = []

  def compiled(pairs):
    asked.append(pairs)
    total = 100 + 10 * pairs + (pairs % 3)  # not quite a line
    return {"total": total, "available": 104.5 + 10 * largest, "fits": pairs <= largest}

  found, tried = command.search(compiled, 1)
  assert found is not None
  assert found["fits"] == (largest > 0)
  assert found["total"] == 100 + 10 * max(largest, 1) + max(largest, 1) % 3
  assert len(asked) == len(set(asked)) == len(tried) <= 8
