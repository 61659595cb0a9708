"""Fingerprints of pipelines, by which cached latents, text embeddings and samples know theirs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dmpo_jax import diffusion, interop, models
from dmpo_jax.models import trees
from dmpo_jax.models.vae import config as vae_config
from dmpo_jax.parallel.array_checksums import tree_checksum
from dmpo_jax.parallel.to_host import on_host
from dmpo_jax.pipelines.autoencoder import AUTOENCODER
from dmpo_jax.pipelines.generate import SamplingInputs

# Parts of the autoencoder, and fields of its config, that cached latents depend on: another decoder
# changes no latent, and neither does another scale, which is applied after latents are sampled.
ENCODER_PARTS = ("encoder", "quant_conv")
DECODER_FIELDS = ("out_channels", "scaling_factor", "shift_factor", "use_post_quant_conv")
# Fields of configs that say who wrote them, beside those that begin with an underscore.
PROVENANCE = ("transformers_version", "torch_dtype", "dtype")


def of_encoders(
  pipeline: interop.Pipeline, text_encoders: Sequence[str], *, embeddings: bool
) -> dict[str, Any]:
  """Everything that cached latents and text embeddings depend on beside images and captions.

  Args:
    pipeline: Its autoencoder and, for embeddings, text encoders must be loaded.
    text_encoders: Names of its text encoders.
    embeddings: Whether text embeddings are cached too.

  Returns:
    "encoders": network -> "config" and "weights", a SHA-256; "tokenizers": text encoder -> SHA-256.
  """
  vae = pipeline.params[AUTOENCODER]
  config = dataclasses.asdict(vae_config.read(pipeline.configs[AUTOENCODER]))
  networks = {
    AUTOENCODER: {
      "config": {k: v for k, v in config.items() if k not in DECODER_FIELDS},
      "weights": params_digest({k: vae[k] for k in ENCODER_PARTS if k in vae}),
    }
  }
  for name in text_encoders if embeddings else ():
    config = dataclasses.asdict(models.read_config(pipeline.configs[name]))
    networks[name] = {"config": config, "weights": params_digest(pipeline.params[name])}
  tokenizers = {
    name: tokenizer_digest(pipeline.tokenizers[name.replace("text_encoder", "tokenizer")])
    for name in text_encoders
  }
  return json.loads(json.dumps({"encoders": networks, "tokenizers": tokenizers}))


def sampling_fingerprint(
  pipeline: interop.Pipeline,
  solver: diffusion.Solver,
  inputs: SamplingInputs,
  negative_params: Mapping[str, Any] | None = None,
) -> dict[str, str]:
  """Digests of the content that images are sampled from, wherever it lies.

  Args:
    pipeline: The pipeline, with its parameters as they are stored; a LoRA is merged.
    solver: The solver with its steps.
    inputs: Inputs of the images; their token ids count.
    negative_params: Components of the negative branch of guidance, as they are stored.

  Returns:
    "weights", "configs", "solver", "tokens" and, with `negative_params`, "negative_weights" ->
    hexadecimal digest.
  """
  negative = {} if negative_params is None else {"negative_weights": tree_checksum(negative_params)}
  return {
    **pipeline_fingerprint(pipeline),
    **negative,
    "solver": _arrays(solver),
    "tokens": _arrays((inputs.text, inputs.negative_text)),
  }


def pipeline_fingerprint(pipeline: interop.Pipeline) -> dict[str, str]:
  """Digests of a pipeline's parameters and of its configs but the scheduler's.

  Args:
    pipeline: The pipeline, with its parameters as they are stored; a LoRA is merged.

  Returns:
    "weights" and "configs" -> hexadecimal digest.
  """
  configs = {
    name: {k: v for k, v in config.items() if v is not None and not _is_provenance(k)}
    for name, config in pipeline.configs.items()
    if name != interop.pipeline.SCHEDULER  # samplers have its numbers
  }
  return {
    "weights": tree_checksum(pipeline.params),
    "configs": _digest(json.dumps(configs, sort_keys=True, default=str).encode()),
  }


def params_digest(params: Mapping[str, Any]) -> str:
  """SHA-256 of parameters: of names, dtypes, shapes and bytes."""
  digest = hashlib.sha256()
  for name, leaf in sorted(trees.flatten(params).items()):
    array = np.ascontiguousarray(on_host(leaf))
    digest.update(f"{name} {array.dtype} {array.shape} ".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
  """SHA-256 of everything that a tokenizer's ids depend on."""
  parts = json.loads(tokenizer.backend_tokenizer.to_str())
  vocabulary = sorted(tokenizer.get_vocab().items())
  lengths = [tokenizer.model_max_length, tokenizer.pad_token_id]
  if "merges" in parts["model"]:  # byte-pair encoding, CLIP's
    # Older versions of tokenizers write "a b" for ["a", "b"].
    merges = parts["model"]["merges"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    content = [vocabulary, merges, *lengths]
  else:  # unigrams, T5's
    rules = [parts[name] for name in ("normalizer", "pre_tokenizer", "post_processor")]
    content = [vocabulary, parts["model"], *rules, *lengths]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_provenance(field: str) -> bool:
  return field.startswith("_") or field in PROVENANCE


def _arrays(tree: Any) -> str:
  """Digest of a tree of small arrays and numbers."""
  parts = [
    f"{jax.tree_util.keystr(path)} {np.asarray(leaf).dtype} {np.asarray(leaf).shape} ".encode()
    + np.ascontiguousarray(leaf).tobytes()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]
  return _digest(b"".join(parts))


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:16]
