"""Figure of the held-out evaluation, from its records."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmpo_jax.common import optional, paths
from dmpo_jax.common.atomic_files import write_atomically

TEXT, SECONDARY_TEXT, GRID = "#20232b", "#5c6370", "#d5d9e0"
PREFERRED, REJECTED, OTHER, ALARM = "#0d8577", "#dc2f55", "#2563eb", "#b42318"


def plot(records: Sequence[dict[str, Any]], path: paths.Path, *, title: str) -> None:
  """Plots the metrics of held-out evaluations over the steps of a run, as PNG.

  The upper row shows means over all timesteps, the lower row one curve per timestep bin, darker
  with more noise. A triangle marks a significant rise of the preferred image's error.

  Args:
    records: Records of the held-out evaluation, at least one.
    path: Path of the figure.
    title: Title of the figure.

  Raises:
    InputError: matplotlib is not installed.
  """
  optional.import_optional("matplotlib", extra="monitor")
  from matplotlib import colormaps
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  steps = np.array([record["step"] for record in records])
  bins = len(records[0]["bins"])
  colours = colormaps["viridis_r"](np.linspace(0.08, 0.95, bins))
  figure = Figure(figsize=(15, 6.6), dpi=110, layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize=12, color=TEXT, x=0.01, ha="left")
  axes = figure.subplots(2, 4)

  def values(name: str, bin_index: int | None = None) -> np.ndarray:
    metrics = records if bin_index is None else [record["bins"][bin_index] for record in records]
    return np.array([m.get(name, np.nan) for m in metrics])

  def curve(axis: Any, name: str, colour: str, label: str) -> None:
    axis.plot(steps, values(name), color=colour, label=label, marker="o", markersize=3)
    if f"{name}_se" in records[0]:
      spread = values(f"{name}_se")
      low, high = values(name) - spread, values(name) + spread
      axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)

  def by_bin(axis: Any, name: str) -> None:
    for i, colour in enumerate(colours):
      span = records[0]["bins"][i]
      label = f"t {span['from']} to {span['to']}"
      axis.plot(steps, values(name, i), color=colour, label=label, marker="o", markersize=3)

  top, bottom = axes
  curve(top[0], "preferred_change", PREFERRED, "preferred")
  risen = values("preferred_rises") > 0
  if risen.any():
    changes = values("preferred_change")[risen]
    top[0].plot(steps[risen], changes, "^", color=ALARM, markersize=9, label="significant rise")
  by_bin(bottom[0], "preferred_change")
  top[0].set_title("error minus the reference's, ± 1 standard error")
  bottom[0].set_title("preferred: error minus the reference's")
  if "margin" in records[0]:
    curve(top[0], "rejected_change", REJECTED, "rejected")
    curve(top[1], "margin", OTHER, "mean over pairs")
    by_bin(bottom[1], "margin")
    curve(top[2], "accuracy", OTHER, "pairs ranked correctly")
    by_bin(bottom[2], "accuracy")
    for axis in (top[2], bottom[2]):
      axis.set_ylim(-0.02, 1.02)
      axis.axhline(0.5, color=SECONDARY_TEXT, linewidth=0.8, linestyle=":")
    top[1].set_title("margin: rejected minus preferred")
    bottom[1].set_title("margin")
    top[2].set_title("implicit accuracy")
    bottom[2].set_title("implicit accuracy")
  if "gradient_factor" in records[0]:
    curve(top[3], "gradient_factor", OTHER, "mean over pairs")
    by_bin(bottom[3], "gradient_factor")
    top[3].set_title("gradient factor, -d loss/d logit")
    bottom[3].set_title("gradient factor")
  for axis in axes.flat:
    if not axis.lines:
      axis.set_axis_off()
      continue
    axis.set_xlabel("step", color=SECONDARY_TEXT, fontsize=9)
    axis.title.set(fontsize=10, color=TEXT)
    axis.tick_params(colors=SECONDARY_TEXT, labelsize=8)
    axis.grid(color=GRID, linewidth=0.6)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GRID)
  for axis in (*top[:2], *bottom[:2]):
    if axis.lines:
      axis.axhline(0, color=SECONDARY_TEXT, linewidth=0.8, linestyle=":")
  for axis in (top[0], bottom[0]):
    axis.legend(fontsize=8, frameon=False, labelcolor=TEXT)
  write_atomically(path, lambda stream: figure.savefig(stream, format="png"))
