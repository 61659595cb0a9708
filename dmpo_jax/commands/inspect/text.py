"""Tables that `dmpo-jax inspect` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from dmpo_jax.errors import cut

MODULES_SHOWN = 10
NAMES_SHOWN = 5
# Longest text of a config's value, and most entries of a list in it.
VALUE_SHOWN, VALUES_SHOWN = 200, 50


def description_text(description: Mapping[str, Any]) -> str:
  """Description of a source as text.

  Args:
    description: Result of `describe`.

  Returns:
    Lines of text.
  """
  lines = [f"{description['path']}: {description['kind']}"]
  lines += [f"  {key}: {value}" for key, value in description["facts"].items()]
  rows = [["component", "class", "parameters", "tensors", "dtype", "on disk"]]
  for name, component in description["components"].items():
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
  with_weights = [c for c in description["components"].values() if c["tensors"]]
  if len(with_weights) > 1:
    parameters, tensors = (sum(c[key] for c in with_weights) for key in ("parameters", "tensors"))
    size = _size(sum(c["bytes"] for c in with_weights))
    rows.append(["all weights", "", f"{parameters:,}", str(tensors), "", size])
  lines += ["", *_table(rows, right=(2, 3, 5)), ""]
  for name, component in description["components"].items():
    lines += [f"{name}: {text}" for text in _notes(component)]
  if "lora" in description:
    lines += _lora(description["lora"])
  return "\n".join(lines).rstrip() + "\n"


def _dtypes(component: Mapping[str, Any]) -> str:
  dtypes, total = component["dtypes"], max(component["parameters"], 1)
  if len(dtypes) == 1:
    return next(iter(dtypes))
  return ", ".join(f"{name} {100 * n / total:.3g}%" for name, n in dtypes.items())


def _notes(component: Mapping[str, Any]) -> list[str]:
  lines = []
  if component["config"]:
    lines.append(", ".join(f"{key} {_value(v)}" for key, v in component["config"].items()))
  variants = component["variants"]
  if component["variant"] is not None or len(variants) > 1:
    variant = component["variant"] or "none"
    available = ", ".join(v or "none" for v in variants)
    lines.append(f"variant {variant} is shown; available: {available}")
  return lines + component["notes"]


def _lora(lora: Mapping[str, Any]) -> list[str]:
  lines = [f"naming scheme: {lora['form']}"]
  rows = [["adapts", "layers", "rank", "alpha", "without effect"]]
  for name, part in lora["components"].items():
    ranks, alphas = (", ".join(f"{v:g}" for v in part[key]) for key in ("ranks", "alphas"))
    if part["alpha_source"] == "rank":
      alphas += " (the rank; the file has no alpha)"
    rows.append([name, str(part["layers"]), ranks, alphas, str(part["layers_without_effect"])])
  lines += _table(rows, right=(1, 4))
  for name, part in lora["components"].items():
    if part["kinds"]:
      lines.append(f"{name}: " + ", ".join(f"{k} x{n}" for k, n in part["kinds"].items()))
    if part["layers_without_effect"] == part["layers"]:
      lines.append(f"{name}: every up factor is zero: the LoRA has no effect")
  return lines


def comparison_text(comparison: Mapping[str, Any], here: str, there: str) -> str:
  """Differences of two sources as text.

  Args:
    comparison: Result of `compare`.
    here: Name of the first source.
    there: Name of the second one.

  Returns:
    Lines of text.
  """
  lines = [f"differences of {here} (here) from {there} (there)", ""]
  rows = [
    ["component", "weights", "identical", "rounded", "different", "|a-b|/|b|", "largest |a-b|"]
  ]
  for name, difference in comparison["components"].items():
    if "identical" in difference:
      relative = f"{difference['relative']:.3g}" if "relative" in difference else "0"
      largest = f"{difference['largest_absolute'][0]:.3g}" if "relative" in difference else "0"
      counts = [str(difference[key]) for key in ("identical", "rounded", "different")]
      rows.append([name, _weights_text(difference), *counts, relative, largest])
    else:
      same = not difference["config"] and not difference["files"]
      rows.append([name, "the same" if same else "differs", "-", "-", "-", "-", "-"])
  lines += [*_table(rows, right=(2, 3, 4, 5, 6)), ""]
  for side in ("here", "there"):
    if names := comparison[f"only_{side}"]:
      lines.append(f"only {side}: {', '.join(names)}")
  for name, difference in comparison["components"].items():
    lines += _details(name, difference)
  return "\n".join(lines).rstrip()


def _weights_text(difference: Mapping[str, Any]) -> str:
  if difference["only_here"] or difference["only_there"] or difference["shape_differs"]:
    return "names or shapes differ"
  if difference["different"]:
    return "differ"
  if difference["rounded"]:
    return "the same, rounded"
  return "the same" if difference["identical"] else "none"


def _details(name: str, difference: Mapping[str, Any]) -> list[str]:
  lines = [
    f"{name}: {field} is {_value(here)} here, {_value(there)} there"
    for field, (here, there) in difference["config"].items()
  ]
  if difference["files"]:
    files = ", ".join(f"{file} ({how})" for file, how in difference["files"].items())
    lines.append(f"{name}: files: {files}")
  for key, text in (
    ("only_here", "only here"),
    ("only_there", "only there"),
    ("shape_differs", "with different shapes"),
    ("not_finite", "with values that are not finite"),
  ):
    if names := difference.get(key):
      more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
      lines.append(f"{name}: {len(names)} {text}: {', '.join(names[:NAMES_SHOWN])}{more}")
  modules = difference.get("modules")
  if not modules:
    return lines
  lines.append(f"{name}: largest |a-b| in {difference['largest_absolute'][1]}")
  ratio, tensor = difference["largest_relative"]
  lines.append(f"{name}: largest |a-b|/|b| of a tensor is {ratio:.3g}, in {tensor}")
  rows = [["most changed modules", "|a-b|/|b|", "largest |a-b|"]]
  rows += [[m, f"{ratio:.3g}", f"{largest:.3g}"] for m, ratio, largest in modules[:MODULES_SHOWN]]
  lines += ["", *(f"  {line}" for line in _table(rows, right=(1, 2)))]
  if len(modules) > MODULES_SHOWN:
    lines.append(f"  ... and {len(modules) - MODULES_SHOWN} more (--json lists them)")
  return [*lines, ""]


def _table(rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> list[str]:
  """Lines of a table with aligned columns; those in `right` are aligned to the right."""
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
  text = (
    "[" + ", ".join(map(_value, value[:VALUES_SHOWN])) + "]"
    if isinstance(value, list | tuple)
    else str(value)
  )
  return cut(text.replace("\n", "\\n"), VALUE_SHOWN)
