"""The bytes of LoRA files: where they are, their header and their tensors."""

import json
import logging
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors.numpy

from dmpo_jax.common import files, paths
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError, short
from dmpo_jax.interop import lora_config, state_dict, tensor_file
from dmpo_jax.interop.weight_names import PICKLES, SUFFIX

# The names that diffusers and peft give their files.
DIFFUSERS_FILE, PEFT_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"

# Dtypes of safetensors that numpy has, or ml_dtypes.
CODES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}

log = logging.getLogger(__name__)


def locate(path: paths.Path) -> paths.Path:
  """The LoRA file at a path: the file itself, or in a folder diffusers', peft's or the only one.

  Raises:
    InputError: There is none, there are several, or it is pickled.
  """
  if path.is_dir():
    names = sorted(p.name for p in path.iterdir() if p.suffix == SUFFIX and p.is_file())
    chosen = [name for name in (DIFFUSERS_FILE, PEFT_FILE) if name in names][:1] or names
    if len(chosen) != 1:
      listed = ", ".join(names[:8]) or "none"
      raise InputError(
        f"{path} has no {DIFFUSERS_FILE} and not exactly one {SUFFIX} file ({listed}); name the "
        "file"
      )
    return path / chosen[0]
  if not path.is_file():
    raise InputError(f"{path} is no file; expected a LoRA in a {SUFFIX} file")
  if path.suffix in PICKLES:
    raise InputError(
      f"{path} is pickled, and unpickling can run any code, so only safetensors are read. If you "
      "trust it, load it with torch.load and write it with safetensors.torch.save_file"
    )
  return path


def component_folders(path: paths.Path, components: Iterable[str]) -> dict[str, paths.Path]:
  """Component -> its folder, where peft saved one for each network of a pipeline."""
  folders = {name: path / name for name in components}
  return {name: folder for name, folder in folders.items() if (folder / PEFT_FILE).is_file()}


def read(path: paths.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors of a file and its header.

  Raises:
    InputError: The file is damaged.
  """
  entries, header = tensor_file.open_file(path, advice="get the file again", where=path)
  for name, entry in entries.items():
    if entry.code not in CODES:
      raise InputError(
        f"{path}: {short(name)} is {entry.code}; expected {' or '.join(state_dict.FLOATS)}: "
        "convert it with torch"
      )
  return {name: entry.read(None) for name, entry in entries.items()}, header


def is_peft(path: paths.Path, names: Iterable[str]) -> bool:
  """Whether a file is peft's own, which has its config beside it; warns if that is missing."""
  own = path.name == PEFT_FILE or any(name.startswith("base_model.") for name in names)
  if own and not (path.parent / lora_config.PEFT_FILE).is_file():
    log.warning(
      "%s has no %s beside it, which holds the strength: alpha is taken to be the rank",
      path,
      lora_config.PEFT_FILE,
    )
  return own


def write(path: paths.Path, state: Mapping[str, np.ndarray], header: Mapping[str, str]) -> None:
  """Writes a file whole or not at all; equal contents are equal bytes.

  Args:
    path: The target, *.safetensors.
    state: Name -> contiguous array.
    header: Texts by name.

  Raises:
    InputError: The target has another suffix.
    OSError: The file cannot be written.
  """
  if path.suffix != SUFFIX:
    raise InputError(f"{path} must be named *{SUFFIX}; readers go by the suffix")
  # Not save_file, which makes files that their owner alone can read.
  content = safetensors.numpy.save(dict(state), metadata=dict(header))
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, _with_sorted_header(content))


def _with_sorted_header(content: bytes) -> bytes:
  """The file with its metadata in the order of their names; safetensors shuffles them."""
  size = int.from_bytes(content[:8], "little")
  fields = files.parse_json(content[8 : 8 + size], "the header")
  fields["__metadata__"] = dict(sorted(fields["__metadata__"].items()))
  text = json.dumps(fields, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text + content[8 + size :]
