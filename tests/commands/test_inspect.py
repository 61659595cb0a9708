"""`dmpo-jax inspect`: descriptions and comparisons of folders with known content."""

import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop
from dmpo_jax.commands.inspect import checkpoint as inspect_checkpoint
from dmpo_jax.commands.inspect import compare as inspect_compare
from dmpo_jax.models import lora, trees
from tests.interop import tiny
from tests.interop.hub_server import Hub

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def change(file, edit):
  state = load_file(file)
  edit(state)
  save_file(state, file, metadata={"format": "pt"})


def test_parameters_and_bytes_are_those_of_the_networks(inspect, start):
  components = inspect(start)["components"]
  for name, kind in {"unet": UNet2DConditionModel, "vae": AutoencoderKL}.items():
    network = kind.from_pretrained(start / name)
    assert components[name]["parameters"] == sum(p.numel() for p in network.parameters())
    assert components[name]["tensors"] == len(network.state_dict())
    file = start / name / "diffusion_pytorch_model.safetensors"
    assert components[name]["bytes"] == file.stat().st_size


def test_a_pipeline_names_its_classes_and_its_schedule(inspect, start):
  description = inspect(start)
  assert description["kind"] == "pipeline"
  assert description["facts"]["class"] == "StableDiffusionPipeline"
  scheduler = description["components"]["scheduler"]
  assert scheduler["class"] == "DDIMScheduler"
  assert scheduler["config"]["prediction_type"] == "epsilon"
  assert scheduler["config"]["beta_schedule"] == "scaled_linear"


def test_the_table_shows_parameters_and_config_fields(tables, start):
  text = tables(start)
  assert "UNet2DConditionModel      51,684      208  float32" in text
  assert "prediction_type epsilon" in text


def test_shards_are_added_up(inspect, tmp_path):
  folder = tiny.write_tiny_sdxl(tmp_path / "xl", max_shard_size="40KB")
  files = list((folder / "unet").glob("*.safetensors"))
  assert len(files) > 1
  unet = inspect(folder)["components"]["unet"]
  assert unet["bytes"] == sum(file.stat().st_size for file in files)
  assert unet["tensors"] == 292


def test_a_half_precision_variant_differs_from_its_original_by_rounding(
  inspect, tables, start, tmp_path
):
  pipeline = interop.load_pipeline(start)
  interop.save_pipeline(tmp_path / "half", pipeline, dtype="float16", variant="fp16")
  difference = inspect(tmp_path / "half", "--against", start)
  assert difference["components"]["unet"]["dtypes"] == {"float16": 51684}
  assert difference["components"]["unet"]["variants"] == ["fp16"]
  unet = difference["differences"]["components"]["unet"]
  assert (unet["identical"], unet["rounded"], unet["different"]) == (0, 208, 0)
  assert 0 < unet["relative"] < 2**-11
  assert "the same, rounded" in tables(tmp_path / "half", "--against", start)


def test_a_variant_beside_the_plain_weights_is_chosen_by_name(inspect, start, tmp_path):
  pipeline = interop.load_pipeline(start)
  interop.save_pipeline(tmp_path / "both", pipeline)
  interop.save_pipeline(tmp_path / "half", pipeline, dtype="float16", variant="fp16")
  name = "unet/diffusion_pytorch_model.fp16.safetensors"
  shutil.copyfile(tmp_path / "half" / name, tmp_path / "both" / name)
  plain = inspect(tmp_path / "both")["components"]["unet"]
  half = inspect(tmp_path / "both", "--variant", "fp16")["components"]["unet"]
  assert plain["variants"] == half["variants"] == [None, "fp16"]
  assert (plain["dtypes"], half["dtypes"]) == ({"float32": 51684}, {"float16": 51684})


def test_equal_pipelines_are_the_same(inspect, tables, start, copy):
  comparison = inspect(start, "--against", copy)["differences"]
  assert comparison["only_here"] == comparison["only_there"] == []
  for component in comparison["components"].values():
    assert not component["config"]
    assert not component["files"]
    assert not component.get("different")
  assert "differ " not in tables(start, "--against", copy)


def test_measures_of_a_difference_agree_with_numpy(inspect, start, copy):
  before = load_file(start / WEIGHTS)
  generator = np.random.default_rng(0)

  def edit(state):
    for name in ("conv_in.weight", "conv_in.bias", "mid_block.resnets.0.conv1.weight"):
      state[name] += 1e-3 * generator.normal(size=state[name].shape).astype(np.float32)
    state["conv_out.bias"][0] += 5

  change(copy / WEIGHTS, edit)
  after = load_file(copy / WEIGHTS)
  unet = inspect(copy, "--against", start)["differences"]["components"]["unet"]
  assert (unet["identical"], unet["different"]) == (204, 4)
  assert unet["largest_absolute"] == [pytest.approx(5), "conv_out.bias"]
  flat = lambda state: np.concatenate([np.float64(state[k]).ravel() for k in before])  # noqa: E731
  difference = np.linalg.norm(flat(after) - flat(before))
  assert unet["relative"] == pytest.approx(difference / np.linalg.norm(flat(before)), rel=1e-6)
  assert next(module for module, *_ in unet["modules"]) == "conv_out"
  assert {m for m, *_ in unet["modules"]} == {"conv_in", "conv_out", "mid_block.resnets.0.conv1"}
  conv_in = next(row for row in unet["modules"] if row[0] == "conv_in")
  both = [(after[f"conv_in.{x}"], before[f"conv_in.{x}"]) for x in ("weight", "bias")]
  wanted = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in both) / sum(np.sum(b**2) for _, b in both))
  assert conv_in[1] == pytest.approx(wanted, rel=1e-4)


def test_a_change_from_zero_has_no_relative_size(inspect, start, copy, tmp_path):
  zero = shutil.copytree(start, tmp_path / "zero")
  change(zero / WEIGHTS, lambda state: state["conv_out.bias"].fill(0))
  unet = inspect(copy, "--against", zero)["differences"]["components"]["unet"]
  assert unet["largest_relative"] == [None, "conv_out.bias"]
  assert unet["relative"] < 1


def test_large_tensors_are_measured_in_chunks(inspect, start, copy, monkeypatch):
  change(copy / WEIGHTS, lambda state: state["conv_in.weight"].__imul__(1.5))
  once = inspect(copy, "--against", start)["differences"]["components"]["unet"]
  monkeypatch.setattr(inspect_compare, "CHUNK", 100)
  chunks = inspect(copy, "--against", start)["differences"]["components"]["unet"]
  assert chunks["relative"] == pytest.approx(once["relative"], rel=1e-12)
  assert chunks["largest_absolute"] == once["largest_absolute"]
  assert (chunks["identical"], chunks["different"]) == (207, 1)


def test_the_table_lists_the_most_changed_modules(tables, start, copy):
  change(copy / WEIGHTS, lambda state: state["conv_out.bias"].__iadd__(3))
  text = tables(copy, "--against", start)
  assert "unet: largest |a-b| in conv_out.bias" in text
  assert text.index("most changed modules") < text.index("  conv_out ")


def test_fields_of_configs_that_differ_are_named(inspect, start, copy):
  file = copy / "scheduler" / "scheduler_config.json"
  config = json.loads(file.read_text())
  config["prediction_type"], config["_diffusers_version"] = "v_prediction", "0.1"
  file.write_text(json.dumps(config))
  scheduler = inspect(copy, "--against", start)["differences"]["components"]["scheduler"]
  assert scheduler["config"] == {"prediction_type": ["v_prediction", "epsilon"]}


def test_other_files_are_compared_by_their_bytes(inspect, start, copy):
  (copy / "tokenizer" / "tokenizer.json").write_text("{}")
  (copy / "tokenizer" / "more.txt").write_text("")
  tokenizer = inspect(copy, "--against", start)["differences"]["components"]["tokenizer"]
  assert tokenizer["files"] == {"more.txt": "only here", "tokenizer.json": "differs"}


def test_entries_of_one_side_and_other_shapes_are_listed(inspect, tables, start, copy):
  def edit(state):
    state["extra.weight"] = state.pop("conv_in.weight")
    state["conv_out.bias"] = np.zeros(9, np.float32)

  change(copy / WEIGHTS, edit)
  unet = inspect(copy, "--against", start)["differences"]["components"]["unet"]
  assert (unet["only_here"], unet["only_there"]) == (["extra.weight"], ["conv_in.weight"])
  assert unet["shape_differs"] == ["conv_out.bias: [9] here, [4] there"]
  assert "names or shapes differ" in tables(copy, "--against", start)


def test_components_of_one_side_are_listed(inspect, start, copy):
  index = json.loads((copy / "model_index.json").read_text())
  index["vae"] = [None, None]
  (copy / "model_index.json").write_text(json.dumps(index))
  comparison = inspect(copy, "--against", start)["differences"]
  assert (comparison["only_here"], comparison["only_there"]) == ([], ["vae"])


def test_values_that_are_not_finite_are_listed_and_left_out_of_the_measures(inspect, start, copy):
  def edit(state):
    state["conv_in.weight"][0, 0] = np.nan
    state["conv_in.weight"][1, 0] += 2

  change(copy / WEIGHTS, edit)
  unet = inspect(copy, "--against", start)["differences"]["components"]["unet"]
  assert unet["not_finite"] == ["conv_in.weight"]
  assert unet["largest_absolute"] == [pytest.approx(2, rel=1e-6), "conv_in.weight"]


def test_names_with_and_without_the_prefix_of_text_encoders_are_matched(inspect, start, tmp_path):
  interop.save_pipeline(tmp_path / "ours", interop.load_pipeline(start))
  file = "text_encoder/model.safetensors"
  assert load_file(start / file).keys() != load_file(tmp_path / "ours" / file).keys()
  text = inspect(tmp_path / "ours", "--against", start)["differences"]["components"]["text_encoder"]
  assert (text["identical"], text["only_here"], text["only_there"]) == (36, [], [])


@pytest.mark.parametrize("part", ["unet", WEIGHTS])
def test_a_single_component_is_compared_with_that_of_a_pipeline(inspect, start, part):
  unet = inspect(start / part, "--against", start)["differences"]["components"]["unet"]
  assert (unet["identical"], unet["config"]) == (208, {})


def test_a_repository_of_the_hub_is_downloaded_and_described(inspect, start, tmp_path, monkeypatch):
  hub = Hub()
  hub.repositories["someone/tiny"] = start
  constants = huggingface_hub.constants
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(constants, "ENDPOINT", hub.address)
  template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
  try:
    difference = inspect("someone/tiny", "--against", start)
  finally:
    hub.close()
  unet = difference["differences"]["components"]["unet"]
  assert (unet["identical"], unet["different"]) == (208, 0)


def test_a_run_is_its_last_checkpoint_with_the_frozen_components_of_its_base(inspect, run):
  description = inspect(run.workdir)
  assert description["kind"] == "checkpoint of a run"
  facts = description["facts"]
  assert facts["step"] == "4 (checkpoints: 2, 4)"
  assert facts["weights"] == "EMA weights"
  assert facts["loss"] == "dmpo (alpha 0.01, beta 100.0)"
  assert facts["base pipeline"] == str(run.start)
  unet = description["components"]["unet"]
  assert unet["class"] == "UNet2DConditionModel"
  assert unet["parameters"] == trees.count(run.last)
  assert description["components"]["vae"]["notes"] == ["frozen: equal to the base pipeline"]


@pytest.mark.parametrize("weights", ["ema", "last"])
def test_a_checkpoint_equals_its_export(inspect, run, exported, weights):
  out = exported("--weights", weights)
  differences = inspect(run.workdir, "--weights", weights, "--against", out)["differences"][
    "components"
  ]
  assert all(not component.get("different") for component in differences.values())
  assert differences["unet"]["identical"] == len(interop.to_torch_state(run.last["unet"]))


def test_ema_weights_are_compared_with_the_last_weights(inspect, run):
  difference = inspect(run.workdir, "--against", run.workdir, "--against-weights", "last")
  unet = difference["differences"]["components"]["unet"]
  a, b = (interop.to_torch_state(x["unet"]) for x in (run.ema, run.last))
  assert unet["different"] == sum(not np.array_equal(a[name], b[name]) for name in a)
  largest = max(np.abs(np.float64(a[name]) - b[name]).max() for name in a)
  assert unet["largest_absolute"][0] == pytest.approx(largest)


def test_training_changed_the_trained_network_alone(inspect, run):
  differences = inspect(run.workdir, "--against", run.start)["differences"]["components"]
  assert {name for name, x in differences.items() if x.get("different")} == {"unet"}
  assert all(module.startswith("down_blocks") for module, *_ in differences["unet"]["modules"])


def test_an_earlier_checkpoint_is_named_by_its_folder(inspect, run):
  description = inspect(run.workdir / "checkpoints" / "2")
  assert description["facts"]["step"] == "2 (checkpoints: 2, 4)"


def test_a_run_without_ema_shows_its_last_weights(inspect, run_without_ema):
  description = inspect(run_without_ema.workdir)
  assert description["facts"]["weights"] == "last weights (the run has no EMA)"


def test_a_run_without_its_base_pipeline_shows_the_trained_components(inspect, run, tmp_path):
  workdir = shutil.copytree(run.workdir, tmp_path / "run")
  config = json.loads((workdir / "run.json").read_text())
  config["config"]["pipeline"] = str(tmp_path / "gone")
  (workdir / "run.json").write_text(json.dumps(config))
  description = inspect(workdir)
  assert list(description["components"]) == ["unet"]
  assert description["facts"]["base pipeline"].startswith(f"{tmp_path}/gone (no such folder")


def test_a_checkpoint_read_in_small_groups_gives_the_same_weights(inspect, run, monkeypatch):
  monkeypatch.setattr(inspect_checkpoint, "CHUNK_BYTES", trees.count(run.ema) * 4 // 3)
  difference = inspect(run.workdir, "--against", run.start)["differences"]["components"]["unet"]
  changed = [name for name in interop.to_torch_state(run.ema["unet"]) if "down_blocks" in name]
  assert difference["different"] == len(changed)


def make_lora(start, rank=2, *, fill=True):
  base = interop.load_pipeline(start).params
  tree = lora.init(jax.random.key(0), base["unet"], rank=rank)
  if fill:
    tree = jax.tree.map(lambda x: x + np.float32(0.1), tree)
  text = lora.init(
    jax.random.key(0), base["text_encoder"], targets=lora.TEXT_ATTENTION, rank=rank + 1
  )
  return interop.Lora({"unet": tree, "text_encoder": text}, {"unet": 4, "text_encoder": 1.5}), base


@pytest.mark.parametrize(
  ("write", "form"), [(interop.save_lora, "peft"), (interop.save_kohya_lora, "kohya")]
)
def test_a_lora_has_its_components_ranks_and_alphas(inspect, start, tmp_path, write, form):
  write(tmp_path / "a.safetensors", *make_lora(start))
  description = inspect(tmp_path / "a.safetensors")
  assert description["kind"] == "LoRA"
  assert description["lora"]["form"] == form
  unet, text = (description["lora"]["components"][name] for name in ("unet", "text_encoder"))
  # The strength is in the factors: alphas are the ranks.
  assert (unet["layers"], unet["ranks"], unet["alphas"]) == (32, [2], [2])
  assert (text["layers"], text["ranks"], text["alphas"]) == (8, [3], [3])
  assert (unet["layers_without_effect"], text["layers_without_effect"]) == (0, 8)


def test_a_lora_without_alpha_has_the_rank_as_alpha(inspect, start, tmp_path):
  factors, base = make_lora(start)
  interop.save_lora(tmp_path / "a.safetensors", factors, base)
  save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
  unet = inspect(tmp_path / "b.safetensors")["lora"]["components"]["unet"]
  assert (unet["alphas"], unet["alpha_source"]) == ([2], "rank")


def test_alphas_of_entries_and_of_the_header_are_shown(inspect, start, tmp_path):
  factors, base = make_lora(start)
  interop.save_lora(tmp_path / "a.safetensors", factors, base)
  state = load_file(tmp_path / "a.safetensors")
  entries = {name.replace("lora_A.weight", "alpha"): np.float32([0.5]) for name in state}
  save_file(state | {k: v for k, v in entries.items() if "alpha" in k}, tmp_path / "b.safetensors")
  fields = {"unet.lora_alpha": 7, "unet.alpha_pattern": {"attn1.*to_q": 9}}
  save_file(state, tmp_path / "c.safetensors", {"lora_adapter_metadata": json.dumps(fields)})
  for name, alphas in (("b", [0.5]), ("c", [7, 9])):
    unet = inspect(tmp_path / f"{name}.safetensors")["lora"]["components"]["unet"]
    assert (unet["alphas"], unet["alpha_source"]) == (alphas, "file")


def test_a_lora_without_effect_is_noted(tables, start, tmp_path):
  interop.save_lora(tmp_path / "a.safetensors", *make_lora(start, fill=False))
  assert "unet: every up factor is zero: the LoRA has no effect" in tables(tmp_path)


def test_a_dtype_that_numpy_lacks_is_shown(inspect, tmp_path):
  file = tmp_path / "a.safetensors"
  safetensors.torch.save_file({"x": torch.ones(4).to(torch.float8_e4m3fn)}, file)
  assert inspect(file)["components"]["a"]["dtypes"] == {"F8_E4M3": 4}


def test_pickled_weights_are_mentioned_and_not_read(inspect, copy):
  (copy / WEIGHTS).unlink()
  (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
  unet = inspect(copy)["components"]["unet"]
  assert unet["tensors"] == 0
  assert unet["notes"] == ["the weights are pickled and not read: diffusion_pytorch_model.bin"]
