"""File names of a network's weights in diffusers and transformers."""

import json
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from dmpo_jax.errors import InputError, short
from dmpo_jax.interop import files

SUFFIX = ".safetensors"
STEMS = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def stem(config: Mapping[str, Any]) -> str:
  """Start of the weights' file names; diffusers' configs have a `_class_name`."""
  return STEMS[0] if config.get("_class_name") else STEMS[1]


def single(stem: str, variant: str | None) -> str:
  """File name of unsharded weights: `model.safetensors`, `model.fp16.safetensors`."""
  return f"{_with(stem, variant)}{SUFFIX}"


def shard(stem: str, variant: str | None, number: int, count: int) -> str:
  """File name of a shard, from 1: `model-00001-of-00002.safetensors`, or with `model.fp16`."""
  return f"{_with(stem, variant)}-{number:05d}-of-{count:05d}{SUFFIX}"


def index(stem: str, variant: str | None) -> str:
  """File name of the index of shards: `model.safetensors.index.fp16.json`."""
  return _with(f"{stem}{SUFFIX}.index", variant) + ".json"


def find(names: Collection[str], stem: str, variant: str | None) -> list[str]:
  """The files of the weights among `names`: the single one, or an index and its shards.

  Args:
    names: File names of a folder.
    stem: Start of the weights' names, from `stem`.
    variant: Variant, as in `model.fp16.safetensors`; None for files without one.

  Returns:
    One name, or the index (by its current name or that of diffusers before 0.31) and then every
    shard; empty where both are missing.
  """
  if (file := single(stem, variant)) in names:
    return [file]
  # The older form has the variant elsewhere: model.safetensors.fp16.index.json.
  old_index = f"{_with(f'{stem}{SUFFIX}', variant)}.index.json"
  numbers = r"-\d{5}-of-\d{5}"
  patterns = {
    index(stem, variant): re.escape(_with(stem, variant)) + numbers + re.escape(SUFFIX),
    old_index: re.escape(stem) + numbers + re.escape(_with("", variant) + SUFFIX),
  }
  for file, pattern in patterns.items():
    if file in names:
      return [file, *sorted(name for name in names if re.fullmatch(pattern, name))]
  return []


def choose(names: Collection[str], stem: str, variant: str | None) -> tuple[list[str], str | None]:
  """The files that a network is read from, as diffusers chooses them.

  They are those of the variant; where it has none, those without a variant; and where no variant is
  asked for and there is one alone, those of that one.

  Args:
    names: File names of a folder.
    stem: Start of the weights' names, from `stem`.
    variant: The variant that is asked for; None: none.

  Returns:
    The files as `find` returns them, empty where there are none, and their variant.
  """
  wanted = [variant, None] if variant else [None]
  existing = variants(names, stem)
  if variant is None and None not in existing and len(existing) == 1:
    wanted = existing
  for each in wanted:
    if weights := find(names, stem, each):
      return weights, each
  return [], variant


def explain_absence(
  names: Collection[str], config: Mapping[str, Any], variant: str | None, where: str | None
) -> InputError:
  """The error for a folder without the weights that are read.

  Args:
    names: File names of the folder.
    config: The network's config.
    variant: The variant that is read.
    where: The folder, for the command that converts pickles; None where it is not on this disk.
  """
  begin = stem(config)
  existing = variants(names, begin)
  if existing:
    return InputError(
      f"no weights {'without a variant' if variant is None else f'of the variant {variant!r}'}; "
      f"the folder has {_listed(existing)}; name one as the variant"
    )
  pickled = sorted(name for name in names if name.endswith(PICKLES))
  if not pickled:
    listed = ", ".join(sorted(names)) or "nothing"
    return InputError(f"no {single(begin, variant)}; the folder has {listed}")
  reason = (
    f"the weights are pickled ({', '.join(pickled)}), and unpickling can run any code, so only "
    "safetensors are read. "
  )
  if where is None:
    return InputError(
      f"{reason}If you trust the file, download the repository with "
      "huggingface_hub.snapshot_download and give the folder; the error then says how to convert it"
    )
  library = "diffusers" if config.get("_class_name") else "transformers"
  name = files.class_name(config, where)
  if not name.isidentifier():
    return InputError(f"{reason}Its config names the class {short(name)}, which is no name")
  # A shell must not evaluate words of the folder or of its files.
  folder = json.dumps(where)
  code = (
    f"from {library} import {name} as M; "
    f"M.from_pretrained({folder}, use_safetensors=False).save_pretrained({folder})"
  )
  return InputError(
    f"{reason}If you trust the file, convert it once, with torch installed:\n"
    f"  python -c {shlex.quote(code)}"
  )


def check_variant(components: Mapping[str, Collection[str]], variant: str | None) -> None:
  """Raises InputError if a variant is asked for that no component of a pipeline has.

  Args:
    components: Component -> file names of its folder.
    variant: The variant; None: none is asked for.
  """
  if variant is None:
    return
  existing = {v for names in components.values() for stem in STEMS for v in variants(names, stem)}
  if variant not in existing:
    pickled = [
      f"{component}/{name}"
      for component, names in components.items()
      for name in names
      if name.endswith(PICKLES) and f".{variant}." in name
    ]
    raise InputError(
      f"no weights of the variant {variant!r}; the pipeline has {_listed(existing)}"
      + (f", and pickled ones, which are not read: {', '.join(pickled)}" if pickled else "")
    )


def _listed(variants: Collection[str | None]) -> str:
  ordered = sorted(variants, key=lambda variant: variant or "")
  return (
    ", ".join("those without a variant" if v is None else repr(v) for v in ordered) or "none at all"
  )


def variants(names: Collection[str], stem: str) -> list[str | None]:
  """Variants of the weights among `names`; None stands for weights without one."""
  pattern = re.escape(stem) + r"(?:\.([^.]+?))?(?:-\d{5}-of-\d{5})?(?:\.([^.]+))?"
  result = set()
  for name in names:
    match = re.fullmatch(pattern + re.escape(SUFFIX), name)
    if match and find(names, stem, variant := match[1] or match[2]):
      result.add(variant)
  return sorted(result, key=lambda variant: variant or "")


def _with(name: str, variant: str | None) -> str:
  return name if variant is None else f"{name}.{variant}"
