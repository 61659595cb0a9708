"""Entries of LoRA files: which factor of which layer a name means, in every spelling."""

import re
from typing import NamedTuple

# peft's own state dicts, torch.compile and DistributedDataParallel wrap the network.
WRAPPERS = ("base_model.model.", "_orig_mod.", "module.")

# The two factors, A or down and B or up. peft's state dicts name the adapter too, here "default".
_PEFT = r"\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight"
_SCRIPTS = r"\.lora(?:_linear_layer)?\.(?P<scripts>down|up)\.weight"
# Attention processors of diffusers before 0.22, which name the projection, not the layer.
_PROCESSORS = r"_lora\.(?P<processors>down|up)\.weight"
_KOHYA = r"\.lora_(?P<kohya>down|up)\.weight"
_ENTRY = re.compile(
  rf"(?P<layer>[^\n]+?)(?:{_PEFT}|{_SCRIPTS}|{_PROCESSORS}|{_KOHYA}|\.(?P<alpha>alpha))"
)
_ROLES = {"A": "down", "B": "up"}
FORMS = {
  "peft": "peft",
  "scripts": "diffusers' scripts",
  "processors": "diffusers' attention processors",
  "kohya": "kohya",
}

# Parts of the names of other methods' entries.
_METHODS = {
  "dora_scale": "DoRA",
  "lora_magnitude_vector": "DoRA",
  "hada_": "LoHa",
  "lokr_": "LoKr",
  "oft_": "OFT",
  "lora_mid": "LoCon with a core (Tucker)",
  "lora_embedding_": "a LoRA of embeddings",
  "vera_lambda": "VeRA",
  "ia3_": "IA3",
  "lora_E": "AdaLoRA",
  "diff": "full differences of weights",
  "bundle_emb": "embeddings of a textual inversion",
  "bias": "trained biases",
}


class Entry(NamedTuple):
  """One tensor of a LoRA file.

  Attributes:
    layer: The layer as the file spells it, with the component's prefix if it has one.
    role: "down", "up" or "alpha".
    form: Key of `FORMS`; "" for an alpha.
  """

  layer: str
  role: str
  form: str


def parse(name: str) -> Entry | None:
  """The meaning of an entry's name; None if it is no entry of a plain LoRA."""
  match = _ENTRY.fullmatch(name)
  if match is None:
    return None
  layer = match["layer"].replace(".processor.", ".")
  if match["alpha"]:
    return Entry(layer, "alpha", "")
  form = match.lastgroup
  return Entry(layer, _ROLES.get(match[form], match[form]), form)


def unwrapped(layer: str) -> str:
  """A layer's name without the wrappers of peft, torch.compile and DistributedDataParallel."""
  while wrapper := next((w for w in WRAPPERS if layer.startswith(w)), None):
    layer = layer.removeprefix(wrapper)
  return layer


def method_of(name: str) -> str:
  """The adapter method of an entry that `parse` does not know, in words."""
  method = next((text for part, text in _METHODS.items() if part in name), None)
  return f"an entry of {method}" if method else "no entry of a plain LoRA"
