"""Scorers of images; higher is better. `SCORERS` lists them, `load_scorer` loads one.

A new one is a file in this folder and a line in `SCORERS`.
"""

import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dmpo_jax.common import choose
from dmpo_jax.data.toy.digits import ink
from dmpo_jax.errors import InputError, short, unknown
from dmpo_jax.evaluation.scorers import aesthetic, clip_score, edits, hpsv2, imagereward, pickscore
from dmpo_jax.evaluation.scorers.base import Edits, Images, Kind, Scorer
from dmpo_jax.evaluation.scorers.pixels import brightness, colourfulness, of_pixels, warmth

if TYPE_CHECKING:  # the help of commands lists scorers, and need not wait for jax
  import jax

__all__ = ["SCORERS", "Edits", "Images", "Kind", "Scorer", "load_scorer", "parse_scorer"]

SCORERS: dict[str, Kind] = {
  "aesthetic": aesthetic.KIND,
  "brightness": of_pixels(brightness),
  "clip_score": clip_score.KIND,
  "colourfulness": of_pixels(colourfulness),
  **edits.KINDS,
  "ink": of_pixels(ink),
  **hpsv2.KINDS,
  "imagereward": imagereward.KIND,
  "pickscore": pickscore.KIND,
  "warmth": of_pixels(warmth),
}

COMMON = ("dtype", "batch_size", "devices")
OPTION = re.compile(r",([a-z_]+)=")


def load_scorer(
  name: str,
  weights: str | None = None,
  *,
  dtype: str = "float32",
  batch_size: int = 32,
  devices: "Sequence[jax.Device] | None" = None,
  **options: Any,
) -> Scorer:
  """The scorer of a name.

  Args:
    name: A name in `SCORERS`.
    weights: File, folder or hub repository with its weights; None for a scorer without weights.
    dtype: Dtype of the computation of a network: "float32" or "bfloat16".
    batch_size: Images at once, in all on all devices.
    devices: Devices over which the images are sharded; None: those of this process.
    **options: Options of this scorer.

  Returns:
    A `Scorer`.

  Raises:
    InputError: The name or an option is unknown, weights are missing or do not fit, or a value is
      out of range.
  """
  if name not in SCORERS:
    raise unknown("scorer", name, SCORERS)
  kind = SCORERS[name]
  if kind.weights and not weights:
    raise InputError(f"{name} needs weights, {name}=WEIGHTS: {kind.weights}")
  if weights and not kind.weights:
    raise InputError(f"{name} has no weights, got {short(weights)}; leave them out")
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
    raise InputError(f"batch_size is {short(batch_size)}; expected a positive integer")
  if dtype not in ("float32", "bfloat16"):
    raise InputError(f"dtype is {short(dtype)}; expected float32 or bfloat16")
  known = [key for key in choose.keyword_parameters(kind.load) if key not in COMMON]
  for option in options:
    if option not in known:
      raise unknown(f"option of the scorer {name}:", option, [*known, *COMMON[:2]])
  return kind.load(weights, dtype=dtype, batch_size=batch_size, devices=devices, **options)


def parse_scorer(text: str) -> Scorer:
  """The scorer that a command line names: NAME[=WEIGHTS][,OPTION=VALUE...].

  Args:
    text: Such as "warmth", "pickscore=models/pickscore", "hpsv2=HPS.pt,dtype=bfloat16".

  Returns:
    A `Scorer`, see `load_scorer`.

  Raises:
    InputError: A value has another type than its option; see `load_scorer`.
  """
  head, *rest = OPTION.split(text)
  name, _, weights = head.partition("=")
  if name not in SCORERS:
    raise unknown("scorer", name, SCORERS)
  kinds = {k: p.annotation for k, p in choose.keyword_parameters(SCORERS[name].load).items()}
  kinds |= {"dtype": str, "batch_size": int, "devices": inspect.Parameter.empty}
  options = {
    key: _value(f"{name}: {key}", value, kinds.get(key, str))
    for key, value in zip(rest[::2], rest[1::2], strict=True)
    if key != "devices"
  }
  if "devices" in rest[::2]:
    raise unknown(f"option of the scorer {name}:", "devices", [k for k in kinds if k != "devices"])
  return load_scorer(name, weights or None, **options)


def _value(where: str, text: str, kind: Any) -> Any:
  """The value of an option's text."""
  if kind is bool:
    if text not in ("true", "false"):
      raise InputError(f"{where} is {short(text)}; expected true or false")
    return text == "true"
  if kind is int:
    if not re.fullmatch(r"\d{1,9}", text):
      raise InputError(f"{where} is {short(text)}; expected an integer")
    return int(text)
  return text
