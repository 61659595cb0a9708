"""Pipeline folders against torch, both ways, and folders that are broken."""

import dataclasses
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"

CONTEXT = 8
WORDS = ["the", "digit", "seven", "one"]


def perturb(module):
  """Random numbers in every parameter: scales of 1 and biases of 0 would hide a swapped name."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
  return module.eval()


@pytest.fixture(scope="module")
def tokenizer():
  return interop.build_tokenizer(WORDS, CONTEXT)


@pytest.fixture(scope="module")
def torch_unet():
  torch.manual_seed(0)
  return perturb(
    UNet2DConditionModel(
      sample_size=8,
      in_channels=1,
      out_channels=1,
      down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
      block_out_channels=(8, 16),
      layers_per_block=1,
      norm_num_groups=4,
      cross_attention_dim=12,
      attention_head_dim=2,
    )
  )


@pytest.fixture(scope="module")
def torch_text(tokenizer):
  torch.manual_seed(1)
  config = CLIPTextConfig(
    vocab_size=len(tokenizer),
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=CONTEXT,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
  )
  return perturb(CLIPTextModel(config))


@pytest.fixture(scope="module")
def torch_folder(torch_unet, torch_text, tokenizer, tmp_path_factory):
  """A pipeline folder that torch wrote; tests read it and change copies alone."""
  folder = tmp_path_factory.mktemp("torch") / "pipeline"
  scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="squaredcos_cap_v2")
  pipeline = StableDiffusionPipeline(
    vae=None,
    text_encoder=torch_text,
    tokenizer=tokenizer,
    unet=torch_unet,
    scheduler=scheduler,
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipeline.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def pipeline(torch_folder):
  return interop.load_pipeline(torch_folder)


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
  """A pipeline folder that we wrote; tests read it and change copies alone."""
  folder = tmp_path_factory.mktemp("ours") / "pipeline"
  interop.save_pipeline(folder, pipeline)
  return folder


@pytest.fixture(scope="module")
def fresh(pipeline, tokenizer):
  """A pipeline that torch has never seen: our own initial parameters, put together by us."""
  keys = jax.random.split(jax.random.key(0))
  params = {
    name: models.build(pipeline.configs[name]).init(key)
    for name, key in zip(("unet", "text_encoder"), keys, strict=True)
  }
  return interop.pixel_pipeline(pipeline.configs, params, tokenizer)


@pytest.fixture(scope="module")
def apply_unet(pipeline):
  return jax.jit(models.build(pipeline.configs["unet"]).apply)


@pytest.fixture(scope="module")
def apply_text(pipeline):
  return jax.jit(models.build(pipeline.configs["text_encoder"]).apply)


@pytest.fixture
def broken(torch_folder, tmp_path):
  """A copy to damage."""
  return shutil.copytree(torch_folder, tmp_path / "broken")


def draw(*shape):
  return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def assert_same_unet(apply_unet, params, torch_unet):
  x, t, context = draw(4, 8, 8, 1), np.array([0, 1, 500, 999], np.int32), draw(4, CONTEXT, 12)
  ours = apply_unet(params, x, t, context)
  with torch.no_grad():
    theirs = torch_unet(
      torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), torch.from_numpy(context)
    ).sample
  np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def assert_same_text(apply_text, params, torch_text, tokenizer):
  ids = interop.tokenize(tokenizer, ["the digit seven", "", "one " * 9]).ids
  ours = apply_text(params, ids)
  with torch.no_grad():
    theirs = torch_text(torch.from_numpy(ids).long())
  np.testing.assert_allclose(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
  np.testing.assert_allclose(ours.pooled, theirs.pooler_output, atol=1e-5, rtol=1e-5)


def assert_same_tensors(theirs, ours):
  assert list(ours) == list(theirs)
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array, err_msg=name, strict=True)


def edit_json(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# From torch


def test_the_unet_of_a_torch_folder_computes_what_torch_computes(apply_unet, pipeline, torch_unet):
  assert_same_unet(apply_unet, pipeline.params["unet"], torch_unet)


def test_the_text_encoder_of_a_torch_folder_computes_what_torch_computes(
  apply_text, pipeline, torch_text, tokenizer
):
  assert_same_text(apply_text, pipeline.params["text_encoder"], torch_text, tokenizer)


def test_the_tokenizer_of_a_torch_folder_is_the_same(pipeline, tokenizer):
  captions = ["the digit seven", "a cat"]
  ours = interop.tokenize(pipeline.tokenizer, captions).ids
  np.testing.assert_array_equal(ours, interop.tokenize(tokenizer, captions).ids)


def test_loaded_parameters_are_float32(pipeline):
  assert {leaf.dtype for leaf in jax.tree.leaves(pipeline.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32(broken, pipeline, dtype):
  half = {name: array.astype(dtype) for name, array in load_file(broken / UNET_FILE).items()}
  save_file(half, broken / UNET_FILE)
  kernel = interop.load_pipeline(broken).params["unet"]["conv_in"]["kernel"]
  expected = pipeline.params["unet"]["conv_in"]["kernel"].astype(dtype).astype(np.float32)
  np.testing.assert_array_equal(kernel, expected, strict=True)


def test_published_names_of_the_text_encoder_are_read_as_well(broken, pipeline):
  published = {f"text_model.{name}": a for name, a in load_file(broken / TEXT_FILE).items()}
  published["text_model.embeddings.position_ids"] = np.arange(CONTEXT)[None]
  save_file(published, broken / TEXT_FILE)
  loaded = interop.load_pipeline(broken)
  jax.tree.map(
    np.testing.assert_array_equal, loaded.params["text_encoder"], pipeline.params["text_encoder"]
  )


def test_a_sharded_checkpoint_is_read(broken, torch_unet, pipeline):
  (broken / UNET_FILE).unlink()
  torch_unet.save_pretrained(broken / "unet", max_shard_size="100KB")
  assert len(list((broken / "unet").glob("*.safetensors"))) > 1
  loaded = interop.load_pipeline(broken)
  jax.tree.map(np.testing.assert_array_equal, loaded.params["unet"], pipeline.params["unet"])


def test_a_tokenizer_of_vocabulary_and_merges_is_read(saved, tmp_path, tokenizer):
  folder = shutil.copytree(saved, tmp_path / "old")
  (folder / "tokenizer/tokenizer.json").unlink()
  loaded = interop.load_pipeline(folder).tokenizer
  captions = ["the digit seven", "a cat"]
  np.testing.assert_array_equal(
    interop.tokenize(loaded, captions).ids, interop.tokenize(tokenizer, captions).ids
  )


# To torch


def test_torch_loads_our_unet_and_computes_what_we_compute(fresh, apply_unet, tmp_path, torch_unet):
  interop.save_pipeline(tmp_path / "fresh", fresh)
  loaded = UNet2DConditionModel.from_pretrained(tmp_path / "fresh", subfolder="unet").eval()
  assert_same_unet(apply_unet, fresh.params["unet"], loaded)


def test_transformers_loads_our_text_encoder_and_computes_what_we_compute(
  fresh, apply_text, tmp_path, tokenizer
):
  interop.save_pipeline(tmp_path / "fresh", fresh)
  loaded = CLIPTextModel.from_pretrained(tmp_path / "fresh", subfolder="text_encoder").eval()
  assert_same_text(apply_text, fresh.params["text_encoder"], loaded, tokenizer)


def test_transformers_finds_every_parameter_of_our_text_encoder(saved):
  _, info = CLIPTextModel.from_pretrained(saved / "text_encoder", output_loading_info=True)
  assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_text_encoder_is_written_with_published_names(saved):
  assert all(name.startswith("text_model.") for name in load_file(saved / TEXT_FILE))


def test_a_unet_from_torch_and_back_is_bit_identical(torch_folder, saved):
  assert_same_tensors(load_file(torch_folder / UNET_FILE), load_file(saved / UNET_FILE))


def test_a_text_encoder_from_torch_and_back_is_bit_identical(torch_folder, saved):
  theirs, ours = load_file(torch_folder / TEXT_FILE), load_file(saved / TEXT_FILE)
  assert_same_tensors(theirs, {k.removeprefix("text_model."): a for k, a in ours.items()})


@pytest.mark.parametrize(
  "file",
  [
    "model_index.json",
    "unet/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
  ],
)
def test_configs_survive_the_way_there_and_back(torch_folder, saved, file):
  assert json.loads((saved / file).read_text()) == json.loads((torch_folder / file).read_text())


def test_diffusers_loads_our_scheduler(saved, torch_folder):
  ours = DDIMScheduler.from_pretrained(saved, subfolder="scheduler")
  theirs = DDIMScheduler.from_pretrained(torch_folder, subfolder="scheduler")
  assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


def test_transformers_loads_our_tokenizer(saved, tokenizer):
  loaded = CLIPTokenizer.from_pretrained(saved, subfolder="tokenizer")
  assert loaded("the digit seven").input_ids == tokenizer("the digit seven").input_ids


def test_a_saved_tokenizer_does_not_pad_by_itself(saved, pipeline, tmp_path):
  interop.tokenize(pipeline.tokenizer, ["one"])
  interop.save_pipeline(tmp_path / "padded", pipeline)
  assert json.loads((tmp_path / "padded/tokenizer/tokenizer.json").read_text())["padding"] is None


def test_diffusers_samples_from_our_folder_what_our_networks_predict(
  fresh, apply_unet, apply_text, tmp_path
):
  interop.save_pipeline(tmp_path / "fresh", fresh)
  theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "fresh", vae=None)
  theirs.set_progress_bar_config(disable=True)
  noise = draw(2, 1, 8, 8)
  images = theirs(
    ["the digit seven", "one"],
    num_inference_steps=3,
    guidance_scale=2.0,
    latents=torch.from_numpy(noise),
    output_type="latent",
  ).images

  scheduler = DDIMScheduler.from_pretrained(tmp_path / "fresh", subfolder="scheduler")
  scheduler.set_timesteps(3)
  captions = ["", "", "the digit seven", "one"]
  context = apply_text(
    fresh.params["text_encoder"], interop.tokenize(fresh.tokenizer, captions).ids
  ).last_hidden_state
  x = torch.from_numpy(noise)
  for t in scheduler.timesteps:
    doubled = jnp.asarray(x.permute(0, 2, 3, 1).repeat(2, 1, 1, 1))
    prediction = apply_unet(fresh.params["unet"], doubled, jnp.full(4, int(t)), context)
    plain, asked = np.split(np.asarray(prediction).transpose(0, 3, 1, 2), 2)
    x = scheduler.step(torch.from_numpy(plain + 2.0 * (asked - plain)), t, x).prev_sample
  np.testing.assert_allclose(images, x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_are_written_in_their_own_dtype(pipeline, tmp_path, dtype):
  half = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), pipeline.params)
  interop.save_pipeline(tmp_path / "half", dataclasses.replace(pipeline, params=half))
  loaded = UNet2DConditionModel.from_pretrained(
    tmp_path / "half", subfolder="unet", torch_dtype=getattr(torch, dtype)
  )
  expected = torch.from_numpy(load_file(tmp_path / "half" / UNET_FILE)["conv_in.bias"].astype("f4"))
  assert torch.equal(loaded.conv_in.bias.float(), expected)
  assert {a.dtype.name for a in load_file(tmp_path / "half" / UNET_FILE).values()} == {dtype}


def test_components_that_are_not_read_are_carried_along(broken, tmp_path):
  vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
  vae.save_pretrained(broken / "vae")
  edit_json(broken / "model_index.json", vae=["diffusers", "AutoencoderKL"])
  interop.save_pipeline(tmp_path / "saved", interop.load_pipeline(broken))
  loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "saved").vae
  assert torch.equal(loaded.decoder.conv_in.weight, vae.decoder.conv_in.weight)


@pytest.mark.parametrize("file", [UNET_FILE, TEXT_FILE])
def test_weights_say_that_they_are_laid_out_for_torch(saved, file):
  with safetensors.safe_open(saved / file, framework="numpy") as opened:
    assert opened.metadata() == {"format": "pt"}


def test_files_are_as_readable_as_others(saved):
  assert (saved / UNET_FILE).stat().st_mode == (saved / "unet/config.json").stat().st_mode


# Whole or not at all


@pytest.fixture
def unwritable(pipeline):
  """A pipeline whose second network has a leaf that cannot be written; the first one can."""
  params = pipeline.params["text_encoder"]["text_model"]
  norm = params["final_layer_norm"] | {"bias": np.zeros(12, np.float64)}
  text = {"text_model": params | {"final_layer_norm": norm}}
  return dataclasses.replace(pipeline, params=pipeline.params | {"text_encoder": text})


def snapshot(folder):
  return {
    file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
  }


def test_an_interrupted_save_leaves_nothing_behind(unwritable, tmp_path):
  with pytest.raises(
    InputError, match=r"text_encoder parameters: .*\n.*final_layer_norm.bias is f"
  ):
    interop.save_pipeline(tmp_path / "saved", unwritable)
  assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_old_pipeline_as_it_was(unwritable, broken):
  before = snapshot(broken)
  with pytest.raises(InputError):
    interop.save_pipeline(broken, unwritable)
  assert snapshot(broken) == before


def test_a_pipeline_is_replaced_as_a_whole(broken, fresh):
  (broken / "unet/left_over.txt").write_text("old")
  interop.save_pipeline(broken, fresh)
  assert not (broken / "unet/left_over.txt").exists()
  loaded = interop.load_pipeline(broken)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, fresh.params)


def test_replacing_a_pipeline_leaves_no_other_folder(broken, fresh):
  interop.save_pipeline(broken, fresh)
  assert list(broken.parent.iterdir()) == [broken]


def test_a_pipeline_can_be_saved_over_the_folder_that_it_carries_from(broken):
  (broken / "vae").mkdir()
  (broken / "vae/config.json").write_text("{}")
  edit_json(broken / "model_index.json", vae=["diffusers", "AutoencoderKL"])
  interop.save_pipeline(broken, interop.load_pipeline(broken))
  assert (broken / "vae/config.json").read_text() == "{}"


def test_an_empty_folder_is_filled(tmp_path, pipeline):
  (tmp_path / "empty").mkdir()
  interop.save_pipeline(tmp_path / "empty", pipeline)
  assert interop.load_pipeline(tmp_path / "empty").model_index == pipeline.model_index


def test_a_folder_that_is_no_pipeline_is_not_overwritten(tmp_path, pipeline):
  (tmp_path / "thesis.txt").write_text("all of it")
  with pytest.raises(InputError, match="exists and is no pipeline folder"):
    interop.save_pipeline(tmp_path, pipeline)
  assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_a_target_below_a_file_is_refused(tmp_path, pipeline):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="cannot write to"):
    interop.save_pipeline(tmp_path / "file/below", pipeline)


def test_parameters_of_another_size_than_the_config_are_not_written(tmp_path, pipeline):
  configs = dict(pipeline.configs)
  configs["unet"] = configs["unet"] | {"in_channels": 2}
  wrong = dataclasses.replace(pipeline, configs=configs)
  with pytest.raises(
    InputError, match=r"conv_in.weight is \[8, 1, 3, 3\], expected \[8, 2, 3, 3\]"
  ):
    interop.save_pipeline(tmp_path / "saved", wrong)


# Bad input


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"is no pipeline folder: it has no model_index\.json"):
    interop.load_pipeline(tmp_path)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
  with pytest.raises(InputError, match="is no pipeline folder"):
    interop.load_pipeline(tmp_path / "nowhere")


@pytest.mark.parametrize("component", ["unet", "text_encoder", "scheduler", "tokenizer"])
def test_a_component_that_is_not_there_is_named(broken, component):
  shutil.rmtree(broken / component)
  with pytest.raises(InputError, match=f"has no {component}/"):
    interop.load_pipeline(broken)


def test_an_index_without_a_text_encoder_is_refused(broken):
  edit_json(broken / "model_index.json", text_encoder=[None, None])
  with pytest.raises(InputError, match="names no 'text_encoder'"):
    interop.load_pipeline(broken)


def test_a_pipeline_without_a_tokenizer_has_none(broken):
  edit_json(broken / "model_index.json", tokenizer=[None, None])
  assert interop.load_pipeline(broken).tokenizer is None


def test_an_empty_tokenizer_folder_is_refused(broken):
  for file in (broken / "tokenizer").iterdir():
    file.unlink()
  with pytest.raises(InputError, match="holds no tokenizer"):
    interop.load_pipeline(broken)


def test_a_damaged_tokenizer_is_refused(broken):
  (broken / "tokenizer/tokenizer.json").write_text('{"version": ')
  with pytest.raises(InputError, match=r"tokenizer\.json is no valid JSON"):
    interop.load_pipeline(broken)


def test_a_missing_config_is_named(broken):
  (broken / "unet/config.json").unlink()
  with pytest.raises(InputError, match=r"unet/config\.json is missing"):
    interop.load_pipeline(broken)


def test_a_config_that_is_no_json_is_named(broken):
  (broken / "unet/config.json").write_text('{"in_channels": 1,')
  with pytest.raises(InputError, match=r"unet/config\.json is no valid JSON"):
    interop.load_pipeline(broken)


def test_a_config_of_an_unknown_class_is_named(broken):
  edit_json(broken / "unet/config.json", _class_name="UNet9DModel")
  with pytest.raises(InputError, match=r"unet.*UNet9DModel"):
    interop.load_pipeline(broken)


def test_a_config_without_a_class_is_named(broken):
  edit_json(broken / "text_encoder/config.json", architectures=None)
  with pytest.raises(InputError, match=r"text_encoder.*architectures"):
    interop.load_pipeline(broken)


def test_weights_of_another_size_than_the_config_are_refused(broken):
  edit_json(broken / "unet/config.json", in_channels=2)
  with pytest.raises(InputError, match=r"unet: 1 entries.*\n.*conv_in.weight is \[8, 1, 3, 3\]"):
    interop.load_pipeline(broken)


def test_all_missing_and_surplus_weights_are_listed(broken):
  state = load_file(broken / UNET_FILE)
  state["conv_in.wait"] = state.pop("conv_in.weight")
  del state["conv_out.bias"]
  save_file(state, broken / UNET_FILE)
  with pytest.raises(InputError) as error:
    interop.load_pipeline(broken)
  assert sorted(str(error.value).splitlines()[1:]) == [
    "  missing: conv_in.weight",
    "  missing: conv_out.bias",
    "  surplus: conv_in.wait",
  ]


def test_text_weights_that_are_there_under_both_names_are_refused(broken):
  state = load_file(broken / TEXT_FILE)
  state["text_model.final_layer_norm.bias"] = state["final_layer_norm.bias"]
  save_file(state, broken / TEXT_FILE)
  with pytest.raises(InputError, match=r"both with and without 'text_model\.'"):
    interop.load_pipeline(broken)


def test_a_truncated_file_is_named(broken):
  os.truncate(broken / UNET_FILE, (broken / UNET_FILE).stat().st_size // 2)
  with pytest.raises(InputError, match=r"diffusion_pytorch_model\.safetensors is damaged or cut"):
    interop.load_pipeline(broken)


def test_an_empty_file_is_named(broken):
  os.truncate(broken / UNET_FILE, 0)
  with pytest.raises(InputError, match="damaged or cut"):
    interop.load_pipeline(broken)


def test_a_shard_that_is_not_there_is_named(broken, torch_unet):
  (broken / UNET_FILE).unlink()
  torch_unet.save_pretrained(broken / "unet", max_shard_size="100KB")
  lost = sorted((broken / "unet").glob("*.safetensors"))[-1]
  lost.unlink()
  with pytest.raises(InputError, match=f"shards that are not there: {re.escape(lost.name)}"):
    interop.load_pipeline(broken)


def test_a_shard_index_without_a_weight_map_is_refused(broken):
  (broken / UNET_FILE).unlink()
  (broken / (UNET_FILE + ".index.json")).write_text("{}")
  with pytest.raises(InputError, match="names no shards"):
    interop.load_pipeline(broken)


def test_a_component_without_weights_says_what_it_holds(broken):
  (broken / UNET_FILE).rename(broken / "unet/diffusion_pytorch_model.fp16.safetensors")
  with pytest.raises(InputError, match=r"holds config\.json, diffusion_pytorch_model\.fp16"):
    interop.load_pipeline(broken)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_the_conversion_that_a_pickled_checkpoint_is_told_works(broken, pipeline, component):
  folder = broken / component
  (weights,) = folder.glob("*.safetensors")
  state = {name: torch.from_numpy(array) for name, array in load_file(weights).items()}
  pickled = {"unet": "diffusion_pytorch_model.bin", "text_encoder": "pytorch_model.bin"}[component]
  torch.save(state, folder / pickled)
  weights.unlink()
  with pytest.raises(InputError, match=f"pickled \\({pickled}\\)") as error:
    interop.load_pipeline(broken)
  exec(re.search(r'python -c "(.*)"', str(error.value)).group(1), {})
  loaded = interop.load_pipeline(broken)
  jax.tree.map(np.testing.assert_array_equal, loaded.params[component], pipeline.params[component])


def test_carried_components_that_are_gone_are_named(broken, tmp_path, pipeline):
  carrying = dataclasses.replace(pipeline, carried={"vae": broken / "vae"})
  with pytest.raises(InputError, match=r"vae is to be copied from .* gone"):
    interop.save_pipeline(tmp_path / "saved", carrying)


@pytest.mark.parametrize(("field", "value"), [("steps_offset", 0), ("clip_sample", True)])
def test_a_scheduler_that_diffusers_would_override_is_refused(pipeline, tokenizer, field, value):
  configs = dict(pipeline.configs)
  configs["scheduler"] = configs["scheduler"] | {field: value}
  with pytest.raises(InputError, match=f"{field} is {value}"):
    interop.pixel_pipeline(configs, pipeline.params, tokenizer)


@pytest.mark.parametrize(
  ("field", "value"), [("vocab_size", 20), ("max_position_embeddings", 4), ("eos_token_id", 2)]
)
def test_a_text_encoder_for_another_tokenizer_is_refused(pipeline, tokenizer, field, value):
  configs = dict(pipeline.configs)
  configs["text_encoder"] = configs["text_encoder"] | {field: value}
  with pytest.raises(InputError, match=f"{field} is {value}; the tokenizer asks for"):
    interop.pixel_pipeline(configs, pipeline.params, tokenizer)


def test_a_pixel_pipeline_without_a_scheduler_is_refused(pipeline, tokenizer):
  configs = {name: pipeline.configs[name] for name in ("unet", "text_encoder")}
  with pytest.raises(InputError, match="no 'scheduler'"):
    interop.pixel_pipeline(configs, pipeline.params, tokenizer)
