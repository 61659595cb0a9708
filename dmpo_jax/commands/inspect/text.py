"""The tables that `dmpo-jax inspect` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

MODULES_SHOWN = 10
NAMES_SHOWN = 5


def description_text(found: Mapping[str, Any]) -> str:
  """What a source consists of.

  Args:
    found: As `describe` returns it.

  Returns:
    Lines of text.
  """
  lines = [f"{found['path']}: {found['kind']}"]
  lines += [f"  {key}: {value}" for key, value in found["facts"].items()]
  rows = [["component", "class", "parameters", "tensors", "dtype", "on disk"]]
  for name, component in found["components"].items():
    rows.append(
      [
        name,
        component["class"] or "-",
        f"{component['parameters']:,}" if component["tensors"] else "-",
        str(component["tensors"] or "-"),
        _dtypes(component) or "-",
        _size(component["bytes"]) if component["bytes"] else "-",
      ]
    )
  weighed = [c for c in found["components"].values() if c["tensors"]]
  if len(weighed) > 1:
    parameters, tensors = (sum(c[key] for c in weighed) for key in ("parameters", "tensors"))
    size = _size(sum(c["bytes"] for c in weighed))
    rows.append(["all weights", "", f"{parameters:,}", str(tensors), "", size])
  lines += ["", *_table(rows, right=(2, 3, 5)), ""]
  for name, component in found["components"].items():
    lines += [f"{name}: {text}" for text in _remarks(component)]
  if "lora" in found:
    lines += _lora(found["lora"])
  return "\n".join(lines).rstrip() + "\n"


def _dtypes(component: Mapping[str, Any]) -> str:
  dtypes, total = component["dtypes"], max(component["parameters"], 1)
  if len(dtypes) == 1:
    return next(iter(dtypes))
  return ", ".join(f"{name} {100 * n / total:.3g}%" for name, n in dtypes.items())


def _remarks(component: Mapping[str, Any]) -> list[str]:
  remarks = []
  if component["config"]:
    remarks.append(", ".join(f"{key} {_value(v)}" for key, v in component["config"].items()))
  variants = component["variants"]
  if component["variant"] is not None or len(variants) > 1:
    shown = component["variant"] or "none"
    there = ", ".join(v or "none" for v in variants)
    remarks.append(f"variant {shown} is shown; there: {there}")
  return remarks + component["notes"]


def _lora(lora: Mapping[str, Any]) -> list[str]:
  lines = [f"names as in: {lora['form']}"]
  rows = [["adapts", "layers", "rank", "alpha", "without effect"]]
  for name, part in lora["components"].items():
    ranks, alphas = (", ".join(f"{v:g}" for v in part[key]) for key in ("ranks", "alphas"))
    if part["alpha_is"] != "given":
      alphas += f" ({part['alpha_is']})"
    rows.append([name, str(part["layers"]), ranks, alphas, str(part["layers_without_effect"])])
  lines += _table(rows, right=(1, 4))
  for name, part in lora["components"].items():
    if part["kinds"]:
      lines.append(f"{name}: " + ", ".join(f"{k} x{n}" for k, n in part["kinds"].items()))
    if part["layers_without_effect"] == part["layers"]:
      lines.append(f"{name}: every up factor is zero: this LoRA changes nothing")
  return lines


def comparison_text(differing: Mapping[str, Any], here: str, there: str) -> str:
  """How two sources differ.

  Args:
    differing: As `compare` returns it.
    here: The one, in words.
    there: The other.

  Returns:
    Lines of text.
  """
  lines = [f"differences of {here} (here) from {there} (there)", ""]
  rows = [
    ["component", "weights", "identical", "rounded", "different", "|a-b|/|b|", "largest |a-b|"]
  ]
  for name, found in differing["components"].items():
    if "identical" in found:
      relative = f"{found['relative']:.3g}" if "relative" in found else "0"
      largest = f"{found['largest_absolute'][0]:.3g}" if "relative" in found else "0"
      counts = [str(found[key]) for key in ("identical", "rounded", "different")]
      rows.append([name, _verdict(found), *counts, relative, largest])
    else:
      same = not found["config"] and not found["files"]
      rows.append([name, "the same" if same else "differs", "-", "-", "-", "-", "-"])
  lines += [*_table(rows, right=(2, 3, 4, 5, 6)), ""]
  for side in ("here", "there"):
    if names := differing[f"only_{side}"]:
      lines.append(f"only {side}: {', '.join(names)}")
  for name, found in differing["components"].items():
    lines += _details(name, found)
  return "\n".join(lines).rstrip()


def _verdict(found: Mapping[str, Any]) -> str:
  if found["only_here"] or found["only_there"] or found["misshapen"]:
    return "other entries"
  if found["different"]:
    return "differ"
  if found["rounded"]:
    return "the same, rounded"
  return "the same" if found["identical"] else "none"


def _details(name: str, found: Mapping[str, Any]) -> list[str]:
  lines = [
    f"{name}: {field} is {_value(here)} here, {_value(there)} there"
    for field, (here, there) in found["config"].items()
  ]
  if found["files"]:
    files = ", ".join(f"{file} ({how})" for file, how in found["files"].items())
    lines.append(f"{name}: files: {files}")
  for key, words in (
    ("only_here", "only here"),
    ("only_there", "only there"),
    ("misshapen", "of another shape"),
    ("not_finite", "holds values that are not finite"),
  ):
    if names := found.get(key):
      more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
      lines.append(f"{name}: {len(names)} {words}: {', '.join(names[:NAMES_SHOWN])}{more}")
  modules = found.get("modules")
  if not modules:
    return lines
  lines.append(f"{name}: largest |a-b| in {found['largest_absolute'][1]}")
  ratio, tensor = found["largest_relative"]
  lines.append(f"{name}: largest |a-b|/|b| of a tensor is {ratio:.3g}, in {tensor}")
  rows = [["most changed modules", "|a-b|/|b|", "largest |a-b|"]]
  rows += [[m, f"{ratio:.3g}", f"{largest:.3g}"] for m, ratio, largest in modules[:MODULES_SHOWN]]
  lines += ["", *(f"  {line}" for line in _table(rows, right=(1, 2)))]
  if len(modules) > MODULES_SHOWN:
    lines.append(f"  ... and {len(modules) - MODULES_SHOWN} more (--json lists them)")
  return [*lines, ""]


def _table(rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> list[str]:
  """Aligned columns; those in `right` end at the same place."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      cell.rjust(width) if i in right else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def _size(count: int) -> str:
  for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
    if count >= size:
      return f"{count / size:.3g} {unit}"
  return f"{count} B"


def _value(value: Any) -> str:
  return (
    "[" + ", ".join(map(_value, value)) + "]" if isinstance(value, list | tuple) else str(value)
  )
