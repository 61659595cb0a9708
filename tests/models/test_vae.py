"""The image autoencoder against diffusers on small random configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from flax import nnx

from dmpo_jax import models
from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.models.vae import model as vae
from tests.models import published, torch_map

# For each option at least one variant that differs from the first.
VARIANTS = {
  "three_levels": {
    "block_out_channels": (8, 16, 12),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
  },
  "bare": {
    "in_channels": 1,
    "out_channels": 2,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 2,
    "latent_channels": 3,
    "norm_num_groups": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "scaling_factor": 0.36,
    "shift_factor": 0.12,
    "force_upcast": False,
  },
}
SIZES = {"three_levels": (8, 20), "bare": (6, 4)}
R = np.random.default_rng(0)


def config_of(name, **changes):
  return {"_class_name": "AutoencoderKL", **VARIANTS[name], **changes}


def normal(*shape):
  return R.standard_normal(shape, np.float32)


def their_posterior(network, images):
  """diffusers' mean and log variance, as torch tensors `[B, Z, h, w]`."""
  actual = network.encode(torch_map.nchw(images)).latent_dist
  return actual.mean, actual.logvar


@pytest.fixture(scope="module", params=VARIANTS)
def both(request):
  """Outputs of both, and gradients of a weighted sum of them, by name."""
  name = request.param
  network = torch_map.randomise(AutoencoderKL(**VARIANTS[name]))
  config = config_of(name)
  params = torch_map.to_params(network, models.abstract(config))
  images = normal(3, *SIZES[name], network.config.in_channels)
  factor = 2 ** (len(network.config.block_out_channels) - 1)
  z = normal(3, *(n // factor for n in SIZES[name]), network.config.latent_channels)

  x, latents = (torch_map.nchw(a).requires_grad_() for a in (images, z))
  actual = network.encode(x).latent_dist
  theirs = actual.mean, actual.logvar, network.decode(latents).sample
  weights = [normal(*torch_map.nhwc(y).shape) for y in theirs]
  sum((y * torch_map.nchw(w)).sum() for y, w in zip(theirs, weights, strict=True)).backward()

  model = models.build_autoencoder(config)

  def loss(params, images, z):
    outputs = *model.encode(params, images), model.decode(params, z)
    return sum((w * y).sum() for w, y in zip(weights, outputs, strict=True)), outputs

  run = torch_map.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
  (_, outputs), (by_params, by_images, by_z) = jax.device_get(run(params, images, z))
  kinds = ("mean", "log_variance", "decoded")
  ours = (
    dict(zip(kinds, outputs, strict=True)),
    {
      "images": by_images,
      "z": by_z,
      **trees.flatten(by_params),
    },
  )
  expected = (
    dict(zip(kinds, map(torch_map.nhwc, theirs), strict=True)),
    {
      "images": torch_map.nhwc(x.grad),
      "z": torch_map.nhwc(latents.grad),
      **trees.flatten(torch_map.to_gradients(network, params)),
    },
  )
  return ours, expected


@pytest.mark.parametrize("kind", ["mean", "log_variance", "decoded"])
def test_the_output_agrees_with_diffusers(both, kind):
  (ours, _), (theirs, _) = both
  assert torch_map.relative(ours[kind], theirs[kind]) < 1e-5


def test_the_gradient_of_every_parameter_and_input_agrees_with_diffusers(both):
  (_, ours), (_, theirs) = both
  assert ours.keys() == theirs.keys()
  # A few gradients (of the biases of keys, of biases before a norm) are zero up to rounding.
  floor = 1e-4 * max(np.abs(g).max() for g in theirs.values())
  off = {n: np.abs(ours[n] - g).max() / max(np.abs(g).max(), floor) for n, g in theirs.items()}
  assert max(off.values()) < 1e-3, max(off, key=off.get)


@pytest.fixture(scope="module")
def bare():
  """diffusers' network, our encoder, and the parameters."""
  network = torch_map.randomise(AutoencoderKL(**VARIANTS["bare"]))
  params = torch_map.to_params(network, models.abstract(config_of("bare")))
  return network, torch_map.jit(models.build_autoencoder(config_of("bare")).encode), params


@pytest.mark.parametrize("size", [(7, 4), (2, 5)])
def test_sizes_that_are_no_multiple_of_the_downscale_agree_with_diffusers(bare, size):
  network, encode, params = bare
  images = normal(1, *size, 1)
  with torch.no_grad():
    expected, _ = their_posterior(network, images)
  actual = encode(params, images).mean
  assert actual.shape == (1, size[0] // 2, size[1] // 2, 3)
  assert torch_map.relative(actual, torch_map.nhwc(expected)) < 1e-5


def test_the_log_variance_is_clipped_to_30_below_and_20_above(bare):
  _, encode, params = bare
  images = 1e3 * normal(1, 7, 4, 1)
  conv = params["encoder"]["conv_out"]
  wide = {**params["encoder"], "conv_out": {**conv, "kernel": 100 * conv["kernel"]}}
  actual = encode({**params, "encoder": wide}, images).log_variance
  assert (actual.min(), actual.max()) == (-30, 20)


def test_a_residual_attention_layer_agrees():
  theirs = torch_map.randomise(
    Attention(
      12, heads=1, dim_head=12, eps=1e-6, norm_num_groups=4, residual_connection=True, bias=True
    )
  )
  graph, state = nnx.split(vae.Attention(12, 4, compute=models.Compute()))
  params = torch_map.to_params(theirs, trees.string_keys(nnx.to_pure_dict(state)))
  x = normal(3, 4, 5, 12)
  actual = torch_map.jit(lambda p, x: nnx.merge(graph, trees.int_keys(p))(x))(params, x)
  assert torch_map.relative(actual, torch_map.nhwc(theirs(torch_map.nchw(x)))) < 1e-5


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_downsampling_agrees(size):
  theirs = torch_map.randomise(Downsample2D(8, use_conv=True, padding=0, name="op"))
  graph, state = nnx.split(vae.Downsample2D(8, compute=models.Compute()))
  params = torch_map.to_params(theirs, nnx.to_pure_dict(state))
  x = normal(3, *size, 8)
  actual = nnx.merge(graph, params)(x)
  assert torch_map.relative(actual, torch_map.nhwc(theirs(torch_map.nchw(x)))) < 1e-5


def test_latents_are_scaled_as_the_config_says():
  model = models.build_autoencoder(config_of("bare"))
  np.testing.assert_allclose(model.scale(np.array([1.12, 0.12])), [0.36, 0], atol=1e-12)


def test_unscaling_inverts_scaling():
  model, z = models.build_autoencoder(config_of("bare")), normal(50)
  np.testing.assert_allclose(model.unscale(model.scale(z)), z, rtol=1e-5, atol=1e-6)


def test_latents_of_sd3_are_shifted_and_scaled_as_diffusers_pipeline_does():
  model = models.build_autoencoder(published.VAES["sd3"])
  z = normal(50)
  np.testing.assert_allclose(model.scale(z), (z - 0.0609) * 1.5305, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(model.unscale(z), z / 1.5305 + 0.0609, rtol=1e-6, atol=1e-6)


def test_without_a_shift_factor_latents_are_only_scaled():
  model = models.build_autoencoder(config_of("three_levels"))
  np.testing.assert_allclose(model.scale(np.array([2.0])), [2 * 0.18215])


def test_scaled_latents_keep_their_dtype():
  model = models.build_autoencoder(config_of("bare"))
  assert model.unscale(model.scale(jnp.ones(2, jnp.bfloat16))).dtype == jnp.bfloat16


def test_the_downscale_is_two_to_the_number_of_downsamplings():
  assert [models.build_autoencoder(config_of(n)).downscale for n in VARIANTS] == [4, 2]


def test_latents_are_sampled_with_the_mean_and_deviation_of_the_posterior():
  mean, log_variance, noise = normal(2, 3), normal(2, 3), normal(2, 3)
  actual = models.sample_latents(models.Posterior(mean, log_variance), noise)
  np.testing.assert_allclose(actual, mean + np.sqrt(np.exp(log_variance)) * noise, rtol=1e-5)


def test_noise_of_another_shape_is_refused():
  with pytest.raises(InputError, match=r"noise is \[1, 3\], expected \[2, 3\]"):
    models.sample_latents(models.Posterior(np.zeros((2, 3)), np.zeros((2, 3))), np.zeros((1, 3)))


@pytest.fixture(scope="module")
def large_activations(bare):
  """Parameters whose hidden activations exceed 65504 and whose image is of order one."""
  _, _, params = bare
  conv = params["decoder"]["conv_in"]
  louder = {**params["decoder"], "conv_in": {**conv, "kernel": np.float32(1e5) * conv["kernel"]}}
  return {**params, "decoder": louder}


def decode_in_float16(params, force_upcast):
  model = models.build_autoencoder(config_of("bare", force_upcast=force_upcast))
  z = np.ones((1, 2, 2, 3), np.float32)
  return torch_map.jit(lambda p: model.decode(p, z, dtype=jnp.float16))(params)


def test_with_force_upcast_float16_stays_finite(large_activations):
  images = decode_in_float16(large_activations, force_upcast=True)
  assert images.dtype == jnp.float16
  assert np.isfinite(images).all()


def test_without_force_upcast_the_computation_is_in_float16(large_activations):
  assert not np.isfinite(decode_in_float16(large_activations, force_upcast=False)).all()


def test_a_bfloat16_posterior_stays_near_float32(bare):
  _, encode, params = bare
  model, images = models.build_autoencoder(config_of("bare")), normal(1, 7, 4, 1)
  exact = encode(params, images).mean
  rounded = torch_map.jit(lambda p, x: model.encode(p, x, dtype=jnp.bfloat16))(params, images).mean
  assert rounded.dtype == jnp.bfloat16
  assert 0 < torch_map.relative(rounded, exact) < 0.05


@pytest.mark.parametrize("name", published.VAES)
def test_a_full_size_network_has_the_names_and_shapes_of_diffusers(name):
  with torch.device("meta"):
    theirs = AutoencoderKL.from_config(published.VAES[name])
  actual = torch_map.our_shapes(models.abstract(published.VAES[name]))
  assert actual == torch_map.torch_shapes(theirs)
  assert len(actual) == (244 if name == "sd3" else 248)  # SD3's has no quant convolutions


def test_every_field_that_diffusers_writes_is_accepted():
  written = dict(AutoencoderKL(**VARIANTS["bare"]).config)
  actual = models.abstract({**written, "_class_name": "AutoencoderKL"})
  assert jax.tree.structure(actual) == jax.tree.structure(models.abstract(config_of("bare")))


def test_initial_parameters_have_the_shapes_of_the_abstract_tree():
  params = models.build_autoencoder(config_of("bare")).init(jax.random.key(0))
  expected = jax.tree.map(lambda leaf: leaf.shape, models.abstract(config_of("bare")))
  assert jax.tree.map(np.shape, params) == expected


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"_class_name": "VQModel"}, "'VQModel' is no autoencoder; expected 'AutoencoderKL'"),
    ({"latent_channel": 4}, "'latent_channel'; did you mean 'latent_channels'"),
    ({"latents_mean": [0.1]}, r"latents_mean = \[0.1\] is not supported, expected None"),
    ({"latents_std": [0.1]}, r"latents_std = \[0.1\] is not supported, expected None"),
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "2 times 'DownEncoderBlock2D'"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types = .* 2 times 'UpDecoderBlock2D'"),
    ({"block_out_channels": []}, "block_out_channels = .* a list of channel counts"),
    ({"block_out_channels": [4, 0]}, "block_out_channels = 0.* a positive integer"),
    ({"norm_num_groups": 3}, r"norm_num_groups = 3.* \(4, 8\)"),
    ({"act_fn": "mish"}, "act_fn = 'mish' is not supported, expected one of 'silu'"),
    ({"force_upcast": "yes"}, "force_upcast = 'yes'.* true or false"),
    ({"layers_per_block": 10**6}, "layers_per_block = 1000000.* at most 64"),
    ({"scaling_factor": 10**400}, "scaling_factor = 1000.* a number other than 0"),
    ({"scaling_factor": 0}, "scaling_factor = 0.* a number other than 0"),
    ({"scaling_factor": None}, "scaling_factor = None.* a number other than 0"),
    ({"shift_factor": "0"}, "shift_factor = '0'.* a number or null"),
  ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field_and_value(change, message):
  with pytest.raises(InputError, match=message):
    models.build_autoencoder(config_of("bare", **change))


def test_an_unknown_attention_implementation_is_refused():
  with pytest.raises(InputError, match="'cpus'; did you mean 'cpu'"):
    models.build_autoencoder(config_of("bare"), compute=models.Compute(attention="cpus"))


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((1, 1, 8, 8), r"images must be \[B, H, W, 1\].* got \[1, 1, 8, 8\]"),
    ((8, 8, 1), r"got \[8, 8, 1\]"),
    ((1, 1, 8, 1), r"with H and W of at least 2, got \[1, 1, 8, 1\]"),
  ],
)
def test_images_that_do_not_fit_are_refused_with_their_shape(shape, message):
  model = models.build_autoencoder(config_of("bare"))
  with pytest.raises(InputError, match=message):
    model.encode(models.abstract(config_of("bare")), np.zeros(shape))


def test_latents_that_do_not_fit_are_refused_with_their_shape():
  model = models.build_autoencoder(config_of("bare"))
  with pytest.raises(InputError, match=r"z must be \[B, H, W, 3\].* got \[1, 3, 8, 8\]"):
    model.decode(models.abstract(config_of("bare")), np.zeros((1, 3, 8, 8)))
