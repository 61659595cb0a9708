"""The MMDiT against diffusers: outputs and gradients at small size, names at full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.models import functional
from dmpo_jax.models.mmdit import blocks
from tests.models import published, torch_map

SMALL = {
  "sample_size": 8,
  "num_layers": 2,
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "in_channels": 3,
  "out_channels": 5,
  "joint_attention_dim": 12,
  "caption_projection_dim": 16,
  "pooled_projection_dim": 10,
  "pos_embed_max_size": 9,
}
FAMILIES = {
  "sd3": SMALL,
  "sd35_medium": {**SMALL, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
  "sd35_large": {**SMALL, "qk_norm": "rms_norm", "num_layers": 3, "out_channels": None},
  "one_layer": {
    **SMALL,
    "num_layers": 1,
    "dual_attention_layers": (0,),
    "patch_size": 1,
    "sample_size": 3,
  },
}
IMPLEMENTATIONS = {"sd3": "cpu", "sd35_medium": "cpu", "sd35_large": "plain", "one_layer": "plain"}
SIZES = {"sd3": (6, 10), "sd35_medium": (18, 2), "sd35_large": (4, 6), "one_layer": (5, 7)}


def random_inputs(config, size, batch=3, length=5):
  """Inputs in order, with images that are not square and timesteps that are not integers."""
  r = np.random.default_rng(0)
  return (
    r.standard_normal((batch, *size, config["in_channels"]), np.float32),
    np.array([0.25, 417.5, 1000], np.float32)[:batch],
    r.standard_normal((batch, length, config["joint_attention_dim"]), np.float32),
    r.standard_normal((batch, config["pooled_projection_dim"]), np.float32),
  )


def load(config, implementation=None, **options):
  """Diffusers' network, our model, and parameters with the same weights."""
  network = torch_map.randomise(SD3Transformer2DModel(**config))
  config = {"_class_name": "SD3Transformer2DModel", **config}
  params = torch_map.to_params(network, models.abstract(config))
  compute = models.Compute(attention=implementation, **options)
  return network, models.build(config, compute=compute), params


def call(network, inputs):
  """Diffusers' prediction, and its float inputs as tensors with gradients."""
  sample, timesteps, context, pooled = inputs
  tensors = [torch_map.nchw(sample), torch.tensor(context), torch.tensor(pooled)]
  tensors = [x.to(network.dtype).requires_grad_() for x in tensors]
  return network(*tensors, torch.tensor(timesteps)).sample, tensors


@pytest.fixture(scope="module", params=FAMILIES)
def both(request):
  """(prediction, gradients by parameter, by input) of both, of loss = sum(w * prediction)."""
  config = FAMILIES[request.param]
  network, model, params = load(config, IMPLEMENTATIONS[request.param])
  inputs = random_inputs(config, SIZES[request.param])
  theirs, (sample, context, pooled) = call(network, inputs)
  w = np.random.default_rng(1).standard_normal(torch_map.nhwc(theirs).shape, np.float32)
  (theirs * torch_map.nchw(w)).sum().backward()
  expected = (
    torch_map.nhwc(theirs),
    torch_map.to_gradients(network, params),
    [torch_map.nhwc(sample.grad), context.grad.numpy(), pooled.grad.numpy()],
  )

  def loss(params, sample, context, pooled):
    y = model.apply(params, sample, inputs[1], context, pooled)
    return (w * y).sum(), y

  gradient = torch_map.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
  (_, ours), (params, *grads) = gradient(params, inputs[0], *inputs[2:])
  return (ours, params, grads), expected


def test_the_prediction_of_each_family_agrees_with_diffusers(both):
  (actual, _, _), (expected, _, _) = both
  assert torch_map.relative(actual, expected) < 1e-5


def test_the_gradient_of_every_parameter_agrees_with_diffusers(both):
  (_, actual, _), (_, expected, _) = both
  name, off = torch_map.worst(actual, expected)
  assert off < 1e-3, name


def test_the_gradient_of_every_input_agrees_with_diffusers(both):
  (_, _, actual), (_, _, expected) = both
  assert max(map(torch_map.relative, actual, expected)) < 1e-3


@pytest.fixture(scope="module", params=[(False, True), (True, True), (True, False)], ids=str)
def block(request):
  """(results, gradients by parameter) of a joint block of both; dual or not, last or not."""
  dual, text_output = request.param
  theirs = torch_map.randomise(
    JointTransformerBlock(16, 2, 8, not text_output, "rms_norm", use_dual_attention=dual)
  )
  compute = models.Compute("cpu")
  ours = blocks.JointTransformerBlock(
    16, 2, True, dual=dual, text_output=text_output, compute=compute
  )
  ours.config = None
  run = functional.functional(ours)
  params = torch_map.to_params(theirs, run.shapes)
  r = np.random.default_rng(0)
  x, text, conditioning = (
    r.standard_normal(s, np.float32) for s in ((3, 7, 16), (3, 4, 16), (3, 16))
  )
  text_result, result = theirs(*map(torch.tensor, (x, text, conditioning)))
  expected = [y for y in (result, text_result) if y is not None]
  w = [r.standard_normal(y.shape, np.float32) for y in expected]
  sum((y * torch.tensor(v)).sum() for y, v in zip(expected, w, strict=True)).backward()

  def loss(params):
    inputs = (x, text, jax.nn.silu(conditioning))
    results = [y for y in run.run(lambda b, i: b(*i), params, inputs) if y is not None]
    return sum((y * v).sum() for y, v in zip(results, w, strict=True)), results

  (_, results), gradients = torch_map.jit(jax.value_and_grad(loss, has_aux=True))(params)
  arrays = [y.detach().numpy() for y in expected]
  return (results, gradients), (arrays, torch_map.to_gradients(theirs, run.shapes))


def test_the_results_of_a_joint_block_agree_with_diffusers(block):
  (actual, _), (expected, _) = block
  assert len(actual) == len(expected)
  assert max(map(torch_map.relative, actual, expected)) < 1e-5


def test_the_gradients_of_a_joint_block_agree_with_diffusers(block):
  (_, actual), (_, expected) = block
  name, off = torch_map.worst(actual, expected)
  assert off < 1e-3, name


@pytest.fixture(scope="module")
def bfloat16():
  """SD3.5-medium: float32, our bfloat16, torch's bfloat16."""
  config = FAMILIES["sd35_medium"]
  network, model, params = load(config, "plain")
  inputs = random_inputs(config, (8, 6))
  exact, _ = call(network, inputs)
  theirs, _ = call(network.to(torch.bfloat16), inputs)
  ours = torch_map.jit(lambda p, i: model.apply(p, *i, dtype=jnp.bfloat16))(params, inputs)
  return torch_map.nhwc(exact), ours, torch_map.nhwc(theirs)


def test_the_result_has_the_requested_dtype(bfloat16):
  assert bfloat16[1].dtype == jnp.bfloat16


def test_bfloat16_deviates_from_float32_no_more_than_in_torch(bfloat16):
  exact, ours, theirs = bfloat16
  off, allowed = (np.square(np.float32(y) - exact).mean() ** 0.5 for y in (ours, theirs))
  assert 0 < off < 1.5 * allowed


@pytest.mark.parametrize("name", published.MMDITS)
def test_a_full_size_network_has_the_names_and_shapes_of_diffusers(name):
  config = published.MMDITS[name]
  with torch.device("meta"):
    theirs = SD3Transformer2DModel.from_config(config)
  expected = torch_map.torch_shapes(theirs)
  table = expected.pop("pos_embed.pos_embed")
  assert torch_map.our_shapes(models.abstract(config)) == expected
  assert {k: v.shape for k, v in models.buffers(config).items()} == {
    "pos_embed.pos_embed": tuple(theirs.pos_embed.pos_embed.shape)
  }
  assert len(table) == 3


@pytest.mark.parametrize(
  ("name", "billions"), [("sd3_medium", 2.028), ("sd35_medium", 2.243), ("sd35_large", 8.057)]
)
def test_a_published_network_has_its_number_of_parameters(name, billions):
  count = models.trees.count(models.abstract(published.MMDITS[name]))
  assert count == pytest.approx(billions * 1e9, abs=1e6)


def test_every_field_that_diffusers_writes_is_accepted():
  config = FAMILIES["sd35_medium"]
  written = {**SD3Transformer2DModel(**config).config, "_class_name": "SD3Transformer2DModel"}
  written["_diffusers_version"] = "0.42.0"
  expected = models.abstract({**config, "_class_name": "SD3Transformer2DModel"})
  assert jax.tree.structure(models.abstract(written)) == jax.tree.structure(expected)


def test_layers_that_do_not_exist_may_be_listed_as_dual():
  config = {**SMALL, "_class_name": "SD3Transformer2DModel", "dual_attention_layers": [0, 12]}
  blocks = models.abstract(config)["transformer_blocks"]
  assert [name for name, block in blocks.items() if "attn2" in block] == ["0"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm'.* one of None, 'rms_norm'"),
    ({"caption_projection_dim": 12}, "caption_projection_dim = 12.* = 16, the width of both"),
    ({"num_layers": 0}, "num_layers = 0.* a positive integer"),
    ({"num_layers": True}, "num_layers = True.* a positive integer"),
    ({"num_layers": 100_000}, "num_layers = 100000.* at most 256"),
    ({"pos_embed_max_size": 10**6}, "pos_embed_max_size = 1000000.* at most 4096"),
    ({"_positions": {"first": 0, "step": float("inf"), "dtype": "float32"}}, "_positions = .*inf"),
    ({"pos_embed_max_size": None}, "pos_embed_max_size = None.* a positive integer"),
    ({"dual_attention_layers": 1}, "dual_attention_layers = 1.* a list of numbers of layers"),
    ({"dual_attention_layers": ["0"]}, r"dual_attention_layers = \('0',\).* a list of numbers"),
    ({"attention_head_dim": 1}, "attention_head_dim = 1.* divisible by 4, here 2"),
    ({"sample_size": 1}, "sample_size = 1.* at least patch_size = 2"),
    ({"out_channels": 0}, "out_channels = 0.* a positive integer"),
    ({"guidance_embeds": True}, "unknown field of a SD3Transformer2DModel config 'guidance_emb"),
    ({"_positions": [1, 2]}, r"_positions = \[1, 2\] is not supported, expected numbers first"),
    ({"_positions": {"first": 0, "step": 1, "dtype": "int8"}}, "_positions = .*'int8'"),
    ({"_positions": {"first": 0, "step": "x", "dtype": "float32"}}, "_positions = .*'x'"),
  ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field_and_value(change, message):
  with pytest.raises(InputError, match=message):
    models.build({"_class_name": "SD3Transformer2DModel", **SMALL, **change})


@pytest.mark.parametrize(
  ("position", "shape", "message"),
  [
    (0, (2, 3, 8, 8), r"sample must be \[B, H, W, 3\].*\[2, 3, 8, 8\]"),
    (0, (2, 8, 7, 3), "sample is 8x7; height and width must be multiples of 2"),
    (0, (2, 20, 8, 3), "sample is 20x8; .*at most 18 "),
    (0, (2, 0, 8, 3), "sample is 0x8"),
    (1, (1,), r"timesteps must be \[2\]"),
    (2, (2, 12), r"encoder_hidden_states must be \[2, L, 12\], got \[2, 12\]"),
    (2, (1, 5, 12), r"encoder_hidden_states must be \[2, L, 12\], got \[1, 5, 12\]"),
    (3, (2, 5, 10), r"pooled_projections must be \[2, 10\], got \[2, 5, 10\]"),
  ],
)
def test_inputs_that_do_not_fit_are_refused_with_their_shapes(position, shape, message):
  config = {"_class_name": "SD3Transformer2DModel", **SMALL}
  inputs = list(random_inputs(config, (8, 8), batch=2))
  inputs[position] = np.zeros(shape, np.float32)
  with pytest.raises(InputError, match=message):
    models.build(config).apply(models.abstract(config), *inputs)


def test_timesteps_in_a_dtype_that_rounds_them_are_refused():
  config = {"_class_name": "SD3Transformer2DModel", **SMALL}
  sample, timesteps, *text = random_inputs(config, (8, 8))
  with pytest.raises(InputError, match="timesteps must be integers or float32, got bfloat16"):
    models.build(config).apply(
      models.abstract(config), sample, timesteps.astype(jnp.bfloat16), *text
    )


def test_new_modulations_are_near_zero():
  config = {"_class_name": "SD3Transformer2DModel", **SMALL}
  params = models.trees.flatten(models.build(config).init(jax.random.key(0)))
  stds = {n: x.std() for n, x in params.items() if n.endswith("kernel")}
  small = {n for n, std in stds.items() if std < 0.03}
  assert small == {n for n in stds if "norm" in n}
