"""The UNet against diffusers: outputs at small size, names and shapes at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from dmpo_jax import models
from dmpo_jax.errors import InputError
from tests.models import published, torch_map

SMALL = {
  "block_out_channels": (8, 16),
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "cross_attention_dim": 12,
  "attention_head_dim": 4,
}
FAMILIES = {
  "sd15": SMALL,
  "sd21": {
    **SMALL,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "upcast_attention": True,
  },
  "ip2p": {
    **SMALL,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
  },
  "sdxl": {
    **SMALL,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 6 * 6 + 10,
  },
}
IMPLEMENTATIONS = {
  "sd15": "cpu",
  "sd21": "plain",
  "ip2p": "plain",
  "sdxl": "cpu",
  "tiny_sd": "plain",
  "ssd1b": "plain",
}

# Unequal blocks, and for each option a value that is not the default.
OTHER = {
  **SMALL,
  "in_channels": 1,
  "out_channels": 3,
  "block_out_channels": (16, 8),
  "layers_per_block": (1, 2),
  "attention_head_dim": (2, 1),
  "transformer_layers_per_block": (2, 1),
  "norm_eps": 1e-3,
  "center_input_sample": True,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "time_embedding_dim": 20,
  "conv_in_kernel": 5,
  "conv_out_kernel": 1,
}


# Distilled networks: no middle block, or one without attention, and levels of unequal depths.
TINY_SD = {**SMALL, "mid_block_type": None}
SSD_1B = {
  **FAMILIES["sdxl"],
  "mid_block_type": "UNetMidBlock2D",
  "transformer_layers_per_block": [0, [2]],
  "reverse_transformer_layers_per_block": [[1, 2], 0],
}


def random_inputs(config, size, batch=3, length=5):
  """Inputs by name, with a batch size that is no power of two and images that are not square."""
  r = np.random.default_rng(0)
  inputs = {
    "sample": r.standard_normal((batch, *size, config.get("in_channels", 4)), np.float32),
    "timesteps": np.array([0, 417, 999])[:batch],
    "encoder_hidden_states": r.standard_normal(
      (batch, length, config["cross_attention_dim"]), np.float32
    ),
  }
  if "addition_embed_type" in config:
    inputs["text_embeds"] = r.standard_normal((batch, 10), np.float32)
    sizes = [[1024, 1024, 0, 0, 1024, 1024], [511, 767, 3, 40, 512, 768], [1, 2, 3, 4, 5, 6]]
    inputs["time_ids"] = np.array(sizes[:batch], np.float32)
  return inputs


def load(config, implementation=None):
  """Diffusers' network, our model, and parameters with the same weights."""
  network = torch_map.randomise(UNet2DConditionModel(**config))
  config = {"_class_name": "UNet2DConditionModel", **config}
  params = torch_map.to_params(network, models.abstract(config))
  return network, models.build(config, compute=models.Compute(attention=implementation)), params


def call(network, inputs):
  """Diffusers' prediction, and its inputs as tensors with gradients."""
  tensors = {n: torch_map.nchw(x) if x.ndim == 4 else torch.tensor(x) for n, x in inputs.items()}
  names = [n for n in inputs if n not in ("timesteps", "time_ids")]
  for name in names:
    tensors[name] = tensors[name].to(network.dtype).requires_grad_()
  added = {n: tensors[n] for n in ("text_embeds", "time_ids") if n in tensors}
  sample, timesteps, context = list(tensors.values())[:3]
  output = network(sample, timesteps, context, added_cond_kwargs=added).sample
  return output, {name: tensors[name] for name in names}


@pytest.fixture(scope="module", params=FAMILIES)
def both(request):
  """(prediction, gradients by parameter, by input) of both, of loss = sum(w * prediction).

  One side of the image is odd, and the timesteps are not integers.
  """
  config = FAMILIES[request.param]
  network, model, params = load(config, IMPLEMENTATIONS[request.param])
  inputs = random_inputs(config, (10, 7))
  inputs["timesteps"] = np.array([0.25, 417.5, 998.9], np.float32)
  theirs, tensors = call(network, inputs)
  w = np.random.default_rng(1).standard_normal(torch_map.nhwc(theirs).shape, np.float32)
  (theirs * torch_map.nchw(w)).sum().backward()
  grads = {n: torch_map.nhwc(x.grad) if x.ndim == 4 else x.grad.numpy() for n, x in tensors.items()}
  expected = torch_map.nhwc(theirs), torch_map.to_gradients(network, params), grads

  def loss(params, varied, fixed):
    y = model.apply(params, **varied, **fixed)
    return (w * y).sum(), y

  varied = {n: inputs.pop(n) for n in grads}
  gradient = torch_map.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (_, ours), actual = gradient(params, varied, inputs)
  return (ours, *actual), expected


def test_the_prediction_of_each_family_agrees_with_diffusers(both):
  (actual, _, _), (expected, _, _) = both
  assert torch_map.relative(actual, expected) < 1e-5


def test_the_gradient_of_every_parameter_agrees_with_diffusers(both):
  (_, actual, _), (_, expected, _) = both
  name, off = torch_map.worst(actual, expected)
  assert off < 1e-3, name


def test_the_gradient_of_every_input_agrees_with_diffusers(both):
  (_, _, actual), (_, _, expected) = both
  assert actual.keys() == expected.keys()
  assert max(torch_map.relative(actual[n], expected[n]) for n in expected) < 1e-3


@pytest.mark.parametrize(
  "config", [OTHER, TINY_SD, SSD_1B], ids=["other_options", "tiny_sd", "ssd_1b"]
)
def test_unequal_blocks_and_other_options_agree_with_diffusers(config):
  network, model, params = load(config)
  inputs = random_inputs(config, (3, 5), length=1)  # odd at every level
  expected, _ = call(network, inputs)
  actual = torch_map.jit(lambda p, i: model.apply(p, **i))(params, inputs)
  assert torch_map.relative(actual, torch_map.nhwc(expected)) < 1e-5


@pytest.fixture(scope="module")
def bfloat16():
  """SDXL's UNet: float32, our bfloat16, torch's bfloat16, and ours with time_ids + 1."""
  config = {**FAMILIES["sdxl"], "transformer_layers_per_block": 1}
  network, model, params = load(config, "plain")
  inputs = random_inputs(config, (8, 6))
  exact, _ = call(network, inputs)
  theirs, _ = call(network.to(torch.bfloat16), inputs)
  apply = torch_map.jit(lambda p, i: model.apply(p, **i, dtype=jnp.bfloat16))
  ours = apply(params, inputs)
  moved = apply(params, inputs | {"time_ids": inputs["time_ids"] + np.float32(1)})
  return torch_map.nhwc(exact), ours, torch_map.nhwc(theirs), moved


def test_the_result_has_the_requested_dtype(bfloat16):
  assert bfloat16[1].dtype == jnp.bfloat16


def test_bfloat16_deviates_from_float32_no_more_than_in_torch(bfloat16):
  exact, ours, theirs, _ = bfloat16
  off, allowed = (np.square(np.float32(y) - exact).mean() ** 0.5 for y in (ours, theirs))
  assert 0 < off < 1.5 * allowed


def test_bfloat16_computation_distinguishes_1024_pixels_from_1025(bfloat16):
  _, ours, _, moved = bfloat16
  assert not np.array_equal(ours[0], moved[0])


UNEQUAL_DEPTHS = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": (320, 640),
  "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
  "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
  "transformer_layers_per_block": [[1, 2], [3, 4]],
  "reverse_transformer_layers_per_block": [[2, 1, 2], [1, 1, 3]],
}


@pytest.mark.parametrize(
  "config", [*published.UNETS.values(), UNEQUAL_DEPTHS], ids=[*published.UNETS, "unequal_depths"]
)
def test_a_full_size_network_has_the_names_and_shapes_of_diffusers(config):
  with torch.device("meta"):
    theirs = UNet2DConditionModel.from_config(config)
  assert torch_map.our_shapes(models.abstract(config)) == torch_map.torch_shapes(theirs)


@pytest.mark.parametrize(("name", "arrays"), [("sd15", 686), ("sd21", 686), ("sdxl", 1680)])
def test_a_published_network_has_its_number_of_arrays(name, arrays):
  assert len(models.trees.flatten(models.abstract(published.UNETS[name]))) == arrays


@pytest.mark.parametrize(
  ("family", "change", "message"),
  [
    ("sd15", {"sample": (2, 4, 8, 8)}, r"sample must be \[B, H, W, 4\].*\[2, 4, 8, 8\]"),
    ("sd15", {"timesteps": (1,)}, r"timesteps must be \[2\]"),
    ("sd15", {"encoder_hidden_states": (2, 12)}, r"must be \[2, L, 12\], got \[2, 12\]"),
    ("sd15", {"encoder_hidden_states": (3, 5, 12)}, r"encoder_hidden_states must be \[2, L, 12\]"),
    ("sd15", {"text_embeds": (2, 10)}, r"text_embeds \[2, 10\] cannot be used.*= null"),
    ("sd15", {"time_ids": (2, 6)}, r"time_ids \[2, 6\] cannot be used.*= null"),
    ("sdxl", {"text_embeds": None}, r"text_embeds must be \[2, 10\].*'text_time', got None"),
    ("sdxl", {"text_embeds": (2, 5, 10)}, r"text_embeds must be \[2, 10\].*got \[2, 5, 10\]"),
    ("sdxl", {"time_ids": None}, r"time_ids must be \[2, 6\].*'text_time', got None"),
    ("sdxl", {"time_ids": (2, 5)}, r"time_ids must be \[2, 6\].*got \[2, 5\]"),
  ],
)
def test_inputs_that_do_not_fit_are_refused_with_their_shapes(family, change, message):
  config = {"_class_name": "UNet2DConditionModel", **FAMILIES[family]}
  shapes = {n: x.shape for n, x in random_inputs(config, (8, 8), batch=2).items()} | change
  inputs = {n: None if s is None else np.zeros(s, np.float32) for n, s in shapes.items()}
  with pytest.raises(InputError, match=message):
    models.build(config).apply(models.abstract(config), **inputs)


@pytest.mark.parametrize("name", ["timesteps", "time_ids"])
def test_numbers_in_a_dtype_that_rounds_them_are_refused(name):
  config = {"_class_name": "UNet2DConditionModel", **FAMILIES["sdxl"]}
  inputs = random_inputs(config, (8, 8))
  inputs[name] = inputs[name].astype(jnp.bfloat16)
  with pytest.raises(InputError, match=f"{name} must be integers or float32, got bfloat16"):
    models.build(config).apply(models.abstract(config), **inputs)
