"""The parts of a pipeline against each other, and the fields that diffusers corrects."""

import dataclasses
import json

import diffusers
import pytest

from dmpo_jax import interop, pipelines
from dmpo_jax.errors import InputError
from tests.interop import tiny
from tests.interop.helpers import edit_json

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file:FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("parts")
  return {
    "sd": tiny.write_tiny_sd(root / "sd"),
    "sdxl": tiny.write_tiny_sdxl(root / "sdxl"),
    "pixels": tiny.write_tiny_pixels(root / "pixels"),
  }


@pytest.fixture(scope="module")
def loaded(folders):
  """Pipelines without parameters."""
  return {name: pipelines.load(folder, components=()) for name, folder in folders.items()}


def changed(pipeline, component, **fields):
  """The pipeline with fields of a config, or of the index, changed; ... removes one."""
  content = pipeline.model_index if component == "index" else pipeline.configs[component]
  content = {k: v for k, v in {**content, **fields}.items() if v is not ...}
  if component == "index":
    return dataclasses.replace(pipeline, model_index=content)
  return dataclasses.replace(pipeline, configs={**pipeline.configs, component: content})


def with_tokenizer(pipeline, name, **attributes):
  tokenizer = tiny.make_tokenizer()
  for attribute, value in attributes.items():
    setattr(tokenizer, attribute, value)
  return dataclasses.replace(pipeline, tokenizers={**pipeline.tokenizers, name: tokenizer})


# What diffusers corrects


@pytest.mark.parametrize(
  ("version", "size"),
  [
    ("0.6.0", 32),
    ("0.8.1.dev0", 32),
    ("0.8.9", 63),
    ("0.8.9", 80),
    ("0.9.0.dev0", 32),
    ("0.10.0", 32),
    ("0.6.0", [8, 16]),
    (..., 32),
  ],
)
def test_samples_have_the_size_that_diffusers_reads(folders, loaded, tmp_path, version, size):
  ours = changed(loaded["sd"], "unet", _diffusers_version=version, sample_size=size)
  file = tmp_path / "config.json"
  file.write_text(json.dumps(dict(ours.configs["unet"])))
  theirs = diffusers.StableDiffusionPipeline.from_pretrained(
    folders["sd"], unet=diffusers.UNet2DConditionModel.from_config(json.loads(file.read_text()))
  ).unet.config.sample_size
  height, width = theirs if isinstance(theirs, list | tuple) else (theirs, theirs)
  # The tiny autoencoder has 2 pixels for each latent.
  assert pipelines.build(ours).default_size() == (2 * height, 2 * width)


def test_sdxl_is_not_corrected(loaded):
  ours = changed(loaded["sdxl"], "unet", _diffusers_version="0.6.0", sample_size=8)
  assert pipelines.build(ours).default_size() == (16, 16)


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"])
def test_the_scheduler_is_corrected_as_in_diffusers(folders, loaded, kind):
  theirs = (
    getattr(diffusers, kind)
    .from_pretrained(
      folders["sd"],
      scheduler=diffusers.DDIMScheduler(steps_offset=0, clip_sample=True),
      image_encoder=None,
    )
    .scheduler.config
  )
  ours = changed(loaded["sd"], "scheduler", steps_offset=0, clip_sample=True)
  settings = pipelines.build(changed(ours, "index", _class_name=kind)).solver_settings()
  for field in ("steps_offset", "clip_sample"):
    assert settings["scheduler"][field] == theirs[field]


@pytest.mark.parametrize("size", ["8", 0, -8, 8.0, True, [8], [8, 8, 8], [8, "8"], 10**9, {}])
def test_a_sample_size_that_is_no_size_is_refused(loaded, size):
  functions = pipelines.build(changed(loaded["sd"], "unet", sample_size=size))
  with pytest.raises(InputError, match=r"unet/config\.json: sample_size is"):
    functions.default_size()


# Parts that do not belong together


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixels"])
def test_parts_of_one_pipeline_belong_together(loaded, name):
  functions = pipelines.build(loaded[name])
  assert {shape.shape for shape in functions.text_shapes.values()} == {(tiny.CONTEXT,)}


@pytest.mark.parametrize(
  ("name", "component", "fields", "message"),
  [
    ("sd", "unet", {"cross_attention_dim": 16}, "cross_attention_dim is 16, .* 12 of text_encoder"),
    ("sdxl", "unet", {"cross_attention_dim": 12}, r"12 of text_encoder \+ 16 of text_encoder_2"),
    ("sd", "text_encoder", {"vocab_size": 300}, "tokenizer has ids up to .* embeddings of 300"),
    ("sdxl", "text_encoder_2", {"vocab_size": 300}, "tokenizer_2 has ids up to"),
    ("sd", "text_encoder", {"max_position_embeddings": 7}, "to 8 tokens .* positions for 7"),
    ("sd", "unet", {"in_channels": 9}, "in_channels is 9, .* latents have 4 channels"),
    ("sd", "unet", {"out_channels": 8}, "out_channels is 8, .* latents have 4 channels"),
    ("sd", "vae", {"latent_channels": 16}, "in_channels is 4, .* latents have 16 channels"),
    ("sd", "vae", {"out_channels": 4}, "in_channels is 3 and out_channels 4"),
    ("pixels", "unet", {"out_channels": 2}, "in_channels is 1 and out_channels 2"),
    ("sd", "unet", {"in_channels": 8}, "a StableDiffusionPipeline has as many in as out"),
    (
      "sdxl",
      "index",
      {"_class_name": "StableDiffusionXLInstructPix2PixPipeline"},
      "has twice as many in as out",
    ),
    ("sdxl", "text_encoder_2", {"projection_dim": 12}, "leaves 10 channels .* is 12; the refiner"),
    ("sdxl", "text_encoder_2", {"architectures": ["CLIPTextModel"]}, "has no projection"),
    ("sdxl", "text_encoder_2", {"eos_token_id": 5}, "eos_token_id is 5, and captions end with"),
    ("sdxl", "index", {"force_zeros_for_empty_prompt": "no"}, "is 'no'; expected true or false"),
  ],
)
def test_parts_that_do_not_belong_together_are_named(loaded, name, component, fields, message):
  with pytest.raises(InputError, match=message):
    pipelines.build(changed(loaded[name], component, **fields))


def test_an_end_token_of_2_stands_for_the_highest_id(loaded):
  pipelines.build(changed(loaded["sdxl"], "text_encoder_2", eos_token_id=2))


def test_added_tokens_that_the_encoder_lacks_are_named(loaded):
  tokenizer = tiny.make_tokenizer()
  tokenizer.add_tokens(["<mine>"])
  pipeline = dataclasses.replace(loaded["sd"], tokenizers={"tokenizer": tokenizer})
  with pytest.raises(InputError, match="tokens that were added need an encoder"):
    pipelines.build(pipeline)


def test_contexts_of_two_lengths_are_named(loaded):
  with pytest.raises(InputError, match="contexts of 8 and 6 tokens"):
    pipelines.build(with_tokenizer(loaded["sdxl"], "tokenizer_2", model_max_length=6))


def test_a_tokenizer_without_a_length_is_named(loaded):
  with pytest.raises(InputError, match=r"tokenizer states no context length; set .* to 8"):
    pipelines.build(with_tokenizer(loaded["sd"], "tokenizer", model_max_length=10**30))


def test_captions_have_the_length_of_the_tokenizer(loaded):
  functions = pipelines.build(with_tokenizer(loaded["sd"], "tokenizer", model_max_length=6))
  assert functions.text_shapes["input_ids"].shape == (6,)
  assert functions.tokenize(["one"])[0]["input_ids"].shape == (1, 6)


def test_a_refiner_is_refused_by_name(tmp_path):
  folder = tiny.write_tiny_sdxl(tmp_path / "refiner")
  edit_json(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
  with pytest.raises(InputError, match="is a refiner of SDXL"):
    pipelines.load(folder)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_published_parts_belong_together(name):
  from dmpo_jax.interop import published

  pipelines.build(published.pipeline(name))


def test_a_class_that_is_no_text_is_refused():
  with pytest.raises(InputError, match=r"_class_name is .* the name of a class"):
    pipelines.family_of({"_class_name": ["StableDiffusionPipeline"]})


def test_new_networks_without_a_context_length_have_the_default(loaded):
  model = {k: dict(v) for k, v in loaded["pixels"].configs.items()}
  del model["text_encoder"]["max_position_embeddings"]
  pipeline = pipelines.create(model, ["one"], seed=0)
  assert interop.tokenize(pipeline.tokenizers["tokenizer"], ["one"]).ids.shape == (1, 77)
