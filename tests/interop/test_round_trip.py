"""Whole pipelines from torch and back, to the bit."""

import json
import shutil

import pytest
import torch
from diffusers import (
  AutoencoderKL,
  DiffusionPipeline,
  EulerDiscreteScheduler,
  StableDiffusionInstructPix2PixPipeline,
  StableDiffusionPipeline,
  StableDiffusionXLPipeline,
  UNet2DConditionModel,
)
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from dmpo_jax import interop
from tests.interop import helpers, tiny
from tests.interop.helpers import TEXT_FILE, UNET_FILE

CLASSES = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
# How the folder is written that we read, and then how we write it.
LAYOUTS = {
  "single": {},
  "sharded": {"max_shard_size": "20KB"},
  "variant": {"variant": "fp16"},
  "sharded variant": {"variant": "fp16", "max_shard_size": "20KB"},
}


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def kind(request):
  return request.param


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
  return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def written(kind, layout, tmp_path_factory):
  """Folders by torch and by us, of the same pipeline in the same layout."""
  theirs = tmp_path_factory.mktemp("theirs") / kind
  getattr(tiny, f"write_tiny_{kind}")(theirs, **layout)
  ours = theirs.with_name("ours")
  loaded = interop.load_pipeline(theirs, variant=layout.get("variant"))
  interop.save_pipeline(ours, loaded, **layout)
  return theirs, ours


def test_weights_come_back_to_the_bit_in_files_of_the_same_kind(written):
  theirs, ours = written
  for folder in sorted(file.parent for file in theirs.glob("*/config.json")):
    actual = helpers.read_state(ours / folder.name)
    wanted = helpers.read_state(folder)
    prefix = "" if wanted.keys() == actual.keys() else "text_model."
    assert {f"{prefix}{name}" for name in wanted} == actual.keys()
    for name, array in wanted.items():
      assert (actual[f"{prefix}{name}"] == array).all()
    assert {_kind_of(file) for file in ours.joinpath(folder.name).iterdir()} == {
      _kind_of(file) for file in folder.iterdir()
    }


def _kind_of(file):
  """File name without the numbers of a shard."""
  begin, dash, _ = file.name.partition("-0")
  return begin + dash


def test_configs_come_back_as_they_were(written):
  theirs, ours = written
  for file in (*theirs.glob("*/*config.json"), theirs / "model_index.json"):
    if "tokenizer" not in file.parent.name:
      again = ours / file.relative_to(theirs)
      assert json.loads(again.read_text()) == json.loads(file.read_text())


def test_diffusers_loads_the_whole_pipeline_as_it_was(written, kind, layout):
  theirs, ours = written
  options = {"variant": layout["variant"]} if "variant" in layout else {}
  actual = CLASSES[kind].from_pretrained(ours, **options).components
  wanted = CLASSES[kind].from_pretrained(theirs, **options).components
  assert actual.keys() == wanted.keys()
  for name, component in wanted.items():
    if isinstance(component, torch.nn.Module):
      helpers.assert_same_state(actual[name], component)
    elif isinstance(component, CLIPTokenizer):
      captions = ["the digit seven", "a cat", ""]
      asked = {"padding": "max_length", "max_length": tiny.CONTEXT}
      assert actual[name](captions, **asked).input_ids == component(captions, **asked).input_ids
    else:
      assert getattr(actual[name], "config", None) == getattr(component, "config", None)


def test_diffusers_loads_a_pipeline_that_edits_images(sd_folder, tmp_path):
  theirs = shutil.copytree(sd_folder, tmp_path / "theirs")
  unet = tiny.make_unet(**{**tiny.LATENTS, "in_channels": 8})
  unet.save_pretrained(theirs / "unet")
  helpers.edit_json(
    theirs / "model_index.json", _class_name="StableDiffusionInstructPix2PixPipeline"
  )
  interop.save_pipeline(tmp_path / "ours", interop.load_pipeline(theirs))
  loaded = DiffusionPipeline.from_pretrained(tmp_path / "ours")
  assert type(loaded) is StableDiffusionInstructPix2PixPipeline
  helpers.assert_same_state(loaded.unet, unet)


def test_unused_fields_of_a_published_pipeline_are_kept(sdxl, tmp_path):
  interop.save_pipeline(tmp_path / "ours", sdxl)
  index = json.loads((tmp_path / "ours/model_index.json").read_text())
  assert index["force_zeros_for_empty_prompt"] is True


def test_the_second_tokenizer_keeps_its_own_padding(sdxl):
  padding = {
    t.convert_ids_to_tokens(interop.tokenize(t, [""]).ids[0])[-1] for t in sdxl.tokenizers.values()
  }
  assert padding == {"<|endoftext|>", "!"}


def test_transformers_finds_every_parameter_of_our_text_encoder(saved):
  _, info = CLIPTextModel.from_pretrained(saved / "text_encoder", output_loading_info=True)
  assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_text_encoder_is_written_with_published_names(saved):
  assert all(name.startswith("text_model.") for name in load_file(saved / TEXT_FILE))


def test_diffusers_loads_our_scheduler(sdxl, sdxl_folder, tmp_path):
  interop.save_pipeline(tmp_path / "ours", sdxl)
  ours = EulerDiscreteScheduler.from_pretrained(tmp_path / "ours", subfolder="scheduler")
  theirs = EulerDiscreteScheduler.from_pretrained(sdxl_folder, subfolder="scheduler")
  assert torch.equal(ours.sigmas, theirs.sigmas)


def test_a_file_is_to_the_byte_what_safetensors_writes(saved, tmp_path):
  state = load_file(saved / UNET_FILE)
  save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
  assert (saved / UNET_FILE).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_single_network_is_read_with_its_config(sdxl_folder, sdxl):
  config, params = interop.load_network(sdxl_folder / "vae")
  assert config == sdxl.configs["vae"]
  helpers.assert_same_trees(params, sdxl.params["vae"])


def test_a_single_network_is_read_from_a_subfolder(sdxl_folder, sdxl):
  _, params = interop.load_network(sdxl_folder, subfolder="text_encoder_2")
  helpers.assert_same_trees(params, sdxl.params["text_encoder_2"])


def test_another_autoencoder_replaces_the_first(sdxl, tmp_path):
  other = tiny.perturb(tiny.make_vae(scaling_factor=0.13025, force_upcast=False))
  other.save_pretrained(tmp_path / "other")
  config, params = interop.load_network(tmp_path / "other")
  replaced = interop.Pipeline(
    sdxl.model_index,
    {**sdxl.configs, "vae": config},
    {**sdxl.params, "vae": params},
    sdxl.tokenizers,
  )
  interop.save_pipeline(tmp_path / "saved", replaced)
  loaded = AutoencoderKL.from_pretrained(tmp_path / "saved", subfolder="vae")
  helpers.assert_same_state(loaded, other)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_loads_parameters_that_were_written_in_half(pipeline, tmp_path, dtype):
  interop.save_pipeline(tmp_path / "half", pipeline, dtype=dtype)
  kind = getattr(torch, dtype)
  loaded = UNet2DConditionModel.from_pretrained(
    tmp_path / "half", subfolder="unet", torch_dtype=kind
  )
  helpers.assert_same_state(loaded, tiny.make_unet(**tiny.PIXELS).to(kind))


def test_transformers_loads_a_text_encoder_in_the_dtype_it_was_written_in(
  pipeline, tokenizer, tmp_path
):
  interop.save_pipeline(tmp_path / "half", pipeline, dtype="float16")
  loaded = CLIPTextModel.from_pretrained(tmp_path / "half", subfolder="text_encoder")
  helpers.assert_same_state(loaded, tiny.make_text_encoder(tokenizer).half())
