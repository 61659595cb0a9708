"""Pipelines from the hub: from a cache without a network, and from a server."""

import os
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from tests.evaluation.scorers import clips
from tests.interop import helpers, tiny
from tests.interop.hub_server import COMMIT, Hub

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def repository(sdxl_folder, tmp_path_factory):
  """A repository like SDXL's: two variants, other formats and other files."""
  folder = shutil.copytree(sdxl_folder, tmp_path_factory.mktemp("hub") / "repository")
  tiny.write_tiny_sdxl(folder, variant="fp16")
  for name in (
    "unet/diffusion_pytorch_model.bin",
    "unet/model.onnx",
    "vae_decoder/model.onnx",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "sd_xl_base_1.0.safetensors",
    "model.ckpt",
    "README.md",
    "LICENSE.md",
    "feature_extractor/preprocessor_config.json",
    "image_encoder/config.json",
    "image_encoder/model.safetensors",
    "image_encoder/pytorch_model.bin",
  ):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
  helpers.edit_json(
    folder / "model_index.json",
    feature_extractor=["transformers", "CLIPImageProcessor"],
    image_encoder=["transformers", "CLIPVisionModelWithProjection"],
  )
  return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache."""
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(cache, repository, monkeypatch):
  hub = Hub()
  hub.repositories["someone/tiny"] = repository
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
  monkeypatch.setattr(
    huggingface_hub.constants,
    "HUGGINGFACE_CO_URL_TEMPLATE",
    hub.address + "/{repo_id}/resolve/{revision}/{filename}",
  )
  yield hub
  hub.close()


def fill_cache(cache, folder, revision="main"):
  """Lays a repository out as huggingface_hub does."""
  base = cache / "models--someone--tiny"
  (base / "refs").mkdir(parents=True)
  (base / "refs" / revision).write_text(COMMIT)
  (base / "blobs").mkdir()
  for number, file in enumerate(file for file in folder.rglob("*") if file.is_file()):
    blob = shutil.copy(file, base / "blobs" / f"{number:040x}")
    link = base / "snapshots" / COMMIT / file.relative_to(folder)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
  return base / "snapshots" / COMMIT


# From the cache


def test_a_pipeline_in_the_cache_is_read_without_a_network(cache, offline, sdxl_folder, sdxl):
  fill_cache(cache, sdxl_folder)
  helpers.assert_same_trees(interop.load_pipeline("someone/tiny").params, sdxl.params)


def test_a_revision_in_the_cache_is_read_without_a_network(cache, offline, sdxl_folder, sdxl):
  fill_cache(cache, sdxl_folder, "v1.0")
  loaded = interop.load_pipeline("someone/tiny", revision="v1.0", components=["vae"])
  helpers.assert_same_trees(loaded.params["vae"], sdxl.params["vae"])


def test_a_network_in_the_cache_is_read_without_a_network(cache, offline, sdxl_folder, sdxl):
  fill_cache(cache, sdxl_folder / "vae")
  config, params = interop.load_network("someone/tiny")
  assert config == sdxl.configs["vae"]
  helpers.assert_same_trees(params, sdxl.params["vae"])


def test_the_cache_that_the_environment_names_is_read(tmp_path, sdxl_folder):
  fill_cache(tmp_path / "hub", sdxl_folder)
  code = (
    "from dmpo_jax import interop; "
    "print(list(interop.load_pipeline('someone/tiny', components=['vae']).params))"
  )
  environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
  environment.pop("HF_HUB_CACHE", None)
  actual = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
  )
  assert actual.stdout == "['vae']\n"


def test_a_saved_pipeline_has_no_links_into_the_cache(cache, offline, repository, tmp_path):
  fill_cache(cache, repository)
  interop.save_pipeline(tmp_path / "saved", interop.load_pipeline("someone/tiny"))
  assert not any(file.is_symlink() for file in (tmp_path / "saved").rglob("*"))


def test_no_network_and_an_empty_cache_are_an_error(cache, offline):
  with pytest.raises(InputError, match=r"'someone/tiny' is no folder here, the hub .* reached"):
    interop.load_pipeline("someone/tiny")


def test_missing_weights_in_a_cache_and_in_a_repository_are_different_errors(
  cache, offline, sdxl_folder
):
  (fill_cache(cache, sdxl_folder) / VAE).unlink()
  with pytest.raises(InputError, match=r"hub cannot be reached.*: vae: no diffusion_pytorch_model"):
    interop.load_pipeline("someone/tiny")


# From a server


def test_a_pipeline_is_downloaded(hub, sdxl):
  helpers.assert_same_trees(interop.load_pipeline("someone/tiny").params, sdxl.params)


def test_only_needed_files_of_a_repository_are_downloaded(hub, cache):
  interop.load_pipeline("someone/tiny", variant="fp16")
  snapshot = cache / "models--someone--tiny/snapshots" / COMMIT
  actual = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]
  assert sorted(actual) == [
    "LICENSE.md",
    "feature_extractor/preprocessor_config.json",
    "image_encoder/config.json",
    "image_encoder/model.safetensors",  # it has no such variant
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
  ]


def test_only_the_weights_of_named_networks_are_downloaded(hub):
  interop.load_pipeline("someone/tiny", components=["vae"])
  assert [name for name in hub.downloads if name.endswith(".safetensors")] == [VAE]


def test_a_partly_downloaded_pipeline_is_not_saved(hub, tmp_path):
  part = interop.load_pipeline("someone/tiny", components=["vae"])
  with pytest.raises(InputError, match=r"was never downloaded; load the whole pipeline"):
    interop.save_pipeline(tmp_path / "saved", part)


def test_a_downloaded_pipeline_is_read_without_a_network(hub, monkeypatch, sdxl):
  interop.load_pipeline("someone/tiny")
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  helpers.assert_same_trees(interop.load_pipeline("someone/tiny").params, sdxl.params)


def test_a_downloaded_pipeline_is_read_when_the_server_is_gone(hub, sdxl):
  interop.load_pipeline("someone/tiny", components=["vae"])
  hub.close()
  loaded = interop.load_pipeline("someone/tiny", components=["vae"])
  helpers.assert_same_trees(loaded.params["vae"], sdxl.params["vae"])


def test_a_network_in_shards_is_downloaded(hub, tmp_path):
  unet = tiny.make_sdxl_unet()
  unet.save_pretrained(tmp_path / "unet", max_shard_size="20KB", variant="fp16")
  hub.repositories["someone/unet"] = tmp_path / "unet"
  _, params = interop.load_network("someone/unet", variant="fp16")
  state = interop.to_torch_state(params)
  assert all((state[name] == tensor.numpy()).all() for name, tensor in unet.state_dict().items())


def test_a_network_in_a_subfolder_is_downloaded_alone(hub, sdxl):
  _, params = interop.load_network("someone/tiny", subfolder="vae")
  helpers.assert_same_trees(params, sdxl.params["vae"])
  assert sorted(set(hub.downloads)) == ["vae/config.json", VAE]


def test_a_folder_takes_precedence_over_a_repository(hub, sdxl_folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(sdxl_folder, tmp_path / "someone/tiny")
  interop.load_pipeline("someone/tiny", components=[])
  assert hub.downloads == []


def test_the_error_of_a_variant_missing_in_the_repository_lists_its_variants(hub):
  with pytest.raises(
    InputError, match=r"no weights of the variant 'bf16'.* those without a variant, 'fp16'"
  ):
    interop.load_pipeline("someone/tiny", variant="bf16")


def test_a_repository_that_does_not_exist_is_an_error(hub):
  with pytest.raises(InputError, match=r"'someone/tinny' is neither a folder here nor a repos"):
    interop.load_pipeline("someone/tinny")


def test_a_gated_repository_says_how_to_log_in(hub):
  hub.gated.add("someone/tiny")
  with pytest.raises(InputError, match=r"gated: accept its conditions on .* `hf auth login`"):
    interop.load_pipeline("someone/tiny")


def test_an_unknown_revision_is_named(hub):
  with pytest.raises(InputError, match=r"someone/tiny has no revision 'v9'"):
    interop.load_pipeline("someone/tiny", revision="v9")


def test_a_repository_without_a_pipeline_is_an_error(hub, sdxl_folder):
  hub.repositories["someone/vae"] = sdxl_folder / "vae"
  with pytest.raises(InputError, match=r"someone/vae has no model_index\.json"):
    interop.load_pipeline("someone/vae")


def test_pickled_weights_in_a_repository_are_not_downloaded(hub, sdxl_folder, tmp_path):
  folder = shutil.copytree(sdxl_folder / "vae", tmp_path / "vae")
  (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
  hub.repositories["someone/vae"] = folder
  with pytest.raises(InputError, match=r"weights are pickled .*download the repository"):
    interop.load_network("someone/vae")
  assert set(hub.downloads) == {"config.json"}


def test_pickled_passthrough_components_are_an_error_at_once(hub, repository, tmp_path):
  folder = shutil.copytree(repository, tmp_path / "repository")
  (folder / "image_encoder/model.safetensors").unlink()
  hub.repositories["someone/tiny"] = folder
  with pytest.raises(InputError, match=r"image_encoder/ has pickled weights alone"):
    interop.load_pipeline("someone/tiny")


# Neither


@pytest.mark.parametrize("source", ["runs/a/b", "./x", "/nowhere/at/all", "name", "a/b/", ""])
def test_a_source_that_is_neither_a_folder_nor_a_repository_is_refused(source):
  with pytest.raises(
    InputError, match=r"neither a folder nor the name of a repository|no pipeline"
  ):
    interop.load_pipeline(source)


def test_a_path_is_never_a_repository(hub, tmp_path):
  with pytest.raises(InputError, match="neither a folder nor the name of a repository"):
    interop.load_pipeline(type(tmp_path)("someone/tiny"))


def test_a_revision_of_a_folder_is_refused(sdxl_folder):
  with pytest.raises(InputError, match="only repositories of the hub have revisions"):
    interop.load_pipeline(sdxl_folder, revision="main")


def test_the_weights_in_the_cache_are_those_of_the_repository(hub, cache, repository):
  interop.load_pipeline("someone/tiny", components=["vae"])
  (file,) = cache.glob(f"models--someone--tiny/snapshots/{COMMIT}/{VAE}")
  assert load_file(file).keys() == load_file(repository / VAE).keys()


# Score models


@pytest.fixture
def clip_repository(hub, tmp_path):
  """A repository like PickScore's and LAION's: other formats of the same weights beside."""
  folder = tmp_path / "clip"
  network, _ = clips.make(folder)
  for name in ("pytorch_model.bin", "open_clip_model.safetensors", "tf_model.h5", "README.md"):
    (folder / name).write_text("{}")
  (folder / "preprocessor_config.json").write_text('{"resample": 3}')
  hub.repositories["someone/clip"] = folder
  return folder, network


def test_a_clip_model_is_downloaded_with_its_tokenizer_and_nothing_else(hub, clip_repository):
  folder, network = clip_repository
  _, params = interop.load_clip("someone/clip")
  expected = network.state_dict()["visual_projection.weight"].numpy().T
  np.testing.assert_array_equal(params["visual_projection"]["kernel"], expected)
  unwanted = {"pytorch_model.bin", "open_clip_model.safetensors", "tf_model.h5", "README.md"}
  downloaded = {name for name in hub.downloads if (folder / name).is_file()}
  assert {"config.json", "model.safetensors", "preprocessor_config.json"} < downloaded
  assert not downloaded & unwanted


def test_a_tokenizer_of_the_hub_is_read(clip_repository):
  tokenizer = interop.load_tokenizer("someone/clip")
  assert interop.tokenize(tokenizer, ["a red fox"]).ids.shape == (1, clips.CONTEXT)


def test_one_file_of_a_repository_is_found_by_its_name(hub, clip_repository):
  folder = interop.locate_file("someone/clip", "tf_model.h5")
  assert (folder / "tf_model.h5").read_text() == "{}"
  with pytest.raises(InputError, match=r"someone/clip has no absent\.pt"):
    interop.locate_file("someone/clip", "absent.pt")
