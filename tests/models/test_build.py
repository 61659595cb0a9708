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
    ({**UNET, "use_linear_projection": 1}, "use_linear_projection = 1.* true or false"),
    ({**UNET, "time_embedding_dim": 0}, "time_embedding_dim = 0.* a positive integer"),
    ({**UNET, "addition_embed_type": "text"}, "addition_embed_type = 'text'.* None, 'text_time'"),
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
    ({**TEXT, "attention_dropout": 1.1}, "attention_dropout = 1.1.* at most 1"),
    ({**TEXT, "num_hidden_layers": 100_000}, "num_hidden_layers = 100000.* at most 256"),
    ({**TEXT, "vocab_size": 10**30}, "vocab_size = 1000.* at most 16777216"),
    ({**TEXT, "architectures": [["CLIPTextModel"]]}, "architectures = .*a list of class names"),
    ({**TEXT, "architectures": "CLIPTextModel"}, "architectures = .*a list of class names"),
    ({**UNET, "_class_name": ["UNet2DConditionModel"]}, "_class_name = .* the name of a class"),
    ({**UNET, "layers_per_block": 1_000_000}, "layers_per_block = 1000000.* at most 64"),
    ({**UNET, "transformer_layers_per_block": 10**6}, "per_block = 1000000.* at most 64"),
    (
      {**UNET, "layers_per_block": 64, "transformer_layers_per_block": 64},
      "describes 8514 residual and transformer layers, expected at most 512",
    ),
    ({**UNET, "freq_shift": 4}, "freq_shift = 4.* less than 4"),
    ({**UNET, "norm_eps": float("nan")}, "norm_eps = nan.* not negative"),
    ({**UNET, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type = .* 'UNetMid"),
    ({**UNET, "new_field": 0.5}, "unknown field of a UNet2DConditionModel config 'new_field'"),
    ({**UNET, "new_field": [False, 1]}, "unknown field of a UNet2DConditionModel config 'new_f"),
    ({**UNET, "only_cross_attention": [False, True]}, "only_cross_attention = .* expected False"),
    ({**TEXT, "eos_token_id": [2, 3]}, r"eos_token_id = \(2, 3\).* an integer"),
    ({**TEXT, "layer_norm_eps": None}, "layer_norm_eps = None.* a number"),
    ({**PROJECTED, "projection_dim": None}, "CLIPTextModelWithProjection config: projection_dim"),
    ({**TEXT, "widht": 5}, "unknown field of a CLIPTextModel config 'widht'"),
  ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field_and_value(config, message):
  with pytest.raises(InputError, match=message):
    models.build(config)


IDLE = {
  "a field of a newer version that is off": ({"new_a": None, "new_b": False, "new_c": []}, {}),
  "one value per block": ({"only_cross_attention": [False, False]}, {}),
  "null for a flag": ({"use_linear_projection": None, "dual_cross_attention": None}, {}),
  "dropout": ({"dropout": 0.1}, {}),
  "a number that another field switches off": ({"addition_time_embed_dim": 4}, {}),
  "leftovers of training": ({"gradient_checkpointing": True, "decay": 0.999, "_x": {}}, {}),
  "depth and heads of a block without attention": (
    {"transformer_layers_per_block": [1, 0], "attention_head_dim": [4, None]},
    {"mid_block_type": "UNetMidBlock2D"},
  ),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_field_that_changes_nothing_is_no_obstacle(case):
  change, common = IDLE[case]
  plain = models.abstract({**UNET, **common})
  assert models.abstract({**UNET, **common, **change}) == plain


def test_unknown_fields_that_are_off_are_listed_once(caplog):
  config = {**UNET, "listed_b": None, "listed_a": False}
  models.build(config)
  models.build(config)
  (record,) = [r for r in caplog.records if "listed_a" in r.getMessage()]
  assert "passed over: listed_a, listed_b" in record.getMessage()


def test_dropout_that_is_not_applied_is_told(caplog):
  models.build({**TEXT, "dropout": 0.125})
  assert "dropout is 0.125, and no dropout is applied" in caplog.text
