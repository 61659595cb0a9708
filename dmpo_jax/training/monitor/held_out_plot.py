"""Figure of the held-out evaluation, from the rows of held_out.jsonl."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dmpo_jax.common import optional
from dmpo_jax.common.atomic_files import write_atomically

TEXT, FAINT, LINE = "#20232b", "#5c6370", "#d5d9e0"
WINNER, LOSER, OTHER, ALARM = "#0d8577", "#dc2f55", "#2563eb", "#b42318"


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path, *, title: str) -> None:
  """Writes the panel as PNG, whole or not at all.

  Above what all timesteps say together, below the same by timestep bin: light is little noise, dark
  is much. Where the winner's error rises beyond noise, its curve is marked.

  Args:
    rows: Of held_out.jsonl, at least one.
    path: The picture, called *.png.
    title: Above all.

  Raises:
    InputError: matplotlib is not installed.
  """
  optional.require("matplotlib", extra="monitor")
  from matplotlib import colormaps
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  steps = np.array([row["step"] for row in rows])
  bins = len(rows[0]["bins"])
  colours = colormaps["viridis_r"](np.linspace(0.08, 0.95, bins))
  figure = Figure(figsize=(15, 6.6), dpi=110, layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize=12, color=TEXT, x=0.01, ha="left")
  axes = figure.subplots(2, 4)

  def values(name: str, part: int | None = None) -> np.ndarray:
    found = rows if part is None else [row["bins"][part] for row in rows]
    return np.array([row.get(name, np.nan) for row in found])

  def curve(axis: Any, name: str, colour: str, label: str) -> None:
    axis.plot(steps, values(name), color=colour, label=label, marker="o", markersize=3)
    if f"{name}_se" in rows[0]:
      spread = values(f"{name}_se")
      low, high = values(name) - spread, values(name) + spread
      axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)

  def by_bin(axis: Any, name: str) -> None:
    for part, colour in enumerate(colours):
      span = rows[0]["bins"][part]
      label = f"t {span['from']} to {span['to']}"
      axis.plot(steps, values(name, part), color=colour, label=label, marker="o", markersize=3)

  top, bottom = axes
  curve(top[0], "winner_change", WINNER, "preferred")
  risen = values("winner_rises") > 0
  if risen.any():
    shown = values("winner_change")[risen]
    top[0].plot(steps[risen], shown, "^", color=ALARM, markersize=9, label="rises beyond noise")
  by_bin(bottom[0], "winner_change")
  top[0].set_title("error less the reference's, ± 1 standard error")
  bottom[0].set_title("preferred: error less the reference's")
  if "margin" in rows[0]:
    curve(top[0], "loser_change", LOSER, "rejected")
    curve(top[1], "margin", OTHER, "mean over pairs")
    by_bin(bottom[1], "margin")
    curve(top[2], "accuracy", OTHER, "pairs ranked right")
    by_bin(bottom[2], "accuracy")
    for axis in (top[2], bottom[2]):
      axis.set_ylim(-0.02, 1.02)
      axis.axhline(0.5, color=FAINT, linewidth=0.8, linestyle=":")
    top[1].set_title("margin: rejected less preferred")
    bottom[1].set_title("margin")
    top[2].set_title("implicit accuracy")
    bottom[2].set_title("implicit accuracy")
  if "gradient_factor" in rows[0]:
    curve(top[3], "gradient_factor", OTHER, "mean over pairs")
    by_bin(bottom[3], "gradient_factor")
    top[3].set_title("gradient factor, -d loss/d logit")
    bottom[3].set_title("gradient factor")
  for axis in axes.flat:
    if not axis.lines:
      axis.set_axis_off()
      continue
    axis.set_xlabel("step", color=FAINT, fontsize=9)
    axis.title.set(fontsize=10, color=TEXT)
    axis.tick_params(colors=FAINT, labelsize=8)
    axis.grid(color=LINE, linewidth=0.6)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(LINE)
  for axis in (*top[:2], *bottom[:2]):
    if axis.lines:
      axis.axhline(0, color=FAINT, linewidth=0.8, linestyle=":")
  for axis in (top[0], bottom[0]):
    axis.legend(fontsize=8, frameon=False, labelcolor=TEXT)
  write_atomically(path, lambda stream: figure.savefig(stream, format="png"))
