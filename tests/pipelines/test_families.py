"""The family of a pipeline by the class in its model_index.json."""

import json

import pytest

from dmpo_jax import pipelines
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines import stable_diffusion, stable_diffusion_3
from tests.interop import tiny


def _write_class(folder, name, **index):
  """A tiny pipeline of pixels whose index has another class."""
  tiny.write_tiny_pixels(folder)
  file = folder / "model_index.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": name, **index}))
  return folder


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_published_classes_belong_to_their_family(name):
  family = (stable_diffusion_3 if "Diffusion3" in name else stable_diffusion).FAMILY
  assert pipelines.family_of({"_class_name": name}) is family


def test_a_class_made_of_the_components_of_stable_diffusion_belongs_to_its_family(tmp_path):
  folder = _write_class(tmp_path / "pipeline", "MyOwnPipeline")
  pipeline = pipelines.load(folder)
  assert pipelines.family_of(pipeline.model_index) is stable_diffusion.FAMILY
  functions = pipelines.build(pipeline)
  assert (functions.denoiser, functions.text_encoders) == ("unet", ("text_encoder",))


def test_an_unknown_class_is_refused_by_its_name(tmp_path):
  index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
  message = r"unknown pipeline class.*'FluxPipeline'"
  with pytest.raises(InputError, match=message):
    pipelines.family_of(index)
  (tmp_path / "model_index.json").write_text(json.dumps(index))
  with pytest.raises(InputError, match=message):
    pipelines.load(tmp_path)


def test_a_misspelt_class_is_refused_with_a_suggestion():
  with pytest.raises(InputError, match="did you mean 'StableDiffusionXLPipeline'"):
    pipelines.family_of({"_class_name": "StableDifusionXLPipeline"})


def test_new_networks_of_an_unknown_class_are_refused_by_its_name():
  with pytest.raises(InputError, match="'FluxPipeline'"):
    pipelines.create({"_class_name": "FluxPipeline"}, ["one"], seed=0)
