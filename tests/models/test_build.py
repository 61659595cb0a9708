"""Building from a config: class names, refused configs, and initial parameters."""

import jax
import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.models import trees

UNET = {
  "_class_name": "UNet2DConditionModel",
  "block_out_channels": [8, 16],
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "cross_attention_dim": 12,
  "attention_head_dim": 4,
}
TEXT = {
  "architectures": ["CLIPTextModel"],
  "vocab_size": 50,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 11,
  "num_attention_heads": 3,
}
PROJECTED = {**TEXT, "architectures": ["CLIPTextModelWithProjection"], "num_hidden_layers": 1}
TEXT_TIME = {
  **UNET,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 4,
  "projection_class_embeddings_input_dim": 30,
}


@pytest.mark.parametrize("config", [UNET, TEXT])
def test_the_same_key_gives_the_same_parameters(config):
  init = models.build(config).init
  first, second = trees.flatten(init(jax.random.key(3))), trees.flatten(init(jax.random.key(3)))
  assert all(np.array_equal(first[name], second[name]) for name in first)


def test_another_key_gives_other_kernels():
  init = models.build(UNET).init
  first, second = trees.flatten(init(jax.random.key(3))), trees.flatten(init(jax.random.key(4)))
  kernels = [name for name in first if name.endswith("kernel")]
  assert not any(np.array_equal(first[name], second[name]) for name in kernels)


@pytest.mark.parametrize("config", [UNET, TEXT, TEXT_TIME, PROJECTED])
def test_initial_parameters_have_the_shapes_and_dtypes_of_the_abstract_tree(config):
  params = trees.flatten(models.build(config).init(jax.random.key(0)))
  expected = trees.flatten(models.abstract(config))
  assert {n: (a.shape, a.dtype) for n, a in params.items()} == {
    n: (a.shape, a.dtype) for n, a in expected.items()
  }


def test_an_initial_kernel_keeps_the_variance_of_its_input():
  kernel = models.build(UNET).init(jax.random.key(0))["mid_block"]["resnets"]["0"]["conv1"][
    "kernel"
  ]
  assert kernel.shape == (3, 3, 16, 16)
  np.testing.assert_allclose(kernel.std(), (9 * 16) ** -0.5, rtol=0.05)


def test_initial_scales_are_one_and_biases_zero():
  params = trees.flatten(models.build(TEXT).init(jax.random.key(0)))
  assert all(np.all(a == 1) for n, a in params.items() if n.endswith("scale"))
  assert all(np.all(a == 0) for n, a in params.items() if n.endswith("bias"))


def test_the_keys_of_list_entries_are_strings():
  layers = models.abstract(TEXT)["text_model"]["encoder"]["layers"]
  assert set(layers) == {str(i) for i in range(11)}


def test_every_field_that_diffusers_writes_is_accepted():
  written = dict(UNet2DConditionModel(**{k: v for k, v in UNET.items() if k[0] != "_"}).config)
  actual = models.abstract({**written, "_class_name": "UNet2DConditionModel"})
  assert jax.tree.structure(actual) == jax.tree.structure(models.abstract(UNET))


def test_every_field_that_transformers_writes_is_accepted():
  written = CLIPTextConfig(**TEXT).to_dict()
  assert jax.tree.structure(models.abstract(written)) == jax.tree.structure(models.abstract(TEXT))


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"_class_name": "VQModel"}, "'VQModel'.*describes no known network"),
    ({**UNET, "layer_per_block": 1}, "'layer_per_block'; did you mean 'layers_per_block'"),
    ({**UNET, "class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not supported"),
    ({**UNET, "act_fn": "mish"}, "act_fn = 'mish' is not supported, expected one of 'silu'"),
    ({**UNET, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "= 'AttnDownBlock2D'"),
    ({**UNET, "up_block_types": ["UpBlock2D"]}, "up_block_types = .* expected 2 names"),
    ({**UNET, "layers_per_block": [1, 2, 3]}, r"layers_per_block = \(1, 2, 3\).* 2 entries"),
    ({**UNET, "layers_per_block": 0}, "layers_per_block = 0.* a positive integer"),
    ({**UNET, "norm_num_groups": 3}, r"norm_num_groups = 3.* \(8, 16\)"),
    ({**UNET, "attention_head_dim": 3}, "attention_head_dim = 3.* width 8"),
    ({**UNET, "num_attention_heads": 2}, "num_attention_heads = 2.* attention_head_dim"),
    ({**UNET, "transformer_layers_per_block": [[1], [2]]}, "reverse_transformer_layers_per_block"),
    ({**UNET, "conv_in_kernel": 4}, "conv_in_kernel = 4.* an odd size"),
    ({**UNET, "cross_attention_dim": [12, 16]}, r"cross_attention_dim = \(12, 16\).* one width"),
    ({**UNET, "freq_shift": "0"}, "freq_shift = '0'.* a number that is not negative"),
    ({**UNET, "use_linear_projection": None}, "use_linear_projection = None.* true or false"),
    ({**UNET, "time_embedding_dim": 0}, "time_embedding_dim = 0.* a positive integer"),
    ({**UNET, "addition_embed_type": "text"}, "addition_embed_type = 'text'.* None, 'text_time'"),
    ({**UNET, "addition_time_embed_dim": 4}, "addition_time_embed_dim = 4.* null: .* 'text_time'"),
    (
      {**UNET, "projection_class_embeddings_input_dim": 30},
      "projection_class_embeddings_input_dim = 30.* null: .* 'text_time'",
    ),
    ({**TEXT_TIME, "addition_time_embed_dim": None}, "= None.* a positive integer"),
    (
      {**TEXT_TIME, "projection_class_embeddings_input_dim": None},
      "projection_class_embeddings_input_dim = None.* a positive integer",
    ),
    (
      {**TEXT_TIME, "projection_class_embeddings_input_dim": 24},
      r"= 24.* plus 6 \* addition_time_embed_dim = 24",
    ),
    ({**TEXT, "hidden_act": "relu"}, "hidden_act = 'relu'.* 'quick_gelu', 'gelu'"),
    ({**TEXT, "num_attention_heads": 5}, "num_attention_heads = 5.* hidden_size = 24"),
    ({**TEXT, "attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported"),
    ({**TEXT, "eos_token_id": [2, 3]}, r"eos_token_id = \(2, 3\).* an integer"),
    ({**TEXT, "layer_norm_eps": None}, "layer_norm_eps = None.* a number"),
    ({**PROJECTED, "projection_dim": None}, "CLIPTextModelWithProjection config: projection_dim"),
    ({**TEXT, "widht": 5}, "unknown field of a CLIPTextModel config 'widht'"),
  ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field_and_value(config, message):
  with pytest.raises(InputError, match=message):
    models.build(config)
