"""Stable Diffusion 3: whole random pipelines against torch diffusers', and what is refused."""

import dataclasses
import json
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from dmpo_jax import pipelines, sampling
from dmpo_jax.commands.main import main
from dmpo_jax.diffusion import flow_config
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import stable_diffusion_3
from tests.interop import tiny_sd3

PROMPTS = ["the digit seven", "one", "the the seven one the the seven one the the seven"]
SEEDS = np.array([5, 0, 2**32 - 1])
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Whether T5 is there -> folder of a tiny random pipeline."""
  return {t5: tiny_sd3.write(tmp_path_factory.mktemp(f"sd3_{t5}"), t5=t5) for t5 in (True, False)}


@pytest.fixture
def folder(folders, tmp_path):
  """A copy of the pipeline without T5, to be changed."""
  return shutil.copytree(folders[False], tmp_path / "sd3")


def change(path, **fields):
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def torch_pipeline(folder, t5):
  absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
  pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **absent)
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


def torch_images(pipeline, noise, *, num_steps=4, **options):
  """[N, H, W, C] in [0, 1]."""
  with torch.inference_mode():
    return pipeline(
      PROMPTS,
      latents=torch.from_numpy(np.moveaxis(np.array(noise), -1, 1)),
      num_inference_steps=num_steps,
      output_type="np",
      **options,
    ).images


def our_images(pipeline, *, num_steps=4, size=None, guidance=1.0, negative=None, solver=None):
  functions = pipelines.build(pipeline)
  sampler = pipelines.make_sampler(
    functions,
    functions.make_solver(num_steps, name=solver, size=size),
    size=size,
    guidance=guidance,
    negative=negative is not None,
  )
  inputs, _ = pipelines.sampling_inputs(functions, PROMPTS, SEEDS, negative=negative, size=size)
  images = pipelines.sample_all(
    sampler, pipeline.params, inputs, batch_size=3, devices=jax.devices()[:1]
  )
  return np.clip(images / 2 + 0.5, 0, 1)


CASES = {
  "its own size and scheduler": (True, None, {}, {"guidance_scale": 7.0}),
  "high, negative prompt": (
    True,
    None,
    {},
    {"guidance_scale": 4.5, "negative_prompt": "one", "height": 24, "width": 8},
  ),
  "wide, no T5, shift by size": (
    False,
    "euler",
    DYNAMIC,
    {"guidance_scale": 3.0, "height": 16, "width": 40},
  ),
  "heun, no guidance": (False, "heun", {}, {"guidance_scale": 1.0}),
  "dpm solver": (False, "dpm_solver_pp_2m", {}, {"guidance_scale": 3.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_images_are_those_of_diffusers_from_the_same_noise(case, folders):
  t5, solver, fields, options = CASES[case]
  pipeline = pipelines.load(folders[t5])
  config = {**pipeline.configs["scheduler"], **fields}
  pipeline = dataclasses.replace(pipeline, configs={**pipeline.configs, "scheduler": config})
  size = (options["height"], options["width"]) if "height" in options else None
  negative = options.get("negative_prompt")
  ours = our_images(
    pipeline,
    size=size,
    guidance=options["guidance_scale"],
    negative=negative,
    solver=solver,
  )
  theirs = torch_pipeline(folders[t5], t5)
  if solver == "dpm_solver_pp_2m":
    fields = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
  if solver:
    cls = getattr(diffusers, flow_config.CLASSES[solver])
    theirs.scheduler = cls.from_config(theirs.scheduler.config, **fields)
  height, width = size or (16, 16)
  noise = sampling.initial_noise(SEEDS, (height // 2, width // 2, 4))
  if negative:
    options = {**options, "negative_prompt": [negative] * len(PROMPTS)}
  expected = torch_images(theirs, noise, **options)
  assert expected.std() > 0.05
  np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_an_exported_pipeline_draws_the_same_images_in_diffusers(folders, tmp_path):
  pipeline = pipelines.load(folders[True])
  pipelines.save(tmp_path / "saved", pipeline)
  noise = sampling.initial_noise(SEEDS, (8, 8, 4))
  images = [
    torch_images(torch_pipeline(f, True), noise, num_steps=2, guidance_scale=3.0)
    for f in (folders[True], tmp_path / "saved")
  ]
  np.testing.assert_array_equal(*images)


def test_text_embeddings_are_those_of_diffusers(folders):
  for t5 in (True, False):
    pipeline = pipelines.load(folders[t5])
    functions = pipelines.build(pipeline)
    text, truncated = functions.tokenize(PROMPTS)
    encoded = jax.jit(functions.encode_text)(pipeline.params, text)
    encoded = functions.condition(encoded, None, None)
    with torch.inference_mode():
      hidden, _, pooled, _ = torch_pipeline(folders[t5], t5).encode_prompt(PROMPTS, None, None)
    assert truncated == 1
    assert hidden.shape == (3, 8 + 256, tiny_sd3.JOINT)
    np.testing.assert_allclose(encoded["encoder_hidden_states"], hidden, atol=5e-5)
    np.testing.assert_allclose(encoded["pooled_projections"], pooled, atol=1e-5)


def test_encoded_text_passes_through_and_carries_no_zeros(folders):
  pipeline = pipelines.load(folders[False])
  functions = pipelines.build(pipeline)
  encoded = jax.jit(functions.encode_text)(pipeline.params, functions.tokenize(PROMPTS)[0])
  assert {name: x.shape for name, x in encoded.items()} == {
    "clip_hidden_states": (3, 8, 20),
    "pooled_projections": (3, 16),
  }
  again = functions.encode_text({}, encoded)
  for name, x in encoded.items():
    np.testing.assert_array_equal(again[name], x)


def test_the_network_is_given_a_thousand_times_the_noise_level(folders):
  pipeline = pipelines.load(folders[False])
  functions = pipelines.build(pipeline)
  x = np.asarray(sampling.initial_noise(SEEDS, (8, 8, 4)))
  text = jax.jit(functions.encode_text)(pipeline.params, functions.tokenize(PROMPTS)[0])
  text = functions.condition(text, None, None)
  t = np.float32([0.02, 0.5, 1])
  ours = jax.jit(functions.denoise)(pipeline.params, x, t, text)
  transformer = torch_pipeline(folders[False], False).transformer
  with torch.inference_mode():
    theirs = transformer(
      torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
      torch.from_numpy(np.array(text["encoder_hidden_states"])),
      torch.from_numpy(np.array(text["pooled_projections"])),
      torch.from_numpy(1000 * t),
    ).sample
  np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), atol=1e-4)


def test_the_fingerprint_depends_on_t5_and_its_tokenizer(folders):
  with_t5, without = (
    pipelines.encoder_fingerprint(pipelines.load(folders[t5]), embeddings=True)
    for t5 in (True, False)
  )
  assert set(with_t5["encoders"]) - set(without["encoders"]) == {"text_encoder_3"}
  assert set(with_t5["tokenizers"]) - set(without["tokenizers"]) == {"text_encoder_3"}
  images_only = pipelines.encoder_fingerprint(pipelines.load(folders[True]), embeddings=False)
  assert set(images_only["encoders"]) == {"vae"}
  json.dumps(with_t5)


def test_the_text_shapes_are_those_of_the_tokens(folders):
  functions = pipelines.build(pipelines.load(folders[True], components=()))
  tokens = functions.tokenize(["one"])[0]
  assert {k: (v.shape, v.dtype) for k, v in functions.text_shapes.items()} == {
    k: (v.shape[1:], v.dtype) for k, v in tokens.items()
  }


@pytest.mark.parametrize(
  ("file", "fields", "message"),
  [
    ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler, of a"),
    ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas is True"),
    ("transformer/config.json", {"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm'"),
    ("transformer/config.json", {"axes_dims_rope": [16, 56, 56]}, "axes_dims_rope"),
    ("transformer/config.json", {"in_channels": 8}, "in_channels is 8; expected 4"),
    ("transformer/config.json", {"out_channels": 8}, "out_channels is 8; expected 4"),
    ("transformer/config.json", {"pooled_projection_dim": 12}, "pooled_projection_dim is 12, but"),
    ("transformer/config.json", {"joint_attention_dim": 16}, "joint_attention_dim is 16, less"),
    ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "without projection"),
    ("model_index.json", {"_max_sequence_length": 1000}, "_max_sequence_length is 1000"),
  ],
)
def test_a_pipeline_that_cannot_be_used_is_refused_by_field_and_value(
  folder, file, fields, message
):
  change(folder / file, **fields)
  with pytest.raises(InputError, match=message):
    pipelines.build(pipelines.load(folder, components=()))


@pytest.mark.parametrize("number", ["", "_2", "_3"])
def test_a_tokenizer_with_more_ids_than_its_encoder_is_refused(folders, number):
  pipeline = pipelines.load(folders[True], components=())
  name = f"text_encoder{number}"
  config = {**pipeline.configs[name], "vocab_size": 9}
  changed = dataclasses.replace(pipeline, configs={**pipeline.configs, name: config})
  with pytest.raises(InputError, match=f"tokenizer{number} has ids up to .* embeddings of 9"):
    pipelines.build(changed)


def test_a_flow_scheduler_beside_a_unet_is_refused(tmp_path):
  from tests.interop import tiny

  folder = tiny.write_tiny_sd(tmp_path / "sd")
  change(
    folder / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"
  )
  with pytest.raises(InputError, match="of flow matching; this pipeline's network predicts noise"):
    pipelines.build(pipelines.load(folder, components=()))


def test_a_missing_t5_folder_is_refused_with_advice(folders, tmp_path):
  folder = shutil.copytree(folders[True], tmp_path / "sd3")
  shutil.rmtree(folder / "text_encoder_3")
  with pytest.raises(InputError, match=r'no text_encoder_3/.*"text_encoder_3": \[null, null\]'):
    pipelines.load(folder)


def test_a_t5_without_its_tokenizer_is_refused(folders, tmp_path):
  folder = shutil.copytree(folders[True], tmp_path / "sd3")
  change(folder / "model_index.json", tokenizer_3=[None, None])
  with pytest.raises(InputError, match="a text_encoder_3 and no tokenizer_3"):
    pipelines.build(pipelines.load(folder, components=())).tokenize(["one"])


@pytest.mark.parametrize(
  ("size", "message"),
  [
    ((18, 16), "height is 18; expected a multiple of 4, the pixels of a patch"),
    ((16, 2), "width is 2; expected a multiple of 4"),
    ((16, 52), "width is 52; expected at most 48, as pos_embed_max_size 12"),
  ],
)
def test_a_size_that_has_no_patches_is_refused(folders, size, message):
  functions = pipelines.build(pipelines.load(folders[False], components=()))
  with pytest.raises(InputError, match=message):
    functions.sample_shape(size)


def test_images_to_train_on_of_a_size_without_patches_are_refused(folders):
  pipeline = pipelines.load(folders[False], components=["vae"])
  with pytest.raises(InputError, match=r"the images are 18x16; .* multiples of 4, the pixels of a"):
    pipelines.build(pipeline).posterior(pipeline.params, jnp.zeros((1, 18, 16, 3)))


def test_a_lora_adapts_both_streams_of_attention(folders):
  functions = pipelines.build(pipelines.load(folders[False], components=()))
  assert set(functions.lora_targets["transformer"]) == set(stable_diffusion_3.ATTENTION)
  assert functions.text_encoders == ("text_encoder", "text_encoder_2")


def test_the_command_samples_and_refuses_what_the_family_does_not_have(folders, tmp_path, capsys):
  command = ["sample", "--pipeline", str(folders[False]), "--prompt", "one", "--steps", "2"]
  command += ["--height", "8", "--width", "16", "--guidance", "1"]
  assert main([*command, "--solver", "heun", "--out", str(tmp_path / "out")]) == 0
  assert Image.open(tmp_path / "out" / "grid.png").height == 8
  assert main([*command, "--solver", "ddim", "--out", str(tmp_path / "ddim")]) == 2
  assert "unknown solver of flow matching 'ddim'" in capsys.readouterr().err
  assert main([*command, "--width", "18", "--out", str(tmp_path / "odd")]) == 2
  assert "width is 18; expected a multiple of 4" in capsys.readouterr().err
