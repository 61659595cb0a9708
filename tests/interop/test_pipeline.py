"""New pixel pipelines: components that must fit each other."""

import pytest

from dmpo_jax import interop
from dmpo_jax.errors import InputError


@pytest.mark.parametrize(("field", "value"), [("steps_offset", 0), ("clip_sample", True)])
def test_a_scheduler_that_diffusers_would_override_is_refused(pipeline, tokenizer, field, value):
  configs = dict(pipeline.configs)
  configs["scheduler"] = configs["scheduler"] | {field: value}
  with pytest.raises(InputError, match=f"{field} is {value}"):
    interop.pixel_pipeline(configs, pipeline.params, tokenizer)


@pytest.mark.parametrize(
  ("field", "value"), [("vocab_size", 20), ("max_position_embeddings", 4), ("eos_token_id", 2)]
)
def test_a_text_encoder_for_another_tokenizer_is_refused(pipeline, tokenizer, field, value):
  configs = dict(pipeline.configs)
  configs["text_encoder"] = configs["text_encoder"] | {field: value}
  with pytest.raises(InputError, match=f"{field} is {value}; the tokenizer needs"):
    interop.pixel_pipeline(configs, pipeline.params, tokenizer)


def test_a_pixel_pipeline_without_a_scheduler_is_refused(pipeline, tokenizer):
  configs = {name: pipeline.configs[name] for name in ("unet", "text_encoder")}
  with pytest.raises(InputError, match="no 'scheduler'"):
    interop.pixel_pipeline(configs, pipeline.params, tokenizer)
