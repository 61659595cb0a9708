"""CLIP against transformers: both encoders at small size, names, shapes and counts at full size."""

import jax
import numpy as np
import pytest
import torch
import transformers

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import state_dict
from dmpo_jax.models import trees
from tests.models import torch_map

TEXT = {
  "vocab_size": 50,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "max_position_embeddings": 9,
  "bos_token_id": 48,
  "eos_token_id": 49,
}
VISION = {
  "hidden_size": 30,
  "intermediate_size": 44,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,  # a head width of its own, as that of ViT-H and bigG
  "image_size": 23,
  "patch_size": 7,
}
TINY = {
  "architectures": ["CLIPModel"],
  "projection_dim": 20,
  "text_config": {**TEXT, "hidden_act": "gelu"},
  "vision_config": {**VISION, "hidden_act": "gelu"},
}
QUICK = {**TINY, "text_config": TEXT, "vision_config": {**VISION, "layer_norm_eps": 1e-3}}
IDS = np.array([[48, 5, 7, 49, 49, 49, 49], [48, 1, 2, 3, 4, 6, 49]])
IMAGES = np.random.default_rng(0).standard_normal((3, 23, 23, 3), np.float32)


def size(text, vision, width, act):
  """A config of a published model; rows of (width, layers, heads, mlp)."""
  names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
  return {
    "architectures": ["CLIPModel"],
    "projection_dim": width,
    "text_config": {**dict(zip(names, text, strict=True)), "hidden_act": act},
    "vision_config": {**dict(zip(names, vision[:4], strict=True)), "patch_size": vision[4]}
    | {"hidden_act": act},
  }


# The counts are those of the published checkpoints.
PUBLISHED = {
  "ViT-B/32": (
    size((512, 12, 8, 2048), (768, 12, 12, 3072, 32), 512, "quick_gelu"),
    151_277_313,
  ),
  "ViT-L/14": (
    size((768, 12, 12, 3072), (1024, 24, 16, 4096, 14), 768, "quick_gelu"),
    427_616_513,
  ),
  "ViT-H/14": (size((1024, 24, 16, 4096), (1280, 32, 16, 5120, 14), 1024, "gelu"), 986_109_441),
  "bigG/14": (size((1280, 32, 20, 5120), (1664, 48, 16, 8192, 14), 1280, "gelu"), 2_539_567_105),
}


def network_of(config):
  """transformers' CLIPModel."""
  fields = {key: value for key, value in config.items() if key != "architectures"}
  return transformers.CLIPModel(transformers.CLIPConfig(**fields))


@pytest.fixture(scope="module")
def both():
  """Embeddings and gradients of a random linear function of them, ours and transformers'."""
  network = torch_map.randomise(network_of(TINY))
  params = torch_map.to_params(network, models.abstract(TINY))
  clip = models.build(TINY, compute=models.Compute(attention="plain"))
  r = np.random.default_rng(1)
  w, v = r.standard_normal((3, 20), np.float32), r.standard_normal((2, 20), np.float32)
  image = network.get_image_features(torch_map.nchw(IMAGES)).pooler_output
  text = network.get_text_features(torch.from_numpy(IDS)).pooler_output
  scale = network.logit_scale.exp()
  ((torch.from_numpy(w) * image).sum() * scale + (torch.from_numpy(v) * text).sum()).backward()

  def loss(params):
    x = clip.encode_image(params, IMAGES)
    y = clip.encode_text(params, IDS.astype(np.int32))
    return (w * x).sum() * jax.numpy.exp(params["logit_scale"]) + (v * y).sum(), (x, y)

  (_, actual), grads = torch_map.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return (actual, grads), ((image, text), torch_map.to_gradients(network, params))


def test_image_embeddings_agree_with_transformers(both):
  ((actual, _), _), ((expected, _), _) = both
  assert torch_map.relative(actual, expected.detach()) < 1e-5


def test_text_embeddings_agree_with_transformers(both):
  ((_, actual), _), ((_, expected), _) = both
  assert torch_map.relative(actual, expected.detach()) < 1e-5


def test_the_gradient_of_every_parameter_agrees_with_transformers(both):
  (_, actual), (_, expected) = both
  name, off = torch_map.worst(actual, expected)
  assert off < 1e-3, name


def test_embeddings_of_openais_activation_agree_with_transformers():
  network = torch_map.randomise(network_of(QUICK))
  params = torch_map.to_params(network, models.abstract(QUICK))
  encode = torch_map.jit(models.build(QUICK).encode_image)
  with torch.no_grad():
    expected = network.get_image_features(torch_map.nchw(IMAGES)).pooler_output
  assert torch_map.relative(encode(params, IMAGES), expected) < 1e-5


@pytest.fixture(scope="module")
def blocks():
  """transformers' image encoder, and ours as a module with its weights."""
  from flax import nnx

  from dmpo_jax.models.clip import model_config, vision

  network = torch_map.randomise(network_of(TINY))
  params = torch_map.to_params(network, models.abstract(TINY))
  config = model_config.read(TINY).vision
  module = vision.VisionTransformer(config, models.Compute(attention="plain"))
  graph, _ = nnx.split(module)
  return network.vision_model, nnx.merge(graph, trees.int_keys(params["vision_model"]))


def test_the_embeddings_of_patches_agree_with_transformers(blocks):
  theirs, ours = blocks
  with torch.no_grad():
    expected = theirs.embeddings(torch_map.nchw(IMAGES))
  assert torch_map.relative(torch_map.jit(ours.embeddings)(IMAGES), expected) < 1e-5


def test_a_layer_agrees_with_transformers(blocks):
  theirs, ours = blocks
  x = np.random.default_rng(2).standard_normal((2, 10, 30), np.float32)
  with torch.no_grad():
    expected = theirs.encoder.layers[1](torch.from_numpy(x), attention_mask=None)
  expected = expected[0] if isinstance(expected, tuple) else expected
  assert torch_map.relative(torch_map.jit(ours.encoder.layers[1])(x), expected) < 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_names_and_shapes_of_transformers(name):
  config, count = PUBLISHED[name]
  with torch.device("meta"):
    theirs = {n: tuple(t.shape) for n, t in network_of(config).state_dict().items()}
  tree = models.abstract(config)
  leaves = trees.flatten(tree)
  ours = {
    name: state_dict.torch_shape(path, leaves[path].shape)
    for name, path in state_dict.torch_names(tree).items()
  }
  assert ours == theirs
  assert trees.count(tree) == count


def test_a_published_model_can_be_built_and_applied_at_its_size():
  config, _ = PUBLISHED["ViT-B/32"]
  clip, params = models.build(config), models.abstract(config)
  images, ids = (jax.ShapeDtypeStruct(s, d) for s, d in (((2, 224, 224, 3), "f4"), ((2, 77), "i4")))
  image = jax.eval_shape(lambda p, x: clip.encode_image(p, x, dtype="bfloat16"), params, images)
  text = jax.eval_shape(lambda p, x: clip.encode_text(p, x, dtype="bfloat16"), params, ids)
  assert (image.shape, text.shape, image.dtype, text.dtype) == (*[(2, 512)] * 2, *["bfloat16"] * 2)


# Fields that transformers 4.2x wrote into both parts of OpenAI's and LAION's configs.
FORMER = {
  "add_cross_attention": False,
  "architectures": None,
  "bad_words_ids": None,
  "bos_token_id": None,
  "chunk_size_feed_forward": 0,
  "cross_attention_hidden_size": None,
  "diversity_penalty": 0.0,
  "dropout": 0.0,
  "exponential_decay_length_penalty": None,
  "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
  "initializer_factor": 1.0,
  "is_decoder": False,
  "length_penalty": 1.0,
  "num_beams": 1,
  "pruned_heads": {},
  "tie_encoder_decoder": False,
  "torch_dtype": None,
  "transformers_version": "4.24.0",
  "typical_p": 1.0,
}


def test_configs_of_former_versions_are_read_without_a_warning(caplog):
  text = {**FORMER, **TEXT, "model_type": "clip_text_model", "eos_token_id": 2}
  vision = {**FORMER, **VISION, "model_type": "clip_vision_model", "eos_token_id": None}
  whole = {
    **TINY,
    "_commit_hash": None,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "text_config": text,
    "vision_config": {**vision, "num_channels": 3},
    "text_config_dict": None,
    "torch_dtype": "float32",
    "transformers_version": None,
  }
  config = models.read_config(whole)
  assert (config.text.eos_token_id, config.vision.hidden_size) == (2, 30)
  assert not caplog.text


def test_the_parts_of_former_configs_replace_those_of_new_ones():
  old = {**TINY, "text_config_dict": TEXT, "vision_config_dict": VISION, "text_config": {"a": 1}}
  new = {**TINY, "text_config": TEXT, "vision_config": VISION}
  assert models.read_config(old) == models.read_config(new)


def test_a_new_model_has_the_initial_scale_of_clip():
  params = models.build(TINY).init(jax.random.key(0))
  np.testing.assert_allclose(np.exp(params["logit_scale"]), 1 / 0.07, rtol=1e-6)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (
      np.zeros((1, 24, 23, 3), np.float32),
      r"floats \[B, 23, 23, 3\].*got float32 \[1, 24, 23, 3\]",
    ),
    (np.zeros((1, 23, 23, 3), np.uint8), "got uint8"),
  ],
)
def test_images_of_another_size_or_kind_are_refused(images, message):
  with pytest.raises(InputError, match=message):
    models.build(TINY).encode_image(models.abstract(TINY), images)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"text_config": {"vocab_size": 0}}, "text_config: .*vocab_size = 0"),
    ({"vision_config": {**VISION, "patch_size": 24}}, "vision_config: .*at most image_size = 23"),
    ({"vision_config": {**VISION, "num_attention_heads": 4}}, "a divisor of hidden_size = 30"),
    ({"vision_config": 3}, "vision_config = 3 is not supported, expected an object"),
    ({"projection_dim": None}, "projection_dim = None"),
    ({"widths": 3}, "unknown field of a CLIPModel config 'widths'"),
  ],
)
def test_a_config_that_is_not_supported_is_refused(change, message):
  with pytest.raises(InputError, match=message):
    models.read_config({**TINY, **change})
