"""Each block of the UNet against diffusers', forward and backward."""

import jax
import numpy as np
import pytest
import torch
from diffusers.models import downsampling, embeddings, resnet, upsampling
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks
from flax import nnx

from dmpo_jax import models
from dmpo_jax.models import embeddings as own_embeddings
from dmpo_jax.models import trees
from dmpo_jax.models.unet import attention, blocks
from tests.models import torch_map

WIDTH, TIME, CONTEXT, GROUPS, HEADS = 16, 12, 10, 4, 2
COMPUTE = models.Compute(attention="cpu")
R = np.random.default_rng(0)
TEXT = R.standard_normal((3, 5, CONTEXT), np.float32)
EMBEDDING = R.standard_normal((3, TIME), np.float32)


def image(channels, size=(5, 6)):
  return R.standard_normal((3, *size, channels), np.float32)


def transformer_options(layers=1, linear=False, compute=COMPUTE):
  return attention.TransformerOptions(HEADS, layers, CONTEXT, GROUPS, linear, compute)


def options(attentions=0, resample=True, outputs=WIDTH):
  each = (transformer_options(),) * attentions
  return blocks.BlockOptions(outputs, TIME, GROUPS, 1e-5, resample, COMPUTE, each)


def to_torch(x):
  return torch_map.nchw(x) if x.ndim == 4 else torch.from_numpy(x)


def to_numpy(y):
  return torch_map.nhwc(y) if y.ndim == 4 else y.detach().numpy()


def agree(module, network, inputs, ours, theirs):
  """Compares all outputs, and the gradients of a weighted sum of them by parameter and input.

  Args:
    module: Our module.
    network: diffusers' module, which gets random weights.
    inputs: A list of arrays.
    ours: `(our module with the same weights, *arrays) -> outputs`.
    theirs: `(network, *tensors) -> outputs`.
  """
  graph, state = nnx.split(module)
  shapes = trees.string_keys(nnx.to_pure_dict(state))
  params = torch_map.to_params(torch_map.randomise(network), shapes)
  tensors = [to_torch(x).requires_grad_() for x in inputs]
  expected = jax.tree.leaves(theirs(network, *tensors))
  r = np.random.default_rng(1)
  w = [r.standard_normal(to_numpy(y).shape, np.float32) for y in expected]
  sum((to_torch(a) * y).sum() for a, y in zip(w, expected, strict=True)).backward()

  def loss(params, inputs):
    outputs = jax.tree.leaves(ours(nnx.merge(graph, trees.int_keys(params)), *inputs))
    return sum((a * y).sum() for a, y in zip(w, outputs, strict=True)), outputs

  gradient = torch_map.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (_, actual), (grads, by_input) = gradient(params, inputs)
  for x, y in zip(actual, expected, strict=True):
    assert torch_map.relative(x, to_numpy(y)) < 1e-5
  name, off = torch_map.worst(grads, torch_map.to_gradients(network, params))
  assert off < 1e-3, name
  for x, tensor in zip(by_input, tensors, strict=True):
    assert torch_map.relative(x, to_numpy(tensor.grad)) < 1e-3


# Our blocks take the activated time embedding; diffusers' activate it in every residual layer.
SHARED = {"temb_channels": TIME, "resnet_eps": 1e-5, "resnet_groups": GROUPS}
ATTENDING = {"num_attention_heads": HEADS, "cross_attention_dim": CONTEXT}


def test_a_residual_layer_agrees():
  network = resnet.ResnetBlock2D(
    in_channels=8, out_channels=WIDTH, temb_channels=TIME, groups=GROUPS, eps=1e-5
  )
  agree(
    blocks.ResnetBlock2D(8, options()),
    network,
    [image(8), EMBEDDING],
    lambda module, x, t: module(x, jax.nn.silu(t)),
    lambda module, x, t: module(x, t),
  )


@pytest.mark.parametrize(
  ("layers", "linear", "implementation"), [(1, False, "plain"), (2, True, "cpu")]
)
def test_a_transformer_agrees(layers, linear, implementation):
  network = Transformer2DModel(
    HEADS,
    WIDTH // HEADS,
    WIDTH,
    num_layers=layers,
    cross_attention_dim=CONTEXT,
    norm_num_groups=GROUPS,
    use_linear_projection=linear,
  )
  agree(
    attention.Transformer2DModel(
      WIDTH, transformer_options(layers, linear, models.Compute(implementation))
    ),
    network,
    [image(WIDTH), TEXT],
    lambda module, x, text: module(x, text),
    lambda module, x, text: module(x, text).sample,
  )


@pytest.mark.parametrize("size", [(6, 4), (5, 1)])
def test_downsampling_agrees(size):
  network = downsampling.Downsample2D(WIDTH, use_conv=True, name="op")
  module = blocks.Downsample2D(WIDTH, compute=COMPUTE)
  agree(module, network, [image(WIDTH, size)], lambda m, x: m(x), lambda m, x: m(x))


@pytest.mark.parametrize("size", [(6, 8), (5, 8)])
def test_upsampling_to_a_size_agrees(size):
  network = upsampling.Upsample2D(WIDTH, use_conv=True)
  agree(
    blocks.Upsample2D(WIDTH, compute=COMPUTE),
    network,
    [image(WIDTH, (3, 4))],
    lambda module, x: module(x, size),
    lambda module, x: module(x, output_size=size),
  )


def test_a_down_block_and_its_skips_agree():
  agree(
    blocks.DownBlock(8, 2, options()),
    unet_2d_blocks.DownBlock2D(8, WIDTH, num_layers=2, **SHARED),
    [image(8), EMBEDDING],
    lambda module, x, t: module(x, jax.nn.silu(t), None),
    lambda module, x, t: module(x, t),
  )


def test_a_down_block_with_attention_and_its_skips_agree():
  agree(
    blocks.DownBlock(8, 1, options(1)),
    unet_2d_blocks.CrossAttnDownBlock2D(8, WIDTH, num_layers=1, **SHARED, **ATTENDING),
    [image(8), EMBEDDING, TEXT],
    lambda module, x, t, text: module(x, jax.nn.silu(t), text),
    lambda module, x, t, text: module(x, t, text),
  )


def test_the_middle_block_agrees():
  agree(
    blocks.MidBlock(options(1, resample=False)),
    unet_2d_blocks.UNetMidBlock2DCrossAttn(WIDTH, **SHARED, **ATTENDING),
    [image(WIDTH), EMBEDDING, TEXT],
    lambda module, x, t, text: module(x, jax.nn.silu(t), text),
    lambda module, x, t, text: module(x, t, text),
  )


# 24 channels from below; the skips have 16 and 8, in the order in which they are read.
UP = {"in_channels": 8, "out_channels": WIDTH, "prev_output_channel": 24, "num_layers": 2}


def test_an_up_block_agrees():
  agree(
    blocks.UpBlock(24, (WIDTH, 8), options()),
    unet_2d_blocks.UpBlock2D(**UP, **SHARED),
    [image(24), image(WIDTH), image(8), EMBEDDING],
    lambda module, x, a, b, t: module(x, (a, b), jax.nn.silu(t), None, size=(10, 12)),
    lambda module, x, a, b, t: module(x, (b, a), t),
  )


def test_an_up_block_with_attention_agrees():
  agree(
    blocks.UpBlock(24, (WIDTH, 8), options(2)),
    unet_2d_blocks.CrossAttnUpBlock2D(**UP, **SHARED, **ATTENDING),
    [image(24), image(WIDTH), image(8), EMBEDDING, TEXT],
    lambda module, x, a, b, t, text: module(x, (a, b), jax.nn.silu(t), text, size=(10, 12)),
    lambda module, x, a, b, t, text: module(x, (b, a), t, text),
  )


def test_the_timestep_embedding_agrees():
  agree(
    own_embeddings.TimestepEmbedding(7, TIME, compute=COMPUTE),
    embeddings.TimestepEmbedding(7, TIME),
    [R.standard_normal((3, 7), np.float32)],
    lambda module, x: module(x),
    lambda module, x: module(x),
  )


@pytest.mark.parametrize(("channels", "flip", "shift"), [(8, True, 0), (7, False, 1)])
def test_the_sinusoids_agree(channels, flip, shift):
  t = np.array([0, 1, 500.25, 999], np.float32)
  ours = own_embeddings.sinusoids(t, channels, flip=flip, shift=shift)
  expected = embeddings.get_timestep_embedding(
    torch.from_numpy(t), channels, flip_sin_to_cos=flip, downscale_freq_shift=shift
  )
  np.testing.assert_allclose(ours, expected, atol=1e-4)
