"""What tells a pipeline's frozen networks from others, and whether encoded pairs are theirs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmpo_jax import data, interop
from dmpo_jax.common.differences import describe, differences
from dmpo_jax.errors import InputError
from dmpo_jax.models import trees
from dmpo_jax.models.clip import config as clip_config
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.parallel.to_host import on_host

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
# Of a VAE's parameters and config, what its encoder has and uses; another decoder changes no
# moment, and neither does another scale, which is applied after latents are drawn.
ENCODER = ("encoder", "quant_conv")
NOT_OF_ENCODER = ("out_channels", "scaling_factor", "shift_factor", "use_post_quant_conv")


def identity(pipeline: interop.Pipeline, *, embeddings: bool) -> dict[str, Any]:
  """What the numbers of an encoding depend on, beside images and captions.

  Args:
    pipeline: Its "vae" and, for embeddings, text encoders must be loaded.
    embeddings: Whether captions are encoded.

  Returns:
    "encoders": network -> "config" and "weights", a hash; "tokenizers": the same of theirs.
  """
  vae = {k: pipeline.params["vae"][k] for k in ENCODER if k in pipeline.params["vae"]}
  config = dataclasses.asdict(vae_config.read(pipeline.configs["vae"]))
  config = {k: v for k, v in config.items() if k not in NOT_OF_ENCODER}
  found = {"vae": {"config": config, "weights": _hash(vae)}}
  there = [name for name in TEXT_ENCODERS if name in pipeline.configs]
  for name in there if embeddings else ():
    config = dataclasses.asdict(clip_config.read(pipeline.configs[name]))
    found[name] = {"config": config, "weights": _hash(pipeline.params[name])}
  tokenizers = {
    name: _tokenizer(getattr(pipeline, name.replace("text_encoder", "tokenizer"))) for name in there
  }
  return json.loads(json.dumps({"encoders": found, "tokenizers": tokenizers}))


def check(examples: data.EncodedPairs, pipeline: interop.Pipeline, trained: Sequence[str]) -> None:
  """Refuses encoded pairs that another pipeline encoded, or that training would make stale.

  Args:
    examples: The pairs.
    pipeline: That of the run, with its parameters.
    trained: Components that are trained.

  Raises:
    InputError: It names what differs.
  """
  if "vae" not in pipeline.configs:
    raise InputError(
      "the pipeline denoises the images themselves, and the pairs are encoded as latents; "
      'config.data.name="pairs" reads images'
    )
  stale = [name for name in trained if name in TEXT_ENCODERS]
  if examples.embeddings and stale:
    raise InputError(
      f"config.trained names {stale[0]!r}, whose stored embeddings would stay as they were; set "
      "config.data.embeddings=False: then the text encoders run in each step"
    )
  mine = identity(pipeline, embeddings=examples.embeddings)
  stored = {part: dict(examples.manifest[part]) for part in mine}
  if not examples.embeddings:
    stored["encoders"] = {"vae": stored["encoders"]["vae"]}
  if different := differences(stored, mine):
    raise InputError(
      "the pairs were encoded by another pipeline than config.pipeline; take that pipeline, or "
      f"encode with this one:\n{describe(different, first='stored')}"
    )


def _hash(params: Mapping[str, Any]) -> str:
  """SHA-256 of parameters: of names, dtypes, shapes and bytes."""
  digest = hashlib.sha256()
  for name, leaf in sorted(trees.flatten(params).items()):
    array = np.ascontiguousarray(on_host(leaf))
    digest.update(f"{name} {array.dtype} {array.shape} ".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def _tokenizer(tokenizer: Any) -> str:
  """SHA-256 of what a tokenizer's ids depend on."""
  merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
  # Older versions of tokenizers write "a b" for ["a", "b"].
  merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
  vocabulary = sorted(tokenizer.get_vocab().items())
  known = [vocabulary, merges, tokenizer.model_max_length, tokenizer.pad_token_id]
  return hashlib.sha256(json.dumps(known).encode()).hexdigest()
