"""LoRA trees against numpy's linear algebra and torch's layers."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.models import lora, trees

SHAPES = {
  "block.attn.to_q.kernel": (12, 8),
  "block.attn.to_k.kernel": (10, 8),
  "block.attn.to_v.kernel": (10, 8),
  "block.attn.to_out.0.kernel": (8, 12),
  "block.attn.to_out.0.bias": (12,),
  "block.conv.kernel": (3, 3, 6, 5),
  "block.short.kernel": (1, 1, 6, 5),
  "block.norm.scale": (12,),
  "table.embedding": (20, 12),
}
ALL = ("*.to_*", "*.conv", "*.short")


def filled(shapes, seed=0):
  generator = np.random.default_rng(seed)
  arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return trees.unflatten(arrays)


def trained(base, rank, targets=ALL, seed=7):
  """A LoRA with random factors."""
  fresh = lora.init(jax.random.key(0), base, targets=targets, rank=rank)
  return filled({name: leaf.shape for name, leaf in trees.flatten(fresh).items()}, seed)


def convolve(x, kernel):
  """torch's convolution with a kernel [k, k, I, O]."""
  weight = torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1)
  return torch.nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2)


@pytest.fixture(scope="module")
def base():
  return filled(SHAPES)


def test_init_adapts_the_attention_projections_by_default(base):
  layers = lora.layers_of(lora.init(jax.random.key(0), base, rank=2))
  assert list(layers) == [f"block.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]


def test_a_pattern_matches_the_whole_name(base):
  tree = lora.init(jax.random.key(0), base, targets=["block.?on*"], rank=2)
  assert list(trees.flatten(tree)) == ["block.conv.down", "block.conv.up"]


def test_factors_have_the_shapes_of_their_layers(base):
  tree = trees.flatten(lora.init(jax.random.key(0), base, targets=ALL, rank=2))
  shapes = {name: leaf.shape for name, leaf in tree.items()}
  assert shapes["block.attn.to_q.down"] == (12, 2)
  assert shapes["block.attn.to_q.up"] == (2, 8)
  assert shapes["block.conv.down"] == (3, 3, 6, 2)
  assert shapes["block.conv.up"] == (2, 5)


def test_down_has_the_distribution_of_peft():
  wide = {"to_q": {"kernel": jax.ShapeDtypeStruct((400, 300), jnp.float32)}}
  down = lora.init(jax.random.key(3), wide, targets="to_q", rank=64)["to_q"]["down"]
  expected = torch.empty(64, 400)
  torch.nn.init.kaiming_uniform_(expected, a=5**0.5)
  np.testing.assert_allclose(np.abs(down).max(), expected.abs().max(), rtol=1e-3)
  np.testing.assert_allclose(down.std(), expected.std(), rtol=0.02)


def test_the_initial_factors_of_a_layer_do_not_depend_on_other_layers(base):
  alone = lora.init(jax.random.key(0), base, targets="*.conv", rank=2)
  among = lora.init(jax.random.key(0), base, targets=ALL, rank=2)
  np.testing.assert_array_equal(alone["block"]["conv"]["down"], among["block"]["conv"]["down"])


def test_a_fresh_lora_changes_no_bit(base):
  merged = lora.merge(base, lora.init(jax.random.key(0), base, targets=ALL, rank=2), alpha=4)
  for name, leaf in trees.flatten(merged).items():
    assert np.asarray(leaf).tobytes() == trees.flatten(base)[name].tobytes(), name


def test_merge_adds_the_scaled_product_to_a_linear_layer(base):
  tree = trained(base, rank=2)
  merged = lora.merge(base, tree, alpha=5)["block"]["attn"]["to_q"]["kernel"]
  factors = tree["block"]["attn"]["to_q"]
  product = factors["down"].astype(np.float64) @ factors["up"]
  np.testing.assert_allclose(
    merged, base["block"]["attn"]["to_q"]["kernel"] + 5 / 2 * product, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("layer", ["conv", "short"])
def test_a_merged_convolution_is_the_layer_plus_the_two_convolutions(base, layer):
  tree = trained(base, rank=2)
  x = torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(0))
  kernel, factors = base["block"][layer]["kernel"], tree["block"][layer]
  expected = convolve(x, kernel) + 3 / 2 * convolve(
    convolve(x, factors["down"]), factors["up"][None, None]
  )
  merged = lora.merge(base, tree, alpha=3)["block"][layer]["kernel"]
  np.testing.assert_allclose(convolve(x, merged), expected, rtol=1e-4, atol=1e-4)


def test_leaves_without_a_lora_are_the_same_arrays(base):
  merged = trees.flatten(lora.merge(base, trained(base, 2, "*.to_q"), alpha=1))
  leaves = trees.flatten(base)
  assert [name for name in leaves if merged[name] is not leaves[name]] == ["block.attn.to_q.kernel"]


def test_merge_does_not_change_the_base(base):
  before = {name: leaf.copy() for name, leaf in trees.flatten(base).items()}
  lora.merge(base, trained(base, 2), alpha=1)
  assert all(np.array_equal(before[name], leaf) for name, leaf in trees.flatten(base).items())


def test_a_bfloat16_base_gets_the_float32_sum_rounded_once(base):
  small = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), base)
  tree = trained(base, 2)
  factors = tree["block"]["attn"]["to_q"]
  expected = small["block"]["attn"]["to_q"]["kernel"].astype(np.float32)
  expected = expected + np.float32(3 / 2) * (factors["down"] @ factors["up"])
  merged = lora.merge(small, tree, alpha=3)["block"]["attn"]["to_q"]["kernel"]
  np.testing.assert_array_equal(merged, expected.astype(ml_dtypes.bfloat16))


def test_alpha_may_differ_from_layer_to_layer(base):
  tree = trained(base, 2, ("*.to_q", "*.conv"))
  merged = lora.merge(base, tree, alpha={"block.attn.to_q": 2, "block.conv": 6})["block"]
  six = lora.merge(base, tree, alpha=6)["block"]
  two = lora.merge(base, tree, alpha=2)["block"]
  np.testing.assert_array_equal(merged["conv"]["kernel"], six["conv"]["kernel"])
  np.testing.assert_array_equal(merged["attn"]["to_q"]["kernel"], two["attn"]["to_q"]["kernel"])


def test_alpha_must_name_every_layer_and_no_other(base):
  tree = trained(base, 2, ("*.to_q", "*.conv"))
  with pytest.raises(InputError, match=r"\['block.conv'\].*\['block.gone'\]"):
    lora.merge(base, tree, alpha={"block.attn.to_q": 2, "block.gone": 1})


def test_the_gradient_is_in_the_lora_alone(base):
  tree = jax.tree.map(jnp.asarray, trained(base, 2, "*.to_q"))
  x = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)

  @jax.jit
  def loss(tree, base):
    merged = lora.merge(base, tree, alpha=4)
    return jnp.sum((x @ merged["block"]["attn"]["to_q"]["kernel"]) ** 2)

  gradient = jax.grad(loss)(tree, base)["block"]["attn"]["to_q"]
  factors = jax.tree.map(lambda a: np.asarray(a, np.float64), tree)["block"]["attn"]["to_q"]
  kernel = base["block"]["attn"]["to_q"]["kernel"] + 2 * factors["down"] @ factors["up"]
  into_kernel = 2 * x.T @ (x @ kernel)  # chain rule, by hand
  np.testing.assert_allclose(gradient["down"], 2 * into_kernel @ factors["up"].T, rtol=1e-4)
  np.testing.assert_allclose(gradient["up"], 2 * factors["down"].T @ into_kernel, rtol=1e-4)


def test_a_fresh_lora_has_a_gradient(base):
  fresh = lora.init(jax.random.key(0), base, targets="*.to_q", rank=2)

  def loss(tree):
    return jnp.sum(lora.merge(base, tree, alpha=2)["block"]["attn"]["to_q"]["kernel"] ** 2)

  gradient = jax.grad(loss)(fresh)["block"]["attn"]["to_q"]
  assert not np.any(gradient["down"])
  assert np.all(gradient["up"])


def test_extract_recovers_a_difference_of_low_rank(base):
  tuned = lora.merge(base, trained(base, 2), alpha=2)
  actual = lora.extract(base, tuned, targets=ALL, rank=2)
  again = trees.flatten(lora.merge(base, actual, alpha=2))
  for name, leaf in trees.flatten(tuned).items():
    np.testing.assert_allclose(again[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("layer", ["attn.to_q", "attn.to_out.0", "conv"])
def test_extract_is_the_nearest_matrix_of_its_rank(base, layer):
  """By Eckart and Young the error is the root of the sum of the other squared singular values."""
  tuned, name = filled(SHAPES, seed=1), f"block.{layer}"
  merged = lora.merge(base, lora.extract(base, tuned, targets=name, rank=3), alpha=3)
  before, after, actual = (
    np.float64(trees.flatten(tree)[f"{name}.kernel"]) for tree in (base, tuned, merged)
  )
  matrix = (after - before).reshape(-1, after.shape[-1])
  values = np.linalg.svd(matrix, compute_uv=False)
  error = np.linalg.norm(actual - after)
  np.testing.assert_allclose(error, np.sqrt(np.sum(values[3:] ** 2)), rtol=1e-5)


def test_extract_of_no_difference_changes_nothing(base):
  actual = lora.extract(base, base, targets=ALL, rank=2)
  assert not any(np.any(leaf) for leaf in trees.flatten(actual).values())


def test_the_two_factors_share_the_singular_values(base):
  tuned = filled(SHAPES, seed=1)
  actual = lora.extract(base, tuned, targets="*.to_q", rank=3)["block"]["attn"]["to_q"]
  grams = actual["down"].T @ actual["down"], actual["up"] @ actual["up"].T
  difference = tuned["block"]["attn"]["to_q"]["kernel"] - base["block"]["attn"]["to_q"]["kernel"]
  values = np.linalg.svd(difference, compute_uv=False)[:3]
  for gram in grams:
    np.testing.assert_allclose(gram, np.diag(values), atol=1e-5)


def test_extract_reads_trees_of_other_dtypes(base):
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), base)
  tuned = lora.merge(half, trained(base, 2), alpha=2)
  actual = lora.extract(half, tuned, targets="*.to_q", rank=8)["block"]["attn"]["to_q"]
  expected = np.float32(tuned["block"]["attn"]["to_q"]["kernel"])
  expected -= np.float32(half["block"]["attn"]["to_q"]["kernel"])
  np.testing.assert_allclose(actual["down"] @ actual["up"], expected, atol=1e-5)


def test_different_networks_are_refused_with_all_differences(base):
  flat = {**trees.flatten(base), "extra.kernel": np.ones((2, 2))}
  del flat["block.norm.scale"]
  flat["block.conv.kernel"] = np.ones((3, 3, 6, 4))
  with pytest.raises(InputError) as error:
    lora.extract(base, trees.unflatten(flat), rank=2)
  assert "block.norm.scale: only in base" in str(error.value)
  assert "extra.kernel: only in tuned" in str(error.value)
  assert "block.conv.kernel: [3, 3, 6, 5] in base, [3, 3, 6, 4] in tuned" in str(error.value)


def test_all_problems_of_targets_and_rank_are_listed(base):
  with pytest.raises(InputError) as error:
    lora.init(jax.random.key(0), base, targets=["*.norm", "*.to_z", "*.conv", "*.to_q"], rank=6)
  message = str(error.value)
  assert "'*.norm' matches no linear" in message
  assert "'*.to_z' matches no linear" in message
  assert "block.conv is [3, 3, 6, 5]: its rank is at most 5" in message
  assert "to_q is" not in message


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, None])
def test_a_rank_that_is_no_positive_integer_is_refused(base, rank):
  with pytest.raises(InputError, match="rank must be"):
    lora.init(jax.random.key(0), base, rank=rank)


def test_no_pattern_at_all_is_refused(base):
  with pytest.raises(InputError, match="names no pattern"):
    lora.init(jax.random.key(0), base, targets=(), rank=1)


def test_a_lora_for_another_network_is_refused_with_every_layer(base):
  tree = trained(base, 2)
  tree["block"]["conv"]["up"] = np.ones((2, 9), np.float32)
  tree["gone"] = {"down": np.ones((3, 2)), "up": np.ones((2, 3))}
  with pytest.raises(InputError) as error:
    lora.merge(base, tree, alpha=1)
  assert "block.conv: made for [3, 3, 6, 9], the base's is [3, 3, 6, 5]" in str(error.value)
  assert "gone: the base has no such" in str(error.value)


@pytest.mark.parametrize(
  ("tree", "problem"),
  [
    ({"to_q": {"down": np.ones((3, 2))}}, "to_q: needs both down and up"),
    ({"to_q": {"kernel": np.ones((3, 2))}}, "to_q.kernel: a leaf of a LoRA"),
    ({"to_q": {"down": np.ones((3, 2)), "up": np.ones((4, 3))}}, r"down \[3, 2\], up \[4, 3\]"),
    ({}, "no layers"),
  ],
)
def test_a_tree_that_is_no_lora_is_refused(base, tree, problem):
  with pytest.raises(InputError, match=problem):
    lora.merge(base, tree, alpha=1)


def test_the_text_patterns_match_every_attention_of_a_text_encoder():
  config = {"architectures": ["CLIPTextModel"], "num_hidden_layers": 2, "hidden_size": 8}
  config |= {"num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
  shapes = models.abstract(config)
  tree = lora.init(jax.random.key(0), shapes, targets=lora.TEXT_ATTENTION, rank=2)
  assert len(lora.layers_of(tree)) == 2 * 4
