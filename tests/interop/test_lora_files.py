"""LoRA files: ours in torch diffusers, torch's here, and files that do not fit."""

import copy
import json
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from diffusers import (
  DDIMScheduler,
  StableDiffusionPipeline,
  StableDiffusionXLPipeline,
)
from diffusers.loaders import lora_conversion_utils
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModelWithProjection

from dmpo_jax import interop, models
from dmpo_jax.errors import InputError
from dmpo_jax.interop import lora_names
from dmpo_jax.models import lora, trees
from tests.interop import tiny

# Every kind of layer: attention, linear and 1x1 projections, residual blocks, samplers, the rest.
UNET_TARGETS = (
  *lora.ATTENTION,
  "*.proj_in",
  "*.ff.net.*",
  "*.conv1",
  "*.conv_shortcut",
  "*.time_emb_proj",
  "*samplers.0.conv",
  "conv_in",
  "time_embedding.*",
)


def fused(network):
  """The weights of a torch network once its LoRA is added to them."""
  for module in network.modules():
    if isinstance(module, BaseTunerLayer):
      module.merge()
  return {
    name.replace(".base_layer", ""): tensor.detach().numpy()
    for name, tensor in network.state_dict().items()
    if ".lora_" not in name
  }


def same_weights(state, params):
  """Whether torch's weights are those of our tree, up to rounding."""
  for key, array in interop.to_torch_state(params).items():
    np.testing.assert_allclose(state[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


def prefixed(state):
  """transformers' names with the prefix that published text encoders, and our trees, have."""
  return {k if k.startswith("text_") else f"text_model.{k}": v for k, v in state.items()}


@jax.jit
def merge(base, tree, alpha):
  return lora.merge(base, tree, alpha=alpha)


def filled(tree, seed):
  generator = np.random.default_rng(seed)
  return jax.tree.map(lambda x: generator.normal(0, 0.2, x.shape).astype(np.float32), tree)


class Case:
  """A torch pipeline, its parameters here, and a LoRA for all of its networks."""

  def __init__(self, xl):
    self.xl = xl
    tokenizer = tiny.make_tokenizer()
    self.networks = {
      "unet": tiny.make_sdxl_unet() if xl else tiny.make_unet(**tiny.LATENTS),
      "text_encoder": tiny.make_text_encoder(tokenizer),
    }
    if xl:
      self.networks["text_encoder_2"] = tiny.make_text_encoder(
        tokenizer, seed=3, kind=CLIPTextModelWithProjection, hidden_size=16, projection_dim=10
      )
    self.config = {**self.networks["unet"].config, "_class_name": "UNet2DConditionModel"}
    self.base, params = {}, {}
    for name, network in self.networks.items():
      state = {k: v.detach().numpy() for k, v in network.state_dict().items()}
      if name == "unet":
        shapes = models.abstract(self.config)
        targets = (*UNET_TARGETS, "add_embedding.*") if xl else UNET_TARGETS
      else:
        state = prefixed(state)
        kind = {"architectures": [type(network).__name__]}
        shapes = models.abstract({**network.config.to_dict(), **kind})
        targets = (*lora.TEXT_ATTENTION, "*.fc1")
      self.base[name] = interop.from_torch_state(state, shapes)
      fresh = lora.init(jax.random.key(0), self.base[name], targets=targets, rank=3)
      params[name] = filled(fresh, seed=len(params))
    self.lora = interop.Lora(params, dict.fromkeys(params, 6.0))

  def pipeline(self):
    """A torch pipeline with copies of the networks."""
    copies = copy.deepcopy(self.networks)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    none = {"vae": None, "tokenizer": None, "feature_extractor": None, "scheduler": scheduler}
    if self.xl:
      return StableDiffusionXLPipeline(**copies, **none, tokenizer_2=None)
    return StableDiffusionPipeline(
      **copies, **none, safety_checker=None, requires_safety_checker=False
    )

  def inputs(self):
    generator = np.random.default_rng(5)
    width = self.config["cross_attention_dim"]
    given = {
      "sample": generator.normal(size=(2, 8, 8, 4)).astype(np.float32),
      "timesteps": np.int32([3, 700]),
      "encoder_hidden_states": generator.normal(size=(2, 5, width)).astype(np.float32),
    }
    if self.xl:
      given["text_embeds"] = generator.normal(size=(2, 10)).astype(np.float32)
      given["time_ids"] = np.float32([[64, 64, 0, 0, 64, 64], [32, 48, 0, 4, 64, 48]])
    return given

  def output(self, unet):
    """What a torch UNet makes of the inputs, in our layout."""
    given = {name: torch.from_numpy(x) for name, x in self.inputs().items()}
    extra = {k: given[k] for k in ("text_embeds", "time_ids") if k in given}
    with torch.no_grad():
      out = unet(
        given["sample"].permute(0, 3, 1, 2),
        given["timesteps"],
        given["encoder_hidden_states"],
        added_cond_kwargs=extra or None,
      ).sample
    return out.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def case(request):
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def wanted(case):
  """What our UNet computes with the LoRA, merged while it is compiled."""
  apply = models.build(case.config).apply

  @jax.jit
  def merged(base, tree, inputs):
    return apply(lora.merge(base, tree, alpha=6.0), **inputs)

  return np.asarray(merged(case.base["unet"], case.lora.params["unet"], case.inputs()))


@pytest.fixture(scope="module")
def sd():
  return Case(False)


@pytest.fixture(scope="module")
def sdxl():
  return Case(True)


WRITERS = {"peft": interop.save_lora, "kohya": interop.save_kohya_lora}


@pytest.fixture(scope="module", params=list(WRITERS))
def loaded(case, request, tmp_path_factory):
  """A torch pipeline that has loaded our file."""
  file = tmp_path_factory.mktemp("lora") / "pytorch_lora_weights.safetensors"
  WRITERS[request.param](file, case.lora, case.base)
  pipeline = case.pipeline()
  pipeline.load_lora_weights(file.parent)
  return pipeline


def test_the_unet_in_diffusers_computes_what_ours_does(case, loaded, wanted):
  found = case.output(loaded.unet)
  assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_lora_matters_to_the_output(case, wanted):
  without = case.output(case.pipeline().unet)
  assert np.abs(without - wanted).max() > 0.05 * np.abs(wanted).max()


def test_the_text_encoders_in_diffusers_have_our_merged_weights(case, loaded):
  for name in case.base.keys() - {"unet"}:
    merged = merge(case.base[name], case.lora.params[name], 6.0)
    same_weights(prefixed(fused(getattr(loaded, name))), merged)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_read_back_has_the_same_bits(case, write, tmp_path):
  write(tmp_path / "a.safetensors", case.lora, case.base)
  again = interop.load_lora(tmp_path / "a.safetensors", case.base)
  assert again.params.keys() == case.lora.params.keys()
  for name, tree in case.lora.params.items():
    found, given = trees.flatten(again.params[name]), trees.flatten(tree)
    assert found.keys() == given.keys()
    assert all(found[leaf].tobytes() == given[leaf].tobytes() for leaf in given)
  write(tmp_path / "b.safetensors", again, case.base)
  assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_factors_keep_their_dtype(sd, dtype, tmp_path):
  small = sd.lora._replace(params=jax.tree.map(lambda x: x.astype(dtype), sd.lora.params))
  interop.save_lora(tmp_path / "a.safetensors", small, sd.base)
  found = interop.load_lora(tmp_path / "a.safetensors", sd.base)
  for leaf, given in zip(jax.tree.leaves(found.params), jax.tree.leaves(small.params), strict=True):
    assert leaf.dtype == dtype
    assert leaf.tobytes() == given.tobytes()


def test_layers_of_their_own_alpha_and_rank_reach_diffusers(sd, tmp_path):
  """Written per layer into the header, in the form in which peft looks for exceptions."""
  few = lora.init(jax.random.key(1), sd.base["unet"], targets="*.to_q", rank=2)
  many = lora.init(jax.random.key(1), sd.base["unet"], targets="*.to_k", rank=4)
  flat = filled({**trees.flatten(few), **trees.flatten(many)}, 3)
  tree = trees.unflatten(flat)
  alphas = {layer: 1.0 + i for i, layer in enumerate(lora.layers_of(tree))}
  given = interop.Lora({"unet": tree}, {"unet": alphas})
  interop.save_lora(tmp_path / "pytorch_lora_weights.safetensors", given, sd.base)
  pipeline = sd.pipeline()
  pipeline.load_lora_weights(tmp_path)
  same_weights(fused(pipeline.unet), merge(sd.base["unet"], tree, alphas))
  again = interop.load_lora(tmp_path / "pytorch_lora_weights.safetensors", sd.base)
  assert again.alphas["unet"] == alphas


def trained_in_torch(case, **options):
  """A torch UNet with a peft adapter that has numbers in both factors."""
  unet = case.pipeline().unet
  targets = ["to_q", "to_out.0", "conv1", "conv_in"]
  unet.add_adapter(LoraConfig(r=4, target_modules=targets, **options))
  generator = torch.Generator().manual_seed(2)
  with torch.no_grad():
    for name, parameter in unet.named_parameters():
      if ".lora_" in name:
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
  return unet


def test_what_peft_saves_with_its_config_is_read_exactly(sd, tmp_path):
  exceptions = {"conv1": 2, "down_blocks.0.*to_q": 12}
  unet = trained_in_torch(sd, lora_alpha=8, alpha_pattern=exceptions, rank_pattern={"conv_in": 2})
  unet.save_lora_adapter(tmp_path, weight_name="a.safetensors")
  state, metadata = load_file(tmp_path / "a.safetensors"), {}
  with safetensors.safe_open(tmp_path / "a.safetensors", "np") as opened:
    metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
  StableDiffusionPipeline.save_lora_weights(
    tmp_path,
    unet_lora_layers={k: torch.from_numpy(v) for k, v in state.items()},
    unet_lora_adapter_metadata=metadata,
    weight_name="b.safetensors",
  )
  found = interop.load_lora(tmp_path / "b.safetensors", sd.base)
  assert found.alphas["unet"]["down_blocks.0.resnets.0.conv1"] == 2
  same_weights(fused(unet), merge(sd.base["unet"], found.params["unet"], found.alphas["unet"]))


def test_what_diffusers_training_scripts_save_is_read(case, tmp_path):
  """They rename the factors to lora.down and lora.up, keep no alpha, and train with alpha = r."""
  unet = trained_in_torch(case, lora_alpha=4)
  kind = StableDiffusionXLPipeline if case.xl else StableDiffusionPipeline
  layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
  kind.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="a.safetensors")
  assert any(".lora.down." in name for name in load_file(tmp_path / "a.safetensors"))
  found = interop.load_lora(tmp_path / "a.safetensors", case.base)
  same_weights(fused(unet), merge(case.base["unet"], found.params["unet"], found.alphas["unet"]))


def test_text_encoders_saved_by_diffusers_are_read(sd, tmp_path):
  """transformers 5 leaves text_model. out of the names."""
  text = sd.pipeline().text_encoder
  # What text.add_adapter does, which in transformers 5.24 asks for a peft that is not out yet.
  inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "fc1"]), text)
  state = get_peft_model_state_dict(text)
  StableDiffusionPipeline.save_lora_weights(
    tmp_path,
    text_encoder_lora_layers=convert_state_dict_to_diffusers(state),
    weight_name="a.safetensors",
  )
  found = interop.load_lora(tmp_path / "a.safetensors", sd.base)
  layers = lora.layers_of(found.params["text_encoder"])
  assert set(layers) == {
    f"text_model.encoder.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.fc1")
  }


def test_every_layer_of_sdxl_has_the_name_that_diffusers_takes_for_kohyas():
  config = {
    "_class_name": "UNet2DConditionModel",
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "norm_num_groups": 32,
    "cross_attention_dim": 2048,
  }
  names = lora_names.kohya_names({"unet": models.abstract(config)})
  assert len(set(names.values())) == len(names) == 794
  state = {}
  for number, name in enumerate(names.values()):
    state[f"{name}.lora_down.weight"] = torch.tensor(number)
    state[f"{name}.lora_up.weight"] = torch.tensor(number)
  state = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(
    state, types.SimpleNamespace(layers_per_block=2)
  )
  state, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(state)
  found = {
    int(number): name.removeprefix("unet.").split(".lora_A")[0]
    for name, number in convert_unet_state_dict_to_peft(state).items()
    if ".lora_A" in name
  }
  assert found == {number: layer for number, (_, layer) in enumerate(names)}


def test_sd_keeps_diffusers_names_in_kohyas_files(sd):
  names = lora_names.kohya_names(sd.base)
  layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
  name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
  assert names["unet", layer] == name


@pytest.mark.parametrize(("family", "prefix"), [("sd", "lora_te"), ("sdxl", "lora_te1")])
def test_the_first_text_encoder_is_called_as_kohya_calls_it(request, family, prefix):
  names = lora_names.kohya_names(request.getfixturevalue(family).base)
  layer = "text_model.encoder.layers.0.self_attn.q_proj"
  wanted = f"{prefix}_text_model_encoder_layers_0_self_attn_q_proj"
  assert names["text_encoder", layer] == wanted


def test_kohyas_file_with_diffusers_block_names_is_read_for_sdxl(sdxl, tmp_path):
  case = sdxl
  state = {}
  layers = lora.layers_of(case.lora.params["unet"])
  interop.save_lora(tmp_path / "a.safetensors", case.lora, case.base)
  given = load_file(tmp_path / "a.safetensors")
  for layer in layers:
    name = f"lora_unet_{layer}".replace(".", "_")
    state[f"{name}.lora_down.weight"] = given[f"unet.{layer}.lora_A.weight"]
    state[f"{name}.lora_up.weight"] = given[f"unet.{layer}.lora_B.weight"]
    state[f"{name}.alpha"] = np.asarray(1.5, np.float16)
  save_file(state, tmp_path / "b.safetensors")
  found = interop.load_lora(tmp_path / "b.safetensors", case.base)
  assert found.alphas["unet"] == dict.fromkeys(layers, 1.5)
  jax.tree.map(np.testing.assert_array_equal, found.params["unet"], case.lora.params["unet"])


def rewritten(sd, tmp_path, change, metadata=None):
  """Our file with its entries changed."""
  interop.save_lora(tmp_path / "a.safetensors", sd.lora, sd.base)
  state = load_file(tmp_path / "a.safetensors")
  change(state)
  save_file(state, tmp_path / "a.safetensors", metadata=metadata)
  return tmp_path / "a.safetensors"


Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def test_everything_that_does_not_fit_is_listed(sd, tmp_path):
  def change(state):
    state["unet.elsewhere.to_q.lora_A.weight"] = np.ones((3, 8), np.float32)
    state[f"{Q}.dora_scale"] = np.ones(8, np.float32)
    del state["unet.conv_in.lora_B.weight"]
    k = Q.replace("to_q", "to_k")
    state[f"{k}.lora_B.weight"] = np.ones((9, 3), np.float32)

  with pytest.raises(InputError) as error:
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)
  message = str(error.value)
  assert "unet.elsewhere.to_q.lora_A.weight: the base has no such" in message
  assert f"{Q}.dora_scale: no entry of a plain LoRA" in message
  assert "unet.conv_in: needs both factors" in message
  assert "to_k: made for [8, 9], the base's is [8, 8]" in message
  assert len(message.splitlines()) == 5


@pytest.mark.parametrize(
  ("shape", "problem"),
  [((3, 8, 1, 1), "expected"), ((4, 8), "expected"), ((3, 9), r"made for \[9, 8\]")],
)
def test_factors_that_do_not_belong_together_are_refused(sd, tmp_path, shape, problem):
  def change(state):
    state[f"{Q}.lora_A.weight"] = np.ones(shape, np.float32)

  with pytest.raises(InputError, match=problem):
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)


def test_a_factor_under_two_spellings_is_refused(sd, tmp_path):
  def change(state):
    state[f"{Q}.lora.down.weight"] = state[f"{Q}.lora_A.weight"]

  with pytest.raises(InputError, match="twice"):
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)


@pytest.mark.parametrize(
  ("fields", "problem"),
  [
    ({"lora_alpha": 4, "r": 3, "use_dora": True}, "use_dora"),
    ({"lora_alpha": 4, "r": 3, "use_rslora": True}, "use_rslora"),
    ({"lora_alpha": 4, "r": 5}, "the header says rank 5, the factors have 3"),
  ],
)
def test_a_header_of_another_method_or_rank_is_refused(sd, tmp_path, fields, problem):
  header = json.dumps({f"unet.{name}": value for name, value in fields.items()})
  file = rewritten(sd, tmp_path, lambda state: None, {"lora_adapter_metadata": header})
  with pytest.raises(InputError, match=problem):
    interop.load_lora(file, sd.base)


@pytest.mark.parametrize("header", ["{", "[1]"])
def test_a_header_that_is_no_object_is_refused(sd, tmp_path, header):
  file = rewritten(sd, tmp_path, lambda state: None, {"lora_adapter_metadata": header})
  with pytest.raises(InputError, match=r"no (valid JSON|JSON object)"):
    interop.load_lora(file, sd.base)


def test_alpha_in_the_header_and_as_an_entry_is_refused(sd, tmp_path):
  header = json.dumps({"unet.lora_alpha": 4})

  def change(state):
    state[f"{Q}.alpha"] = np.asarray(4, np.float32)

  file = rewritten(sd, tmp_path, change, {"lora_adapter_metadata": header})
  with pytest.raises(InputError, match="twice"):
    interop.load_lora(file, sd.base)


def test_a_lora_for_sdxl_is_refused_by_sd(sd, sdxl, tmp_path):
  case = sdxl
  interop.save_lora(tmp_path / "a.safetensors", case.lora, case.base)
  with pytest.raises(InputError, match=r"text_encoder_2\.text_model"):
    interop.load_lora(tmp_path / "a.safetensors", sd.base)


def test_a_file_cut_short_is_refused(sd, tmp_path):
  file = rewritten(sd, tmp_path, lambda state: None)
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(InputError, match="damaged"):
    interop.load_lora(file, sd.base)


@pytest.mark.parametrize(
  ("name", "problem"), [("gone.safetensors", "no file"), ("a.bin", "pickled")]
)
def test_a_missing_or_pickled_file_is_refused(sd, tmp_path, name, problem):
  (tmp_path / "a.bin").write_bytes(b"")
  with pytest.raises(InputError, match=problem):
    interop.load_lora(tmp_path / name, sd.base)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (lambda x: x._replace(params={"vae": x.params["unet"]}), "'vae'"),
    (lambda x: x._replace(alphas={}), "alphas does not have"),
    (lambda x: x._replace(params={}), "names no component"),
    (lambda x: x._replace(alphas={**x.alphas, "unet": {"conv_in": 1}}), "these differ"),
    (lambda x: x._replace(params={"unet": x.params["text_encoder"]}), "another network"),
    (lambda x: x._replace(params=jax.tree.map(np.float64, x.params)), "float64"),
  ],
)
def test_a_lora_that_does_not_fit_is_not_written(sd, tmp_path, write, change, problem):
  with pytest.raises(InputError, match=problem):
    write(tmp_path / "a.safetensors", change(sd.lora), sd.base)
  assert not list(tmp_path.iterdir())


def test_a_name_that_readers_do_not_know_is_refused(sd, tmp_path):
  with pytest.raises(InputError, match=r"\*.safetensors"):
    interop.save_lora(tmp_path / "lora.bin", sd.lora, sd.base)


def test_a_file_is_replaced_whole_or_not_at_all(sd, tmp_path, monkeypatch):
  file = tmp_path / "a.safetensors"
  interop.save_lora(file, sd.lora, sd.base)
  before = file.read_bytes()

  def refuse(*_):
    raise OSError("no space left on device")

  monkeypatch.setattr("pathlib.Path.replace", refuse)
  with pytest.raises(InputError, match="no space left"):
    interop.save_lora(file, sd.lora._replace(alphas=dict.fromkeys(sd.base, 1)), sd.base)
  assert file.read_bytes() == before
  assert list(tmp_path.iterdir()) == [file]
