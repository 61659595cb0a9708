"""Each part of the UNet against diffusers' own."""

import jax
import numpy as np
import pytest
import torch
from diffusers.models import downsampling, resnet, upsampling
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks
from flax import nnx

from dmpo_jax.models import attention, blocks, trees, unet
from tests.models import torch_map

WIDTH, TIME, CONTEXT, GROUPS, HEADS = 16, 12, 10, 4, 2
R = np.random.default_rng(0)
TEXT = R.standard_normal((3, 5, CONTEXT), np.float32)
# Residual layers get the time embedding activated here, and activate it themselves there.
EMBEDDING = R.standard_normal((3, TIME), np.float32)
ACTIVE = EMBEDDING / (1 + np.exp(-EMBEDDING))


def image(channels, size=(5, 6)):
  return R.standard_normal((3, *size, channels), np.float32)


def transformer_options(layers=1, linear=False):
  return attention.TransformerOptions(HEADS, layers, CONTEXT, GROUPS, linear)


def options(attentions=0, resample=True, outputs=WIDTH):
  each = (transformer_options(),) * attentions
  return blocks.BlockOptions(outputs, TIME, GROUPS, 1e-5, resample, each)


def run(module, network, *inputs, **static):
  """Our module on the weights of theirs."""
  graph, state = nnx.split(module)
  shapes = trees.string_keys(nnx.to_pure_dict(state))
  params = torch_map.to_params(torch_map.randomise(network), shapes)
  return jax.jit(lambda p, *a: nnx.merge(graph, trees.int_keys(p))(*a, **static))(params, *inputs)


def torched(x):
  return torch_map.nchw(x) if x.ndim == 4 else torch.from_numpy(x)


SHARED = {"temb_channels": TIME, "resnet_eps": 1e-5, "resnet_groups": GROUPS}
ATTENDING = {"num_attention_heads": HEADS, "cross_attention_dim": CONTEXT}


@pytest.mark.parametrize("channels", [8, WIDTH])
def test_a_residual_layer_agrees(channels):
  theirs = resnet.ResnetBlock2D(
    in_channels=channels, out_channels=WIDTH, temb_channels=TIME, groups=GROUPS, eps=1e-5
  )
  x = image(channels)
  ours = run(blocks.ResnetBlock2D(channels, options()), theirs, x, ACTIVE)
  wanted = theirs(torched(x), torched(EMBEDDING))
  assert torch_map.relative(ours, torch_map.nhwc(wanted)) < 1e-5


@pytest.mark.parametrize("linear", [False, True])
def test_a_transformer_of_two_layers_agrees(linear):
  theirs = Transformer2DModel(
    HEADS,
    WIDTH // HEADS,
    WIDTH,
    num_layers=2,
    cross_attention_dim=CONTEXT,
    norm_num_groups=GROUPS,
    use_linear_projection=linear,
  )
  x = image(WIDTH)
  ours = run(attention.Transformer2DModel(WIDTH, transformer_options(2, linear)), theirs, x, TEXT)
  wanted = theirs(torched(x), torched(TEXT)).sample
  assert torch_map.relative(ours, torch_map.nhwc(wanted)) < 1e-5


@pytest.mark.parametrize("size", [(6, 4), (5, 7), (1, 2)])
def test_downsampling_agrees(size):
  theirs, x = downsampling.Downsample2D(WIDTH, use_conv=True, name="op"), image(WIDTH, size)
  ours = run(blocks.Downsample2D(WIDTH), theirs, x)
  assert torch_map.relative(ours, torch_map.nhwc(theirs(torched(x)))) < 1e-5


@pytest.mark.parametrize("size", [(6, 8), (5, 8), (5, 7)])
def test_upsampling_to_a_size_agrees(size):
  theirs, x = upsampling.Upsample2D(WIDTH, use_conv=True), image(WIDTH, (3, 4))
  ours = run(blocks.Upsample2D(WIDTH), theirs, x, size=size)
  assert torch_map.relative(ours, torch_map.nhwc(theirs(torched(x), output_size=size))) < 1e-5


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("attends", [False, True])
def test_a_down_block_and_its_skips_agree(attends, layers):
  name = "CrossAttnDownBlock2D" if attends else "DownBlock2D"
  extra = ATTENDING if attends else {}
  theirs = getattr(unet_2d_blocks, name)(8, WIDTH, num_layers=layers, **SHARED, **extra)
  module = blocks.DownBlock(8, layers, options(layers * attends))
  x = image(8)
  found, skips = run(module, theirs, x, ACTIVE, TEXT)
  arguments = (torched(x), torched(EMBEDDING), *([torched(TEXT)] if attends else []))
  wanted, their_skips = theirs(*arguments)
  assert torch_map.relative(found, torch_map.nhwc(wanted)) < 1e-5
  assert len(skips) == len(their_skips) == layers + 1
  for ours, skip in zip(skips, their_skips, strict=True):
    assert torch_map.relative(ours, torch_map.nhwc(skip)) < 1e-5


def test_the_middle_block_agrees():
  theirs = unet_2d_blocks.UNetMidBlock2DCrossAttn(WIDTH, **SHARED, **ATTENDING)
  x = image(WIDTH)
  ours = run(blocks.MidBlock(options(1, resample=False)), theirs, x, ACTIVE, TEXT)
  wanted = theirs(torched(x), torched(EMBEDDING), torched(TEXT))
  assert torch_map.relative(ours, torch_map.nhwc(wanted)) < 1e-5


@pytest.mark.parametrize("attends", [False, True])
def test_an_up_block_agrees(attends):
  name = "CrossAttnUpBlock2D" if attends else "UpBlock2D"
  extra = ATTENDING if attends else {}
  widths = {"in_channels": 8, "out_channels": WIDTH, "prev_output_channel": 24}
  theirs = getattr(unet_2d_blocks, name)(**widths, num_layers=2, **SHARED, **extra)
  # 24 channels from below; the skips have 16 and 8, in the order in which they are read.
  x, skips = image(24), [image(WIDTH), image(8)]
  module = blocks.UpBlock(24, (WIDTH, 8), options(2 * attends))
  ours = run(module, theirs, x, skips, ACTIVE, TEXT, size=(10, 12))
  arguments = [torched(x), tuple(torched(s) for s in skips[::-1]), torched(EMBEDDING)]
  wanted = theirs(*arguments, *([torched(TEXT)] if attends else []))
  assert torch_map.relative(ours, torch_map.nhwc(wanted)) < 1e-5


@pytest.mark.parametrize(("channels", "flip", "shift"), [(8, True, 0), (7, False, 1)])
def test_the_sinusoids_agree(channels, flip, shift):
  t = np.array([0, 1, 500, 999])
  ours = unet.sinusoids(t, channels, flip=flip, shift=shift)
  wanted = get_timestep_embedding(
    torch.from_numpy(t), channels, flip_sin_to_cos=flip, downscale_freq_shift=shift
  )
  np.testing.assert_allclose(ours, wanted, atol=1e-4)
