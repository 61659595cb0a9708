"""LoRA files: ours in torch diffusers, and torch's here."""

import json
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from diffusers import (
  StableDiffusionPipeline,
  StableDiffusionXLPipeline,
)
from diffusers.loaders import lora_conversion_utils
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop, models
from dmpo_jax.interop import lora_names
from dmpo_jax.models import lora, trees
from tests.interop.lora_case import WRITERS, Case, filled, prefixed


def fused(network):
  """The weights of a torch network once its LoRA is added to them."""
  for module in network.modules():
    if isinstance(module, BaseTunerLayer):
      module.merge()
  return {
    name.replace(".base_layer", ""): tensor.detach().numpy()
    for name, tensor in network.state_dict().items()
    if ".lora_" not in name
  }


def same_weights(state, params):
  """Asserts that torch's weights are those of our tree, up to rounding."""
  for key, array in interop.to_torch_state(params).items():
    np.testing.assert_allclose(state[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


@jax.jit
def merge(base, tree, alpha):
  return lora.merge(base, tree, alpha=alpha)


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def case(request):
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def wanted(case):
  """Output of our UNet with the LoRA, merged inside the jit."""
  apply = models.build(case.config).apply

  @jax.jit
  def merged(base, tree, inputs):
    return apply(lora.merge(base, tree, alpha=6.0), **inputs)

  return np.asarray(merged(case.base["unet"], case.lora.params["unet"], case.inputs()))


@pytest.fixture(scope="module")
def sd():
  return Case(False)


@pytest.fixture(scope="module")
def sdxl():
  return Case(True)


@pytest.fixture(scope="module", params=list(WRITERS))
def loaded(case, request, tmp_path_factory):
  """A torch pipeline that has loaded our file."""
  file = tmp_path_factory.mktemp("lora") / "pytorch_lora_weights.safetensors"
  WRITERS[request.param](file, case.lora, case.base)
  pipeline = case.pipeline()
  pipeline.load_lora_weights(file.parent)
  return pipeline


def test_the_unet_in_diffusers_computes_what_ours_does(case, loaded, wanted):
  actual = case.output(loaded.unet)
  assert np.abs(actual - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_lora_matters_to_the_output(case, wanted):
  without = case.output(case.pipeline().unet)
  assert np.abs(without - wanted).max() > 0.05 * np.abs(wanted).max()


def test_the_text_encoders_in_diffusers_have_our_merged_weights(case, loaded):
  for name in case.base.keys() - {"unet"}:
    merged = merge(case.base[name], case.lora.params[name], 6.0)
    same_weights(prefixed(fused(getattr(loaded, name))), merged)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_read_back_has_the_strength_in_its_factors(case, write, tmp_path):
  write(tmp_path / "a.safetensors", case.lora, case.base)
  again = interop.load_lora(tmp_path / "a.safetensors", case.base)
  assert again.params.keys() == case.lora.params.keys()
  for name, tree in case.lora.params.items():
    layers = lora.layers_of(tree)
    assert again.alphas[name] == dict.fromkeys(layers, 3.0)
    for layer, (down, up) in lora.layers_of(again.params[name]).items():
      np.testing.assert_array_equal(down, layers[layer][0])
      np.testing.assert_array_equal(up, 2 * layers[layer][1])  # alpha 6, rank 3


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_written_again_has_the_same_bytes(case, write, tmp_path):
  write(tmp_path / "a.safetensors", case.lora, case.base)
  again = interop.load_lora(tmp_path / "a.safetensors", case.base)
  write(tmp_path / "b.safetensors", again, case.base)
  assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_reader_that_ignores_header_and_alphas_applies_the_same(sd, write, tmp_path):
  layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
  write(tmp_path / "a.safetensors", sd.lora, sd.base)
  state = load_file(tmp_path / "a.safetensors")
  kohya = f"lora_unet_{layer}".replace(".", "_")
  down, up = (
    state.get(f"unet.{layer}.lora_{peft}.weight", state.get(f"{kohya}.lora_{side}.weight"))
    for peft, side in (("A", "down"), ("B", "up"))
  )
  before, after = lora.layers_of(sd.lora.params["unet"])[layer]
  np.testing.assert_allclose(up @ down, 6 / 3 * (before @ after).T, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_factors_keep_their_dtype(sd, dtype, tmp_path):
  small = sd.lora._replace(params=jax.tree.map(lambda x: x.astype(dtype), sd.lora.params))
  small = small._replace(alphas=dict.fromkeys(small.params, 3.0))
  interop.save_lora(tmp_path / "a.safetensors", small, sd.base)
  actual = interop.load_lora(tmp_path / "a.safetensors", sd.base)
  for leaf, expected in zip(
    jax.tree.leaves(actual.params), jax.tree.leaves(small.params), strict=True
  ):
    assert leaf.dtype == dtype
    assert leaf.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_file_in_half_precision_is_the_product_rounded_once(sd, dtype, tmp_path):
  odd = sd.lora._replace(alphas=dict.fromkeys(sd.lora.params, 1.3))
  interop.save_kohya_lora(tmp_path / "a.safetensors", odd, sd.base, dtype=dtype)
  actual = interop.load_lora(tmp_path / "a.safetensors", sd.base)
  for layer, (_, up) in lora.layers_of(actual.params["unet"]).items():
    exact = lora.layers_of(sd.lora.params["unet"])[layer][1] * np.float32(1.3 / 3)
    assert str(up.dtype) == dtype
    np.testing.assert_array_equal(up, exact.astype(up.dtype))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_alphas_and_ranks_of_single_layers_reach_diffusers(sd, write, tmp_path):
  few = lora.init(jax.random.key(1), sd.base["unet"], targets="*.to_q", rank=2)
  many = lora.init(jax.random.key(1), sd.base["unet"], targets=("*.to_k", "*.conv1"), rank=4)
  flat = filled({**trees.flatten(few), **trees.flatten(many)}, 3)
  tree = trees.unflatten(flat)
  alphas = {layer: 1.0 + i for i, layer in enumerate(lora.layers_of(tree))}
  adapter = interop.Lora({"unet": tree}, {"unet": alphas})
  write(tmp_path / "pytorch_lora_weights.safetensors", adapter, sd.base)
  pipeline = sd.pipeline()
  pipeline.load_lora_weights(tmp_path)
  expected = merge(sd.base["unet"], tree, alphas)
  same_weights(fused(pipeline.unet), expected)
  again = interop.load_lora(tmp_path / "pytorch_lora_weights.safetensors", sd.base)
  merged = merge(sd.base["unet"], again.params["unet"], again.alphas["unet"])
  same_weights(interop.to_torch_state(merged), expected)


def trained_in_torch(case, **options):
  """A torch UNet with a peft adapter that has numbers in both factors."""
  unet = case.pipeline().unet
  targets = ["to_q", "to_out.0", "conv1", "conv_in"]
  unet.add_adapter(LoraConfig(r=4, target_modules=targets, **options))
  generator = torch.Generator().manual_seed(2)
  with torch.no_grad():
    for name, parameter in unet.named_parameters():
      if ".lora_" in name:
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
  return unet


def test_a_file_by_peft_with_its_config_is_read_exactly(sd, tmp_path):
  exceptions = {"conv1": 2, "down_blocks.0.*to_q": 12}
  unet = trained_in_torch(sd, lora_alpha=8, alpha_pattern=exceptions, rank_pattern={"conv_in": 2})
  unet.save_lora_adapter(tmp_path, weight_name="a.safetensors")
  state, metadata = load_file(tmp_path / "a.safetensors"), {}
  with safetensors.safe_open(tmp_path / "a.safetensors", "np") as opened:
    metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
  StableDiffusionPipeline.save_lora_weights(
    tmp_path,
    unet_lora_layers={k: torch.from_numpy(v) for k, v in state.items()},
    unet_lora_adapter_metadata=metadata,
    weight_name="b.safetensors",
  )
  actual = interop.load_lora(tmp_path / "b.safetensors", sd.base)
  assert actual.alphas["unet"]["down_blocks.0.resnets.0.conv1"] == 2
  same_weights(fused(unet), merge(sd.base["unet"], actual.params["unet"], actual.alphas["unet"]))


def test_a_file_by_diffusers_training_scripts_is_read(case, tmp_path):
  """They rename the factors to lora.down and lora.up, keep no alpha, and train with alpha = r."""
  unet = trained_in_torch(case, lora_alpha=4)
  kind = StableDiffusionXLPipeline if case.xl else StableDiffusionPipeline
  layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
  kind.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="a.safetensors")
  assert any(".lora.down." in name for name in load_file(tmp_path / "a.safetensors"))
  actual = interop.load_lora(tmp_path / "a.safetensors", case.base)
  same_weights(fused(unet), merge(case.base["unet"], actual.params["unet"], actual.alphas["unet"]))


def test_text_encoders_saved_by_diffusers_are_read(sd, tmp_path):
  """transformers 5 leaves text_model. out of the names."""
  text = sd.pipeline().text_encoder
  # What text.add_adapter does, which in transformers 5.24 asks for a peft that is not out yet.
  inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "fc1"]), text)
  state = get_peft_model_state_dict(text)
  StableDiffusionPipeline.save_lora_weights(
    tmp_path,
    text_encoder_lora_layers=convert_state_dict_to_diffusers(state),
    weight_name="a.safetensors",
  )
  actual = interop.load_lora(tmp_path / "a.safetensors", sd.base)
  layers = lora.layers_of(actual.params["text_encoder"])
  assert set(layers) == {
    f"text_model.encoder.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.fc1")
  }


def test_every_layer_of_sdxl_has_the_kohya_name_that_diffusers_reads():
  config = {
    "_class_name": "UNet2DConditionModel",
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "norm_num_groups": 32,
    "cross_attention_dim": 2048,
  }
  names = lora_names.kohya_names({"unet": models.abstract(config)})
  assert len(set(names.values())) == len(names) == 794
  state = {}
  for number, name in enumerate(names.values()):
    state[f"{name}.lora_down.weight"] = torch.tensor(number)
    state[f"{name}.lora_up.weight"] = torch.tensor(number)
  state = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(
    state, types.SimpleNamespace(layers_per_block=2)
  )
  state, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(state)
  actual = {
    int(number): name.removeprefix("unet.").split(".lora_A")[0]
    for name, number in convert_unet_state_dict_to_peft(state).items()
    if ".lora_A" in name
  }
  assert actual == {number: layer for number, (_, layer) in enumerate(names)}


def test_sd_keeps_diffusers_names_in_kohyas_files(sd):
  names = lora_names.kohya_names(sd.base)
  layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
  name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
  assert names["unet", layer] == name


@pytest.mark.parametrize(("family", "prefix"), [("sd", "lora_te"), ("sdxl", "lora_te1")])
def test_the_first_text_encoder_has_kohyas_name(request, family, prefix):
  names = lora_names.kohya_names(request.getfixturevalue(family).base)
  layer = "text_model.encoder.layers.0.self_attn.q_proj"
  wanted = f"{prefix}_text_model_encoder_layers_0_self_attn_q_proj"
  assert names["text_encoder", layer] == wanted


def test_kohyas_file_with_diffusers_block_names_is_read_for_sdxl(sdxl, tmp_path):
  case = sdxl
  state = {}
  layers = lora.layers_of(case.lora.params["unet"])
  interop.save_lora(tmp_path / "a.safetensors", case.lora, case.base)
  expected = load_file(tmp_path / "a.safetensors")
  for layer in layers:
    name = f"lora_unet_{layer}".replace(".", "_")
    state[f"{name}.lora_down.weight"] = expected[f"unet.{layer}.lora_A.weight"]
    state[f"{name}.lora_up.weight"] = expected[f"unet.{layer}.lora_B.weight"]
    state[f"{name}.alpha"] = np.asarray(1.5, np.float16)
  save_file(state, tmp_path / "b.safetensors")
  actual = interop.load_lora(tmp_path / "b.safetensors", case.base)
  assert actual.alphas["unet"] == dict.fromkeys(layers, 1.5)
  for layer, (down, _) in lora.layers_of(actual.params["unet"]).items():
    np.testing.assert_array_equal(down, layers[layer][0])
