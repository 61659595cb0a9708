"""The whole UNet against diffusers on small random configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from dmpo_jax import models
from dmpo_jax.errors import InputError
from tests.models import torch_map

# Odd sizes, unequal blocks, and for each option at least one variant that differs from the first.
VARIANTS = {
  "three_unequal_blocks": {
    "in_channels": 3,
    "out_channels": 5,
    "block_out_channels": (16, 32, 24),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": (1, 2, 1),
    "norm_num_groups": 8,
    "cross_attention_dim": 20,
    "attention_head_dim": (2, 4, 3),
    "transformer_layers_per_block": (1, 1, 2),
  },
  "linear_projection": {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "norm_eps": 1e-3,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "transformer_layers_per_block": 2,
    "use_linear_projection": True,
    "center_input_sample": True,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "time_embedding_dim": 20,
    "conv_in_kernel": 5,
    "conv_out_kernel": 1,
  },
}
SIZES = {"three_unequal_blocks": (10, 7), "linear_projection": (8, 6)}


def draw(config, size, batch=3, length=5):
  """A batch of inputs; its size is no power of two."""
  r = np.random.default_rng(0)
  x = r.standard_normal((batch, *size, config["in_channels"]), np.float32)  # [B, H, W, C]
  context = r.standard_normal((batch, length, config["cross_attention_dim"]), np.float32)
  return x, np.array([0, 417, 999])[:batch], context


def load(name):
  """Diffusers' network, ours, and the same weights for ours."""
  network = torch_map.randomise(UNet2DConditionModel(**VARIANTS[name]))
  config = {"_class_name": "UNet2DConditionModel", **VARIANTS[name]}
  params = torch_map.to_params(network, models.abstract(config))
  return network, models.build(config), params


@pytest.fixture(scope="module", params=VARIANTS)
def both(request):
  """(prediction, loss gradient) of both: loss = sum(w * prediction) with random weights w."""
  network, model, params = load(request.param)
  x, t, context = draw(VARIANTS[request.param], SIZES[request.param])
  theirs = network(torch_map.nchw(x), torch.from_numpy(t), torch.from_numpy(context)).sample
  w = np.random.default_rng(1).standard_normal(torch_map.nhwc(theirs).shape, np.float32)
  (theirs * torch_map.nchw(w)).sum().backward()
  gradients = UNet2DConditionModel(**VARIANTS[request.param])
  with torch.no_grad():
    for into, source in zip(gradients.parameters(), network.parameters(), strict=True):
      into.copy_(source.grad)

  def loss(params):
    y = model.apply(params, x, t, context)
    return (w * y).sum(), y

  (_, ours), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return (ours, slopes), (torch_map.nhwc(theirs), torch_map.to_params(gradients, params))


def test_the_prediction_agrees_with_diffusers(both):
  (ours, _), (theirs, _) = both
  assert torch_map.relative(ours, theirs) < 1e-5


def test_the_gradient_of_every_parameter_agrees_with_diffusers(both):
  (_, ours), (_, theirs) = both
  ours, theirs = models.trees.flatten(ours), models.trees.flatten(theirs)
  # A few gradients (of keys' offsets, of biases before a norm) are zero but for rounding.
  floor = 1e-4 * max(np.abs(g).max() for g in theirs.values())
  off = {n: np.abs(ours[n] - g).max() / max(np.abs(g).max(), floor) for n, g in theirs.items()}
  assert max(off.values()) < 1e-3, max(off, key=off.get)


@pytest.mark.parametrize("size", [(5, 9), (4, 16), (3, 3)])
@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_that_do_not_halve_evenly_agree_with_diffusers(name, size):
  network, model, params = load(name)
  x, t, context = draw(VARIANTS[name], size, batch=1, length=1)
  with torch.no_grad():
    theirs = network(torch_map.nchw(x), torch.from_numpy(t), torch.from_numpy(context)).sample
  ours = jax.jit(model.apply)(params, x, t, context)
  assert torch_map.relative(ours, torch_map.nhwc(theirs)) < 1e-5


FULL = {
  "sd15": {"sample_size": 64, "cross_attention_dim": 768},
  "sd21": {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
  },
  "unequal_depths": {
    "block_out_channels": (320, 640),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "transformer_layers_per_block": [[1, 2], [3, 4]],
    "reverse_transformer_layers_per_block": [[2, 1, 2], [1, 1, 3]],
  },
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_size_network_has_the_names_and_shapes_of_diffusers(name):
  with torch.device("meta"):
    theirs = UNet2DConditionModel(**FULL[name])
  wanted = {}
  for weight, tensor in theirs.state_dict().items():
    shape = tuple(tensor.shape)
    wanted[weight] = (*shape[2:], shape[1], shape[0]) if len(shape) > 1 else shape
  config = {"_class_name": "UNet2DConditionModel", **FULL[name]}
  found = {}
  for path, leaf in models.trees.flatten(models.abstract(config)).items():
    stem, _, kind = path.rpartition(".")
    found[f"{stem}.{'bias' if kind == 'bias' else 'weight'}"] = leaf.shape
  assert found == wanted


def test_the_sd15_network_has_686_arrays():
  config = {"_class_name": "UNet2DConditionModel", **FULL["sd15"]}
  assert len(models.trees.flatten(models.abstract(config))) == 686


def test_bfloat16_computation_stays_near_float32():
  _, model, params = load("linear_projection")
  inputs = draw(VARIANTS["linear_projection"], (8, 6))
  exact = jax.jit(model.apply)(params, *inputs)
  rounded = jax.jit(lambda *a: model.apply(*a, dtype=jnp.bfloat16))(params, *inputs)
  assert rounded.dtype == jnp.bfloat16
  assert 0 < torch_map.relative(rounded, exact) < 0.05


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"sample": (2, 1, 8, 8)}, r"sample must be \[B, H, W, 1\].*\[2, 1, 8, 8\]"),
    ({"timesteps": (1,)}, r"timesteps must be \[2\]"),
    ({"context": (2, 12)}, r"encoder_hidden_states must be \[2, L, 12\], got \[2, 12\]"),
    ({"context": (3, 5, 12)}, r"encoder_hidden_states must be \[2, L, 12\]"),
  ],
)
def test_inputs_that_do_not_fit_are_refused_with_their_shapes(change, message):
  config = {"_class_name": "UNet2DConditionModel", **VARIANTS["linear_projection"]}
  shapes = {"sample": (2, 8, 8, 1), "timesteps": (2,), "context": (2, 5, 12), **change}
  with pytest.raises(InputError, match=message):
    models.build(config).apply(models.abstract(config), *(np.zeros(s) for s in shapes.values()))
