"""LoRA files in the spellings of diffusers, peft, kohya's trainer and others give one LoRA."""

import json
import logging

import jax
import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.numpy import save_file

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from dmpo_jax.interop import lora_names
from dmpo_jax.models import lora, trees
from tests.interop.lora_case import Case, filled
from tests.interop.test_lora_files import fused, merge, same_weights

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def case(request):
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def sd():
  return Case(False)


@pytest.fixture(scope="module")
def sdxl():
  return Case(True)


def factors(case, *, component="unet", kinds=ATTENTION):
  """Torch's factors of some layers."""
  names = [name for name in lora_names.layers(case.base[component]) if name.endswith(kinds)]
  generator = np.random.default_rng(0)
  leaves = trees.flatten(case.base[component])
  result = {}
  for name in names:
    *window, inputs, outputs = leaves[f"{name}.kernel"].shape
    down = generator.normal(0, 0.2, (2, inputs, *window)).astype(np.float32)
    up = generator.normal(0, 0.2, (outputs, 2, *[1] * len(window))).astype(np.float32)
    result[name] = down, up
  return result


def entries(case, spell, *, sides=("lora_A", "lora_B"), suffix=".weight", **options):
  """The entries of a file whose layers are spelled by a function."""
  return {
    f"{spell(layer)}.{side}{suffix}": array
    for layer, pair in factors(case, **options).items()
    for side, array in zip(sides, pair, strict=True)
  }


def processor(layer):
  before, _, last = layer.partition(".to_")
  return f"{before}.processor.to_{last.removesuffix('.0')}"


def underscores(prefix, layer):
  return f"{prefix}_{layer}".replace(".", "_")


SPELLINGS = {
  "with the component": lambda case: entries(case, "unet.{}".format),
  "without the component": lambda case: entries(case, str),
  "peft's model": lambda case: entries(case, "base_model.model.{}".format),
  "peft's model in a pipeline": lambda case: entries(case, "unet.base_model.model.{}".format),
  "compiled": lambda case: entries(case, "unet._orig_mod.{}".format),
  "with the adapter": lambda case: entries(case, "unet.{}".format, suffix=".default.weight"),
  "peft's state dict": lambda case: entries(
    case, "base_model.model.{}".format, suffix=".my-adapter.weight"
  ),
  "attention processors": lambda case: {
    f"unet.{processor(layer)}_lora.{side}.weight": array
    for layer, pair in factors(case).items()
    for side, array in zip(("down", "up"), pair, strict=True)
  },
  "attention processors alone": lambda case: {
    f"{processor(layer)}_lora.{side}.weight": array
    for layer, pair in factors(case).items()
    for side, array in zip(("down", "up"), pair, strict=True)
  },
  "training scripts": lambda case: entries(case, "unet.{}".format, sides=("lora.down", "lora.up")),
  "linear layers": lambda case: entries(
    case, "unet.{}".format, sides=("lora_linear_layer.down", "lora_linear_layer.up")
  ),
  "kohya": lambda case: entries(
    case, lambda layer: underscores("lora_unet", layer), sides=("lora_down", "lora_up")
  ),
  "kohya with original blocks": lambda case: entries(
    case,
    lambda layer: underscores("lora_unet", lora_names.sgm_name(layer, case.base["unet"])),
    sides=("lora_down", "lora_up"),
  ),
  "LyCORIS": lambda case: entries(
    case, lambda layer: underscores("lycoris", layer), sides=("lora_down", "lora_up")
  ),
  "ComfyUI": lambda case: entries(
    case,
    lambda layer: f"diffusion_model.{lora_names.sgm_name(layer, case.base['unet'])}",
    sides=("lora_down", "lora_up"),
  ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_is_read_in_every_spelling(case, spelling, tmp_path):
  save_file(SPELLINGS[spelling](case), tmp_path / "a.safetensors")
  actual = interop.load_lora(tmp_path / "a.safetensors", case.base)
  layers = lora.layers_of(actual.params["unet"])
  expected = factors(case)
  assert actual.params.keys() == {"unet"}
  assert layers.keys() == expected.keys()
  assert actual.alphas["unet"] == dict.fromkeys(expected, 2)
  for layer, (down, up) in expected.items():
    np.testing.assert_array_equal(layers[layer][0], down.T)
    np.testing.assert_array_equal(layers[layer][1], up.T)


@pytest.mark.parametrize("spelling", ["attention processors", "training scripts", "kohya"])
def test_diffusers_applies_the_same(case, spelling, tmp_path):
  save_file(SPELLINGS[spelling](case), tmp_path / "a.safetensors")
  actual = interop.load_lora(tmp_path / "a.safetensors", case.base)
  pipeline = case.pipeline()
  pipeline.load_lora_weights(str(tmp_path / "a.safetensors"))
  merged = merge(case.base["unet"], actual.params["unet"], actual.alphas["unet"])
  same_weights(fused(pipeline.unet), merged)


TEXT = {
  "attention processors": ("to_q_lora", "to_out_lora"),
  "training scripts": ("q_proj.lora_linear_layer", "out_proj.lora_linear_layer"),
}


@pytest.mark.parametrize("spelling", TEXT)
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_encoders_are_read_in_every_spelling(sd, spelling, prefix, tmp_path):
  expected = factors(sd, component="text_encoder", kinds=(".q_proj", ".out_proj"))
  state = {}
  for layer, pair in expected.items():
    before, _, last = layer.removeprefix("text_model.").rpartition(".")
    name = TEXT[spelling][last == "out_proj"]
    for side, array in zip(("down", "up"), pair, strict=True):
      state[f"text_encoder.{prefix}{before}.{name}.{side}.weight"] = array
  save_file(state, tmp_path / "a.safetensors")
  actual = interop.load_lora(tmp_path / "a.safetensors", sd.base).params["text_encoder"]
  layers = lora.layers_of(actual)
  assert layers.keys() == expected.keys()
  for layer, (down, up) in layers.items():
    np.testing.assert_array_equal(down, expected[layer][0].T)
    np.testing.assert_array_equal(up, expected[layer][1].T)


def test_factors_of_a_convolution_of_width_1_fit_a_linear_layer_and_the_reverse(case, tmp_path):
  expected = factors(case, kinds=(".proj_in",))
  state = {}
  for layer, pair in expected.items():
    for side, array in zip(("lora_down", "lora_up"), pair, strict=True):
      shape = array.shape[:2] if array.ndim == 4 else (*array.shape, 1, 1)
      state[f"{underscores('lora_unet', layer)}.{side}.weight"] = array.reshape(shape)
  save_file(state, tmp_path / "a.safetensors")
  actual = lora.layers_of(interop.load_lora(tmp_path / "a.safetensors", case.base).params["unet"])
  for layer, (down, up) in expected.items():
    np.testing.assert_array_equal(actual[layer][0].squeeze(), down.squeeze().T)
    np.testing.assert_array_equal(actual[layer][1], up.squeeze().T)


def test_a_layer_in_two_spellings_with_equal_factors_is_read_once(sd, tmp_path):
  state = {**SPELLINGS["kohya"](sd), **SPELLINGS["kohya with original blocks"](sd)}
  save_file(state, tmp_path / "a.safetensors")
  actual = interop.load_lora(tmp_path / "a.safetensors", sd.base)
  assert lora.layers_of(actual.params["unet"]).keys() == factors(sd).keys()


@pytest.mark.parametrize("alpha", [np.float16(1), np.float32([1]), np.int64([[1]]), np.float64(1)])
def test_an_alpha_of_any_dtype_and_shape_is_read(sd, alpha, tmp_path):
  state = SPELLINGS["kohya"](sd)
  alphas = {f"{name.split('.')[0]}.alpha": np.asarray(alpha) for name in state}
  save_file(state | alphas, tmp_path / "a.safetensors")
  actual = interop.load_lora(tmp_path / "a.safetensors", sd.base)
  assert set(actual.alphas["unet"].values()) == {1}


def trained_by_peft(case, targets=("to_q", "to_out.0", "conv1"), **options):
  """A torch UNet in a PeftModel that has numbers in both factors."""
  config = peft.LoraConfig(r=4, target_modules=list(targets), **options)
  model = peft.get_peft_model(case.pipeline().unet, config)
  generator = torch.Generator().manual_seed(2)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if ".lora_" in name:
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
  return model


@pytest.mark.parametrize(
  "options",
  [
    {"lora_alpha": 12},
    {"lora_alpha": 3, "use_rslora": True, "rank_pattern": {"conv1": 2}},
    {"lora_alpha": 8, "alpha_pattern": {"^down_blocks.*attn1.to_q": 2, r"resnets\.\d\.conv1": 5}},
  ],
)
def test_a_folder_that_peft_saved_is_read_with_its_config(sd, options, tmp_path):
  model = trained_by_peft(sd, **options)
  model.save_pretrained(tmp_path)
  actual = interop.load_lora(tmp_path, sd.base)
  merged = merge(sd.base["unet"], actual.params["unet"], actual.alphas["unet"])
  same_weights(fused(model.base_model.model), merged)


def test_folders_of_peft_for_several_networks_are_read_as_one(sd, tmp_path):
  trained_by_peft(sd, lora_alpha=12).save_pretrained(tmp_path / "unet")
  text = entries(sd, "base_model.model.{}".format, component="text_encoder", kinds=(".q_proj",))
  (tmp_path / "text_encoder").mkdir()
  save_file(text, tmp_path / "text_encoder" / "adapter_model.safetensors")
  fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 5}
  (tmp_path / "text_encoder" / "adapter_config.json").write_text(json.dumps(fields))
  alphas = interop.load_lora(tmp_path, sd.base).alphas
  assert {name: set(values.values()) for name, values in alphas.items()} == {
    "unet": {12},
    "text_encoder": {5},
  }


def test_a_lora_without_effect_is_told(sd, tmp_path, caplog):
  state = {name: 0 * array for name, array in SPELLINGS["kohya"](sd).items()}
  save_file(state, tmp_path / "a.safetensors")
  with caplog.at_level(logging.WARNING):
    interop.load_lora(tmp_path / "a.safetensors", sd.base)
  assert "has no effect" in caplog.text


@pytest.mark.parametrize(
  ("options", "problem"),
  [({"use_dora": True}, "DoRA|use_dora"), ({"init_lora_weights": "pissa"}, "changes the base")],
)
def test_a_folder_of_peft_of_another_method_is_refused(sd, options, problem, tmp_path):
  trained_by_peft(sd, ["to_q"], **options).save_pretrained(tmp_path)
  with pytest.raises(InputError, match=problem):
    interop.load_lora(tmp_path, sd.base)


def test_a_file_of_peft_without_its_config_is_read_with_a_warning(sd, tmp_path, caplog):
  trained_by_peft(sd).save_pretrained(tmp_path)
  (tmp_path / "adapter_config.json").unlink()
  with caplog.at_level(logging.WARNING):
    actual = interop.load_lora(tmp_path, sd.base)
  assert set(actual.alphas["unet"].values()) == {4}
  assert "alpha is taken to be the rank" in caplog.text


def test_a_network_saved_alone_by_diffusers_is_read_with_its_header(sd, tmp_path):
  unet = sd.pipeline().unet
  unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=7, target_modules=["to_q"]))
  unet.save_lora_adapter(tmp_path)
  actual = interop.load_lora(tmp_path, sd.base)
  assert set(actual.alphas["unet"].values()) == {7}


def test_a_file_for_one_of_two_equal_text_encoders_must_say_which(sdxl, tmp_path):
  base = dict.fromkeys(("text_encoder", "text_encoder_2"), sdxl.base["text_encoder"])
  state = entries(sdxl, str, component="text_encoder", kinds=(".q_proj",))
  save_file(state, tmp_path / "a.safetensors")
  with pytest.raises(InputError, match="text_encoder or text_encoder_2"):
    interop.load_lora(tmp_path / "a.safetensors", base)


def test_shapes_tell_for_which_text_encoder_a_file_is(sdxl, tmp_path):
  state = entries(sdxl, str, component="text_encoder_2", kinds=(".q_proj",))
  save_file(state, tmp_path / "a.safetensors")
  assert interop.load_lora(tmp_path / "a.safetensors", sdxl.base).params.keys() == {
    "text_encoder_2"
  }


def test_a_folder_with_several_files_must_name_one(sd, tmp_path):
  for name in ("a", "b"):
    save_file(SPELLINGS["kohya"](sd), tmp_path / f"{name}.safetensors")
  with pytest.raises(InputError, match=r"a\.safetensors, b\.safetensors"):
    interop.load_lora(tmp_path, sd.base)


def test_the_file_of_diffusers_is_taken_from_a_folder(sd, tmp_path):
  save_file(SPELLINGS["kohya"](sd), tmp_path / "a.safetensors")
  interop.save_lora(tmp_path / "pytorch_lora_weights.safetensors", sd.lora, sd.base)
  assert interop.load_lora(tmp_path, sd.base).params.keys() == sd.base.keys()


def test_a_lora_of_kohya_for_one_network_is_found_by_webuis_version(case, tmp_path):
  interop.save_kohya_lora(tmp_path / "a.safetensors", case.lora, case.base)
  size = int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
  header = json.loads((tmp_path / "a.safetensors").read_bytes()[8 : 8 + size])["__metadata__"]
  assert header["ss_network_dim"] == header["ss_network_alpha"] == "3"
  assert header.get("ss_base_model_version") == ("sdxl_base_v1-0" if case.xl else None)


def test_a_file_in_kohyas_format_written_by_us_is_the_lora_that_diffusers_had(sd, tmp_path):
  """diffusers' file -> ours in kohya's format -> diffusers."""
  tree = filled(lora.init(jax.random.key(0), sd.base["unet"], rank=3), 1)
  state = {}
  for layer, (down, up) in lora.layers_of(tree).items():
    state[f"{layer}.lora.down.weight"] = torch.from_numpy(down.T.copy())
    state[f"{layer}.lora.up.weight"] = torch.from_numpy(up.T.copy())
  StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
  interop.save_kohya_lora(tmp_path / "k.safetensors", interop.load_lora(tmp_path, sd.base), sd.base)
  weights = []
  for name in ("pytorch_lora_weights.safetensors", "k.safetensors"):
    pipeline = sd.pipeline()
    pipeline.load_lora_weights(str(tmp_path / name))
    weights.append(fused(pipeline.unet))
  for key, array in weights[0].items():
    np.testing.assert_allclose(weights[1][key], array, atol=1e-6)
