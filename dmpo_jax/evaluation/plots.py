"""Plots of scores and training curves (matplotlib) as PNG files in memory."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dmpo_jax.common.optional import import_optional
from dmpo_jax.evaluation.statistics import Interval


class Theme(NamedTuple):
  """Colours of a plot on a page of the colour `page`."""

  page: str
  text: str
  faint: str
  line: str
  models: Sequence[str]
  preferred: str
  rejected: str


# models[0] is the reference's colour. Each set keeps its contrast for colour-blind readers.
LIGHT = Theme(
  page="#ffffff",
  text="#20232b",
  faint="#5c6370",
  line="#d5d9e0",
  models=("#7a818e", "#2563eb", "#d97706", "#7c3aed", "#be185d", "#4d7c0f"),
  preferred="#0d8577",
  rejected="#dc2f55",
)
DARK = Theme(
  page="#1d2027",
  text="#e6e8ee",
  faint="#9aa1ae",
  line="#363c48",
  models=("#9aa1ae", "#6ea8fe", "#f5a83c", "#b69cff", "#f477b6", "#a3c94a"),
  preferred="#3ecfbd",
  rejected="#ff7d98",
)


def intervals(
  labels: Sequence[str],
  values: Sequence[Interval],
  colours: Sequence[str],
  *,
  baseline: float,
  theme: Theme,
  form: Callable[[float], str] = "{:.3f}".format,
  fractions: bool = False,
) -> bytes:
  """PNG of estimates with their intervals, one below the other, and a line at the baseline.

  Args:
    labels: Names of the rows.
    values: Estimate and interval of each row.
    colours: Colour of each row.
    baseline: Position of the dashed line.
    theme: `LIGHT` or `DARK`.
    form: Formats an estimate.
    fractions: Whether the values lie in [0, 1] and are written as percentages.

  Returns:
    The PNG, with a transparent background.

  Raises:
    InputError: matplotlib is not installed.
  """
  figure, axes = _figure(4.6, 0.62 + 0.42 * len(labels), theme)
  positions = np.arange(len(labels))[::-1]
  halo = [import_optional("matplotlib.patheffects").withStroke(linewidth=3, foreground=theme.page)]
  axes.axvline(baseline, color=theme.faint, linewidth=1, linestyle=(0, (4, 3)))
  for y, value, colour in zip(positions, values, colours, strict=True):
    ends = [value.low, value.high]
    axes.plot(ends, [y] * 2, color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
    axes.vlines(ends, y - 0.13, y + 0.13, color=colour, linewidth=1.5)
    axes.plot([value.value], [y], "o", color=colour, markersize=6)
    at = {"xytext": (0, 6.5), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    style = {"color": theme.text, "fontsize": 9, "path_effects": halo}
    axes.annotate(form(value.value), (value.value, y), **at, **style)
  ends = [baseline, *(end for value in values for end in value)]
  margin = 0.12 * max(max(ends) - min(ends), 1e-3)
  axes.set_xlim(min(ends) - margin, max(ends) + margin)
  axes.set_ylim(-0.55, len(labels) - 0.25)
  axes.set_yticks(positions, labels)
  axes.tick_params(axis="y", length=0, labelcolor=theme.text)
  axes.spines["left"].set_visible(False)
  axes.grid(axis="x", color=theme.line, linewidth=0.7)
  ticker = import_optional("matplotlib.ticker")
  ticks = ticker.MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(*axes.get_xlim())
  inside = [t for t in ticks if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
  if fractions:
    inside = [t for t in inside if -1e-9 <= t <= 1 + 1e-9]
    axes.xaxis.set_major_formatter(_percent)
  axes.xaxis.set_major_locator(ticker.FixedLocator(inside))
  return _plot(figure)


def curves(
  lines: Mapping[str, tuple[Sequence[float], Sequence[float], str]],
  *,
  theme: Theme,
  width: float = 4.6,
  limits: tuple[float, float] | None = None,
  baseline: float | None = None,
  fractions: bool = False,
) -> bytes:
  """PNG of curves over training: smoothed, with the measured values faint behind.

  Args:
    lines: (steps, values, colour) by name; the name is written at the end of its curve.
    theme: `LIGHT` or `DARK`.
    width: Width of the plot in inches; a smaller plot has larger letters.
    limits: Range of the vertical axis; None: `curve_limits`.
    baseline: Height of a dashed horizontal line; None draws none.
    fractions: Whether the values lie in [0, 1] and are written as percentages.

  Returns:
    The PNG, with a transparent background.

  Raises:
    InputError: matplotlib is not installed.
  """
  figure, axes = _figure(width, 2.6, theme)
  if baseline is not None:
    axes.axhline(baseline, color=theme.faint, linewidth=1, linestyle=(0, (4, 3)))
  ends = []
  for name, (steps, values, colour) in lines.items():
    smooth = smoothed(values)
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.28)
    axes.plot(steps, smooth, color=colour, linewidth=2)
    ends.append((float(smooth[-1]), name, colour, float(np.asarray(steps)[-1])))
  axes.set_ylim(limits or curve_limits([line[1] for line in lines.values()], baseline))
  axes.margins(x=0)
  bottom, top = axes.get_ylim()
  below = -np.inf
  for value, name, colour, step in sorted(ends):  # names keep their distance from each other
    below = max(value, below + 0.085 * (top - bottom), bottom + 0.03 * (top - bottom))
    at = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    style = {"color": colour, "fontsize": 9, "fontweight": "bold"}
    axes.annotate(name, (step, below), annotation_clip=False, **at, **style)
  axes.set_xlabel("step", color=theme.faint, fontsize=9, loc="right")
  axes.grid(axis="y", color=theme.line, linewidth=0.7)
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="y", length=0)
  ticker = import_optional("matplotlib.ticker")
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  if fractions:
    axes.yaxis.set_major_formatter(_percent)
  else:
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set(color=theme.faint, fontsize=9)
  return _plot(figure)


def histograms(
  rows: Mapping[str, tuple[Sequence[float], str]],
  *,
  theme: Theme,
  behind: Sequence[float] | None = None,
) -> bytes:
  """PNG of histograms one below the other on one scale, each with its mean.

  Args:
    rows: (values, colour) by name.
    theme: `LIGHT` or `DARK`.
    behind: Values whose outline is drawn behind every row, for comparison.

  Returns:
    The PNG, with a transparent background.

  Raises:
    InputError: matplotlib is not installed.
  """
  pooled = np.concatenate([np.asarray(values) for values, _ in rows.values()])
  low, high = pooled.min(), pooled.max()
  edges = np.linspace(low - 1e-6, high + 1e-6, 41)
  figure, axes = _figure(4.6, 0.5 + 0.66 * len(rows), theme, rows=len(rows))
  for axis, (name, (values, colour)) in zip(axes, rows.items(), strict=True):
    axis.hist(values, edges, density=True, color=colour, alpha=0.75)
    if behind is not None:
      axis.hist(behind, edges, density=True, histtype="step", color=theme.faint, linewidth=1)
    axis.axvline(np.mean(values), ymax=0.69, color=colour, linewidth=1.6)
    axis.set_ylim(0, 1.45 * axis.get_ylim()[1])  # room for the text above
    text = {"transform": axis.transAxes, "va": "top", "fontsize": 9}
    axis.text(0, 0.95, name, color=theme.text, **text)
    axis.text(1, 0.95, f"mean {np.mean(values):.3f}", color=theme.faint, ha="right", **text)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="x", labelbottom=axis is axes[-1], length=3 * (axis is axes[-1]))
    axis.set_xlim(edges[0], edges[-1])
  figure.subplots_adjust(hspace=0.12)
  return _plot(figure)


def smoothed(values: Sequence[float]) -> np.ndarray:
  """Centred moving average over a twentieth of the curve, with a shorter window at its ends."""
  x = np.asarray(values, np.float64)
  window = np.ones(2 * (len(x) // 40) + 1)
  return np.convolve(x, window, "same") / np.convolve(np.ones_like(x), window, "same")


def curve_limits(
  values: Sequence[Sequence[float]], baseline: float | None = None
) -> tuple[float, float]:
  """Vertical range that shows the smoothed curves and 96% of the measured values."""
  ends = [np.quantile(x, q) for x in values for q in (0.02, 0.98)]
  ends += [end for x in values for end in (smoothed(x).min(), smoothed(x).max())]
  ends += [] if baseline is None else [baseline]
  margin = 0.08 * (max(ends) - min(ends)) or 1.0
  return float(min(ends) - margin), float(max(ends) + margin)


def _figure(width: float, height: float, theme: Theme, rows: int | None = None):
  """Transparent figure and its axes, made without matplotlib's global state."""
  figure = import_optional("matplotlib.figure").Figure(figsize=(width, height), dpi=180)
  import_optional("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
  axes = figure.subplots(rows or 1, 1, squeeze=False)[:, 0]
  for axis in axes:
    axis.patch.set_alpha(0)
    for side in ("top", "right"):
      axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
      axis.spines[side].set_color(theme.line)
    axis.tick_params(colors=theme.faint, labelsize=9)
    axis.set_axisbelow(True)
  return figure, axes if rows is not None else axes[0]


def _percent(x: float, _: int) -> str:
  return f"{100 * x:.3g}%"


def _plot(figure) -> bytes:
  buffer = io.BytesIO()
  tight = {"bbox_inches": "tight", "pad_inches": 0.05}
  figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None}, **tight)
  return buffer.getvalue()
