"""Diffusion-NPO: a LoRA of its own for the negative branch of guidance."""

from collections.abc import Mapping
from typing import Any

from dmpo_jax import diffusion, interop, models
from dmpo_jax.common import paths
from dmpo_jax.errors import InputError
from dmpo_jax.pipelines.interface import TextToImage


def check(
  guidance: float,
  lora: paths.Path | None,
  negative_lora: paths.Path | None,
  negative_weight: float | None,
) -> None:
  """Raises InputError for options of the negative branch that have no effect."""
  if negative_lora is not None and not diffusion.has_guidance(guidance):
    raise InputError(
      f"--negative-lora has no effect without guidance, and {guidance:g} is none; give --guidance "
      "above 1, or leave --negative-lora out"
    )
  if negative_weight is None:
    return
  if negative_lora is None or lora is None:
    missing = "--negative-lora" if negative_lora is None else "--lora"
    raise InputError(
      f"--negative-weight has no effect without {missing}: it is the fraction of --lora that the "
      f"negative branch leaves out; give {missing}, or leave --negative-weight out"
    )
  if not 0 <= negative_weight <= 1:
    raise InputError(f"--negative-weight must be from 0 to 1, got {negative_weight:g}")


def params_of(
  functions: TextToImage,
  base: Mapping[str, Any],
  lora: paths.Path | None,
  negative_lora: paths.Path,
  weight: float,
) -> dict[str, Any]:
  """Components of the negative branch of guidance: Diffusion-NPO.

      θ_negative = θ + Δ_negative + (1 - weight) Δ

  θ is the pipeline, Δ what `lora` adds to it and Δ_negative what `negative_lora` does. At weight 1
  the branch leaves `lora` out, at 0 it has both.

  Source: Diffusion-NPO (ICLR 2025), whose merged weights are θ_npo + (1 - w) (θ_dpo - θ_ref).
  """
  params = base
  if lora is not None and weight < 1:
    params = merged(params, lora, 1 - weight)
  params = merged(params, negative_lora, 1.0)
  changed = {name: tree for name, tree in params.items() if tree is not base[name]}
  if lora is not None:  # a component that `lora` alone adapts is the pipeline's own here
    adapted = interop.load_lora(lora, base).params
    changed |= {name: params[name] for name in adapted}
  if not changed.keys() <= {functions.denoiser, *functions.text_encoders}:
    raise InputError(
      f"{negative_lora} adapts {sorted(changed)}; expected denoiser or text encoders"
    )
  return changed


def merged(params: Mapping[str, Any], file: paths.Path, strength: float) -> dict[str, Any]:
  """Parameters with a LoRA merged into them, its update multiplied by a strength."""
  lora = interop.load_lora(file, params)
  merged = {}
  for name, tree in lora.params.items():
    alpha = {layer: strength * value for layer, value in lora.alphas[name].items()}
    merged[name] = models.lora.merge(params[name], tree, alpha=alpha)
  return {**params, **merged}
