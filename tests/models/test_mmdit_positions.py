"""The table of positions: against diffusers, recovered from stored tables, and cropped."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import PatchEmbed

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.models.mmdit import positions

WIDTH = 32


def theirs(size, patch, count, width=WIDTH):
  """The table that diffusers stores."""
  embed = PatchEmbed(size, size, patch, 3, width, pos_embed_max_size=count)
  return embed, embed.pos_embed.numpy()


@pytest.mark.parametrize(("size", "patch", "count"), [(8, 2, 9), (128, 2, 192), (5, 1, 7)])
def test_the_computed_table_is_that_of_diffusers_bit_for_bit(size, patch, count):
  ours = positions.table(positions.published(size, patch, count), count, WIDTH)
  np.testing.assert_array_equal(ours, theirs(size, patch, count)[1])


@pytest.mark.parametrize(("height", "width"), [(9, 9), (1, 9), (4, 5), (8, 1)])
def test_an_image_has_the_positions_in_the_middle(height, width):
  embed, _ = theirs(8, 2, 9)
  expected = embed.cropped_pos_embed(2 * height, 2 * width)[0].numpy()
  waves = positions.side(positions.published(8, 2, 9), 9, WIDTH)
  columns, rows = positions.middle(waves, width), positions.middle(waves, height)
  actual = [np.concatenate([column, row]) for row in rows for column in columns]
  np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_stored_table_of_diffusers_has_the_positions_of_the_config(dtype):
  own = positions.published(128, 2, 48)
  stored = theirs(128, 2, 48)[1].astype(jnp.dtype(dtype))
  recovered = positions.recover(stored, own)
  assert recovered == own._replace(dtype=dtype)
  np.testing.assert_array_equal(positions.table(recovered, 48, WIDTH), stored)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("other", [(-16.0, 0.25), (0.0, 1 / 3), (3.5, 1.0), (-64 / 3, 1 / 3)])
def test_other_positions_are_recovered_from_a_stored_table(other, dtype):
  other = positions.Positions(*other, dtype)
  stored = positions.table(other, 48, 256)
  recovered = positions.recover(stored, positions.published(128, 2, 48))
  np.testing.assert_allclose(recovered[:2], other[:2], atol=1e-3)
  np.testing.assert_array_equal(positions.table(recovered, 48, 256), stored)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_a_table_that_was_once_stored_in_a_narrower_dtype_is_kept_as_it_was_rounded(narrow):
  own = positions.published(128, 2, 48)
  stored = theirs(128, 2, 48)[1].astype(jnp.dtype(narrow)).astype(np.float32)
  recovered = positions.recover(stored, own)
  assert recovered == own._replace(dtype=narrow)
  np.testing.assert_array_equal(positions.table(recovered, 48, WIDTH, "float32"), stored)


def test_positions_that_are_no_simple_fractions_are_recovered():
  other = positions.Positions(0.12345678, 0.30102999)
  recovered = positions.recover(positions.table(other, 48, 256), positions.published(128, 2, 48))
  np.testing.assert_allclose(recovered[:2], other[:2], atol=1e-6)


@pytest.mark.parametrize("entry", [(0, 0), (20, 31), (80, 5)])
@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_a_table_with_a_wrong_number_is_refused(entry, value):
  stored = theirs(8, 2, 9)[1].copy()
  stored[0][entry] += value
  with pytest.raises(InputError, match="no table of sines and cosines of evenly spaced positions"):
    positions.recover(stored, positions.published(8, 2, 9))


def test_a_table_of_zeros_is_refused():
  with pytest.raises(InputError, match="learned tables are not supported"):
    positions.recover(np.zeros((1, 81, WIDTH), np.float32), positions.published(8, 2, 9))


def test_a_table_of_integers_is_refused():
  with pytest.raises(InputError, match="is int32; expected float32, float16, bfloat16"):
    positions.recover(np.zeros((1, 81, WIDTH), np.int32), positions.published(8, 2, 9))


CONFIG = {
  "_class_name": "SD3Transformer2DModel",
  "sample_size": 8,
  "num_layers": 1,
  "num_attention_heads": 2,
  "attention_head_dim": 16,
  "joint_attention_dim": 12,
  "caption_projection_dim": 32,
  "pooled_projection_dim": 10,
  "pos_embed_max_size": 9,
}


def test_a_buffer_with_the_positions_of_the_config_changes_no_field():
  buffer = models.buffers(CONFIG)["pos_embed.pos_embed"]
  assert buffer.recover(buffer.compute(None)) == {}


def test_the_recovered_fields_give_the_stored_table_again():
  stored = positions.table(positions.Positions(-4.0, 0.5, "float16"), 9, WIDTH)
  fields = models.buffers(CONFIG)["pos_embed.pos_embed"].recover(stored)
  buffer = models.buffers({**CONFIG, **fields})["pos_embed.pos_embed"]
  np.testing.assert_array_equal(buffer.compute(None), stored)
  assert buffer.recover(stored) == {}


def test_a_network_with_other_positions_agrees_with_diffusers_with_that_table():
  from diffusers import SD3Transformer2DModel

  from tests.models import torch_map

  network = torch_map.randomise(SD3Transformer2DModel.from_config(CONFIG))
  table = positions.table(positions.Positions(-4.0, 0.5), 9, WIDTH)
  network.pos_embed.pos_embed.copy_(torch.from_numpy(table))
  fields = models.buffers(CONFIG)["pos_embed.pos_embed"].recover(table)
  params = torch_map.to_params(network, models.abstract(CONFIG))
  r = np.random.default_rng(0)
  shapes = (2, 6, 8, 16), (2, 5, 12), (2, 10)
  sample, context, pooled = (r.standard_normal(shape, np.float32) for shape in shapes)
  times = np.array([1, 500], np.float32)
  tensors = [torch_map.nchw(sample), *map(torch.tensor, (context, pooled, times))]
  with torch.no_grad():
    expected = torch_map.nhwc(network(*tensors).sample)
  apply = torch_map.jit(models.build({**CONFIG, **fields}).apply)
  assert torch_map.relative(apply(params, sample, times, context, pooled), expected) < 1e-5
  unaware = torch_map.jit(models.build(CONFIG).apply)(params, sample, times, context, pooled)
  assert torch_map.relative(unaware, expected) > 1e-2
