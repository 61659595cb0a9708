"""Folders laid out as published, with the fields of their time, at tiny size."""

import shutil

import diffusers
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop, models, pipelines
from dmpo_jax.errors import InputError
from dmpo_jax.interop import published
from tests.interop import tiny
from tests.interop.helpers import assert_same_trees, edit_json, read_json, write_json

# Fields that shape a network, which keep the tiny size; all others are as published.
SHAPES = {
  *("block_out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim"),
  *("attention_head_dim", "down_block_types", "up_block_types", "transformer_layers_per_block"),
  *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),
}
UNET = "diffusion_pytorch_model"
LEFTOVERS = ("README.md", ".gitattributes", "v1-inference.yaml", "model.ckpt", "big.safetensors")


def as_published(folder, fields):
  """Rewrites unet/config.json with the published fields."""
  tiny_config = read_json(folder / "unet/config.json")
  kept = {name: tiny_config[name] for name in SHAPES if name in fields}
  write_json(folder / "unet/config.json", {**fields, **kept})


def variant_of(folder, component, name, *, add=0.0, dtype=np.float16):
  """Writes a variant of a component's weights beside the plain ones."""
  (plain,) = (f for f in (folder / component).glob("*.safetensors") if f.name.count(".") == 1)
  state = {k: (a + np.float32(add)).astype(dtype) for k, a in load_file(plain).items()}
  save_file(state, plain.with_suffix(f".{name}.safetensors"))
  plain.with_suffix(f".{name}.bin").write_bytes(b"pickled")
  return plain


def old_tokenizer(folder):
  """The files of transformers 4: vocabulary and merges, tokens as objects, paths of the author."""
  tokenizer = tiny.make_tokenizer()
  shutil.rmtree(folder)
  folder.mkdir()
  tokenizer.backend_tokenizer.model.save(str(folder))
  token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False}
  write_json(
    folder / "tokenizer_config.json",
    {
      "add_prefix_space": False,
      "bos_token": {"__type": "AddedToken", **token, "content": "<|startoftext|>"},
      "do_lower_case": True,
      "eos_token": {"__type": "AddedToken", **token},
      "errors": "replace",
      "model_max_length": tiny.CONTEXT,
      "name_or_path": "openai/clip-vit-large-patch14",
      "pad_token": "<|endoftext|>",
      "special_tokens_map_file": "./special_tokens_map.json",
      "tokenizer_class": "CLIPTokenizer",
      "unk_token": {"__type": "AddedToken", **token},
    },
  )
  write_json(
    folder / "special_tokens_map.json",
    {
      "bos_token": {**token, "content": "<|startoftext|>"},
      "eos_token": token,
      "pad_token": "<|endoftext|>",
      "unk_token": token,
    },
  )


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
  """As stable-diffusion-v1-5: diffusers 0.6.0, two variants, a safety checker, old names."""
  folder = tiny.write_tiny_sd(tmp_path_factory.mktemp("published") / "sd15")
  edit_json(
    folder / "model_index.json",
    _diffusers_version="0.6.0",
    safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    feature_extractor=["transformers", "CLIPImageProcessor"],
    requires_safety_checker=True,
  )
  as_published(folder, published.SD15_UNET)
  for component in ("unet", "vae", "text_encoder"):
    variant_of(folder, component, "fp16")
  plain = variant_of(folder, "unet", "non_ema", add=1.0, dtype=np.float32)
  plain.with_suffix(".bin").write_bytes(b"pickled")
  text = folder / "text_encoder/model.safetensors"
  state = {f"text_model.{k}": a for k, a in load_file(text).items()}
  state["text_model.embeddings.position_ids"] = np.arange(tiny.CONTEXT)[None]
  save_file(state, text)
  config = read_json(folder / "text_encoder/config.json")
  dtype = config.pop("dtype", "float32")
  write_json(
    folder / "text_encoder/config.json",
    {
      **config,
      "_name_or_path": "openai/clip-vit-large-patch14",
      "dropout": 0.0,
      "torch_dtype": dtype,
      "transformers_version": "4.22.0.dev0",
      "max_length": 20,
      "temperature": 1.0,
    },
  )
  vae = read_json(folder / "vae/config.json")
  old = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "act_fn")
  old += ("down_block_types", "up_block_types", "layers_per_block", "norm_num_groups")
  write_json(
    folder / "vae/config.json",
    {
      "_class_name": "AutoencoderKL",
      "_diffusers_version": "0.6.0",
      "sample_size": 512,
      **{name: vae[name] for name in old},
    },
  )
  write_json(
    folder / "scheduler/scheduler_config.json",
    {
      "_class_name": "PNDMScheduler",
      "_diffusers_version": "0.6.0",
      "beta_end": 0.012,
      "beta_schedule": "scaled_linear",
      "beta_start": 0.00085,
      "clip_sample": False,
      "num_train_timesteps": 1000,
      "set_alpha_to_one": False,
      "skip_prk_steps": True,
      "steps_offset": 1,
      "trained_betas": None,
    },
  )
  old_tokenizer(folder / "tokenizer")
  for name in ("safety_checker", "feature_extractor"):
    (folder / name).mkdir()
  (folder / "safety_checker/config.json").write_text('{"architectures": ["SafetyChecker"]}')
  (folder / "safety_checker/model.safetensors").write_bytes(b"weights")
  (folder / "feature_extractor/preprocessor_config.json").write_text('{"crop_size": 224}')
  for name in LEFTOVERS:
    (folder / name).write_text("x")
  return folder


def test_sd15_as_published_is_read(sd15):
  pipeline = pipelines.load(sd15)
  functions = pipelines.build(pipeline)
  # sample_size 64 times the 2 pixels of a latent of the tiny autoencoder.
  assert functions.default_size() == (128, 128)
  assert set(pipeline.params) == {"unet", "vae", "text_encoder"}
  ids = functions.tokenize(["the digit seven"])[0]["input_ids"]
  expected = interop.tokenize(tiny.make_tokenizer(), ["the digit seven"]).ids
  np.testing.assert_array_equal(ids, expected)


def test_the_non_ema_weights_of_sd15_are_those_of_the_unet_alone(sd15):
  plain, other = pipelines.load(sd15), pipelines.load(sd15, variant="non_ema")
  for name in ("vae", "text_encoder"):
    assert_same_trees(other.params[name], plain.params[name])
  moved = other.params["unet"]["conv_out"]["bias"] - plain.params["unet"]["conv_out"]["bias"]
  np.testing.assert_allclose(moved, 1, rtol=1e-5)


def test_the_fp16_weights_of_sd15_are_read(sd15):
  half = pipelines.load(sd15, variant="fp16", dtype=None)
  assert half.params["unet"]["conv_in"]["kernel"].dtype == np.float16


def test_sd15_keeps_its_safety_checker_and_loads_in_diffusers(sd15, tmp_path):
  interop.save_pipeline(tmp_path / "saved", pipelines.load(sd15))
  assert (tmp_path / "saved/safety_checker/model.safetensors").read_bytes() == b"weights"
  theirs = diffusers.StableDiffusionPipeline.from_pretrained(
    tmp_path / "saved", safety_checker=None, feature_extractor=None
  )
  assert theirs.unet.config.sample_size == 64


SDXL_SCHEDULER = {
  "_class_name": "EulerDiscreteScheduler",
  "_diffusers_version": "0.19.0.dev0",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": False,
  "interpolation_type": "linear",
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "sample_max_value": 1.0,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "timestep_spacing": "leading",
  "trained_betas": None,
  "use_karras_sigmas": False,
}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
  """As SDXL in fp16 alone, with the autoencoder exchanged for sdxl-vae-fp16-fix."""
  folder = tiny.write_tiny_sdxl(tmp_path_factory.mktemp("published") / "sdxl")
  edit_json(folder / "model_index.json", feature_extractor=[None, None], image_encoder=[None, None])
  as_published(folder, published.SDXL_UNET)
  for component in ("unet", "text_encoder", "text_encoder_2"):
    variant_of(folder, component, "fp16").unlink()
    (folder / component / "model.onnx").write_text("x")
  edit_json(folder / "text_encoder_2/config.json", eos_token_id=2, torch_dtype="float16")
  vae = read_json(folder / "vae/config.json")
  write_json(
    folder / "vae/config.json",
    {**vae, "_name_or_path": ".", "sample_size": 512, "latents_mean": None, "latents_std": None},
  )
  write_json(folder / "scheduler/scheduler_config.json", SDXL_SCHEDULER)
  (folder / "vae_1_0").mkdir()
  (folder / "LICENSE.md").write_text("open")
  return folder


@pytest.mark.parametrize("variant", ["fp16", None])
def test_sdxl_in_fp16_with_another_autoencoder_is_read(sdxl, variant):
  pipeline = pipelines.load(sdxl, variant=variant, dtype=None)
  assert pipelines.build(pipeline).default_size() == (256, 256)
  dtypes = {
    name: p["conv_in"]["bias"].dtype for name, p in pipeline.params.items() if name[0] == "u"
  }
  assert dtypes == {"unet": np.float16}
  assert pipeline.params["vae"]["encoder"]["conv_in"]["bias"].dtype == np.float32
  assert list(pipeline.passthrough) == ["LICENSE.md"]


def test_the_refiner_is_refused_by_name(sdxl, tmp_path):
  folder = shutil.copytree(sdxl, tmp_path / "refiner")
  edit_json(
    folder / "model_index.json",
    _class_name="StableDiffusionXLImg2ImgPipeline",
    text_encoder=[None, None],
    tokenizer=[None, None],
    requires_aesthetics_score=True,
  )
  with pytest.raises(InputError, match="is a refiner of SDXL"):
    pipelines.load(folder)


TURBO = {
  "sd_turbo": {**SDXL_SCHEDULER, "sigma_max": None, "sigma_min": None, "timestep_type": "discrete"},
  "sdxl_turbo": {**SDXL_SCHEDULER, "_class_name": "EulerAncestralDiscreteScheduler"},
}


@pytest.mark.parametrize("name", TURBO)
@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_models_take_the_steps_of_diffusers(sdxl, tmp_path, name, steps):
  folder = shutil.copytree(sdxl, tmp_path / name)
  scheduler = {**TURBO[name], "timestep_spacing": "trailing"}
  write_json(folder / "scheduler/scheduler_config.json", scheduler)
  solver = pipelines.build(pipelines.load(folder, components=())).make_solver(steps)
  theirs = getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)
  theirs.set_timesteps(steps)
  np.testing.assert_allclose(solver.steps.timestep, theirs.timesteps, rtol=1e-6)


# Distilled networks

TINY_SD = {
  "mid_block_type": None,
  "mid_block_scale_factor": 1,
  "only_cross_attention": False,
  "dual_cross_attention": False,
  "encoder_hid_dim": None,
  "class_embeddings_concat": False,
  "resnet_time_scale_shift": "default",
  "timestep_post_act": None,
}
SSD_1B = {
  "mid_block_type": "UNetMidBlock2D",
  "transformer_layers_per_block": [0, [2]],
  "reverse_transformer_layers_per_block": [[1, 2], 0],
  "attention_type": "default",
  "dropout": 0.0,
  "addition_embed_type_num_heads": 64,
  "num_attention_heads": None,
}


@pytest.mark.parametrize(
  ("write", "fields", "parts"),
  [
    (tiny.write_tiny_sd, TINY_SD, set()),
    (tiny.write_tiny_sdxl, SSD_1B, {"resnets"}),
  ],
  ids=["tiny_sd", "ssd_1b"],
)
def test_a_distilled_network_is_read_with_its_middle_block_or_none(tmp_path, write, fields, parts):
  folder = write(tmp_path / "pipeline")
  config = {**read_json(folder / "unet/config.json"), **fields}
  unet = tiny.perturb(diffusers.UNet2DConditionModel.from_config(config))
  shutil.rmtree(folder / "unet")
  unet.save_pretrained(folder / "unet")
  pipeline = pipelines.load(folder)
  pipelines.build(pipeline)
  assert set(pipeline.params["unet"].get("mid_block", {})) == parts
  state = interop.to_torch_state(pipeline.params["unet"])
  assert state.keys() == unet.state_dict().keys()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"time_cond_proj_dim": 256}, "time_cond_proj_dim = 256 is not supported"),
    ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not supported"),
    ({"addition_embed_type": "image"}, "addition_embed_type = 'image' is not supported"),
    ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type = 'image_proj' is not supp"),
    ({"in_channels": 9}, "in_channels is 9, .* UNets that read masks"),
  ],
  ids=["lcm", "class", "kandinsky", "ip_adapter", "inpainting"],
)
def test_a_network_that_computes_otherwise_is_refused_by_name(sd15, tmp_path, fields, message):
  folder = shutil.copytree(sd15, tmp_path / "other")
  edit_json(folder / "unet/config.json", **fields)
  with pytest.raises(InputError, match=message):
    pipelines.build(pipelines.load(folder, components=()))


@pytest.mark.parametrize("name", published.PIPELINES)
def test_a_published_config_with_fields_of_a_newer_version_is_the_same_network(name):
  for config in published.pipeline(name).configs.values():
    if "Scheduler" not in config.get("_class_name", ""):
      later = {**config, "field_of_2030": None, "flag_of_2030": False}
      assert models.abstract(later) == models.abstract(config)
