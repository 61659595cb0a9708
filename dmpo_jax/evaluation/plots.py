"""Pictures of samples (Pillow) and of scores (matplotlib) as PNG files in memory."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmpo_jax.common.optional import import_optional
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.statistics import Interval, ink

# Samples are shown as ink on paper, in light and dark surroundings alike: -1 is paper, 1 is ink.
PAPER, INK, SHEET, TEXT, FAINT = "#ffffff", "#14161c", "#e4e7ec", "#20232b", "#5c6370"


class Panel(NamedTuple):
  """One model's samples within a comparison.

  Attributes:
    label: Name above the samples.
    note: What the numbers say, in a few words below the name; may be empty.
    images: `[R, C, H, W, 1]` in [-1, 1].
  """

  label: str
  note: str
  images: np.ndarray


class Theme(NamedTuple):
  """Colours of a plot on a light or a dark page, whose own colour is `page`."""

  page: str
  text: str
  faint: str
  line: str
  models: Sequence[str]
  winner: str
  loser: str


# The first colour is the reference's. Each set keeps its contrast for colour-blind readers.
LIGHT = Theme(
  page="#ffffff",
  text="#20232b",
  faint="#5c6370",
  line="#d5d9e0",
  models=("#7a818e", "#2563eb", "#d97706", "#7c3aed", "#be185d", "#4d7c0f"),
  winner="#0d8577",
  loser="#dc2f55",
)
DARK = Theme(
  page="#1d2027",
  text="#e6e8ee",
  faint="#9aa1ae",
  line="#363c48",
  models=("#9aa1ae", "#6ea8fe", "#f5a83c", "#b69cff", "#f477b6", "#a3c94a"),
  winner="#3ecfbd",
  loser="#ff7d98",
)


def grid(
  images: np.ndarray,
  row_labels: Sequence[str],
  *,
  scale: int = 5,
  path: str | os.PathLike | None = None,
) -> bytes:
  """Samples in rows and columns, dark ink on white paper, each pixel an exact square.

  Args:
    images: `[R, C, H, W, 1]` in [-1, 1]; values outside are clipped.
    row_labels: R short texts (ASCII), one before each row.
    scale: Size of an image's pixel in pixels of the picture.
    path: Where to write the picture as well; None writes nothing.

  Returns:
    The picture as PNG.

  Raises:
    InputError: Shapes do not fit, a pixel is not finite, or a label is not ASCII.
  """
  return comparison([Panel("", "", images)], row_labels, scale=scale, path=path)


def comparison(
  panels: Sequence[Panel],
  row_labels: Sequence[str],
  *,
  scale: int = 5,
  path: str | os.PathLike | None = None,
) -> bytes:
  """Grids of several models side by side, the same captions and seeds at the same places.

  Args:
    panels: The models, the reference first; their images `[R, C, H, W, 1]` have one shape.
    row_labels: R short texts (ASCII), one before each row.
    scale: Size of an image's pixel in pixels of the picture.
    path: Where to write the picture as well; None writes nothing.

  Returns:
    The picture as PNG.

  Raises:
    InputError: No panel, shapes that do not fit, a pixel that is not finite, or text that is not
      ASCII.
  """
  shapes = [np.shape(panel.images) for panel in panels]
  if not panels or len(set(shapes)) != 1 or len(shapes[0]) != 5 or shapes[0][-1] != 1:
    raise InputError(f"panels must hold images of one shape [R, C, H, W, 1], got {shapes}")
  rows, columns, height, width, _ = shapes[0]
  if len(row_labels) != rows:
    raise InputError(f"{len(row_labels)} row labels for {rows} rows of images")
  gap, margin, between = scale, 4 * scale, 6 * scale
  titles = any(panel.label for panel in panels)
  notes = any(panel.note for panel in panels)
  name, small = _font(int(4.4 * scale)), _font(int(3.0 * scale))
  label = _font(int(3.4 * scale))
  left = margin + max((int(label.getlength(_ascii(t))) for t in row_labels), default=0) + 2 * scale
  top = margin + titles * int(5.8 * scale) + notes * int(4.6 * scale)
  tile_w, tile_h = width * scale + gap, height * scale + gap
  # A panel is at least as wide as the words above it.
  words = [
    max(name.getlength(_ascii(p.label)), *(small.getlength(_ascii(t)) for t in p.note.split("\n")))
    for p in panels
  ]
  panel_w = max(columns * tile_w - gap, int(max(words)))
  size = (
    left + len(panels) * panel_w + (len(panels) - 1) * between + margin,
    top + rows * tile_h - gap + margin,
  )
  sheet = Image.new("RGB", size, SHEET)
  draw = ImageDraw.Draw(sheet)
  for row, text in enumerate(row_labels):
    middle = top + row * tile_h + height * scale // 2
    draw.text((left - 2 * scale, middle), text, font=label, fill=FAINT, anchor="rm")
  for number, panel in enumerate(panels):
    x0 = left + number * (panel_w + between)
    draw.text((x0, margin - scale), panel.label, font=name, fill=TEXT)
    draw.text((x0, margin + int(4.8 * scale)), panel.note, font=small, fill=FAINT)
    for row in range(rows):
      for column in range(columns):
        tile = _tile(panel.images[row, column], scale)
        sheet.paste(tile, (x0 + column * tile_w, top + row * tile_h))
  return _png(sheet, path)


def pairs(
  images: np.ndarray,
  flipped: np.ndarray,
  *,
  columns: int = 6,
  scale: int = 8,
  path: str | os.PathLike | None = None,
) -> bytes:
  """Preference pairs: the preferred image framed, the rejected one beside it, their ink below.

  The frame is green where the heavier image was preferred and red where the lighter one was: that
  is the noise of the labels.

  Args:
    images: `[P, 2, H, W, 1]` in [-1, 1]; axis 1 is (preferred, rejected).
    flipped: bool `[P]`, whether the lighter one was preferred.
    columns: Pairs in a row.
    scale: Size of an image's pixel in pixels of the picture.
    path: Where to write the picture as well; None writes nothing.

  Returns:
    The picture as PNG.

  Raises:
    InputError: Shapes do not fit, or a pixel is not finite.
  """
  shape = np.shape(images)
  if len(shape) != 5 or shape[1] != 2 or shape[4] != 1 or np.shape(flipped) != shape[:1]:
    raise InputError(
      f"pairs are [P, 2, H, W, 1] with flipped [P], got {shape}, {np.shape(flipped)}"
    )
  count, _, height, width, _ = shape
  columns = max(1, min(columns, count))
  rows = -(-count // columns)
  edge, margin, font = max(2, scale // 2), 4 * scale, _font(int(2.6 * scale))
  apart = 2 * edge  # room for the frame within a pair
  pair_w, pair_h = 2 * width * scale + apart + 5 * scale, height * scale + 8 * scale
  size = (2 * margin + columns * pair_w - 5 * scale, 2 * margin + rows * pair_h - 3 * scale)
  sheet = Image.new("RGB", size, SHEET)
  draw = ImageDraw.Draw(sheet)
  for number, level in enumerate(ink(images)):
    y = margin + number // columns * pair_h
    colour = LIGHT.loser if flipped[number] else LIGHT.winner
    for side in range(2):
      x = margin + number % columns * pair_w + side * (width * scale + apart)
      right, bottom = x + width * scale, y + height * scale
      if side == 0:
        draw.rectangle((x - edge, y - edge, right + edge - 1, bottom + edge - 1), fill=colour)
      sheet.paste(_tile(images[number, side], scale), (x, y))
      draw.text(
        ((x + right) // 2, bottom + int(1.4 * scale)),
        f"{level[side]:.2f}",
        font=font,
        fill=FAINT if side else colour,
        anchor="ma",
      )
  return _png(sheet, path)


def intervals(
  labels: Sequence[str],
  values: Sequence[Interval],
  colours: Sequence[str],
  *,
  baseline: float,
  theme: Theme,
  form: Callable[[float], str] = "{:.3f}".format,
  shares: bool = False,
) -> bytes:
  """Estimates with their intervals, one below the other, and a line where nothing has changed.

  Args:
    labels: Names of the rows.
    values: Estimate and interval of each row.
    colours: Of each row.
    baseline: Where the line stands.
    theme: `LIGHT` or `DARK`.
    form: Writes an estimate.
    shares: Whether the axis is one of shares, which end at 0 and 1 and are written as percentages.

  Returns:
    The plot as PNG with a transparent background.

  Raises:
    InputError: matplotlib is not installed.
  """
  figure, axes = _figure(4.6, 0.62 + 0.42 * len(labels), theme)
  places = np.arange(len(labels))[::-1]
  halo = [import_optional("matplotlib.patheffects").withStroke(linewidth=3, foreground=theme.page)]
  axes.axvline(baseline, color=theme.faint, linewidth=1, linestyle=(0, (4, 3)))
  for place, value, colour in zip(places, values, colours, strict=True):
    ends = [value.low, value.high]
    axes.plot(ends, [place] * 2, color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
    axes.vlines(ends, place - 0.13, place + 0.13, color=colour, linewidth=1.5)
    axes.plot([value.value], [place], "o", color=colour, markersize=6)
    at = {"xytext": (0, 6.5), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    look = {"color": theme.text, "fontsize": 9, "path_effects": halo}
    axes.annotate(form(value.value), (value.value, place), **at, **look)
  ends = [baseline, *(end for value in values for end in value)]
  margin = 0.12 * max(max(ends) - min(ends), 1e-3)
  axes.set_xlim(min(ends) - margin, max(ends) + margin)
  axes.set_ylim(-0.55, len(labels) - 0.25)
  axes.set_yticks(places, labels)
  axes.tick_params(axis="y", length=0, labelcolor=theme.text)
  axes.spines["left"].set_visible(False)
  axes.grid(axis="x", color=theme.line, linewidth=0.7)
  ticker = import_optional("matplotlib.ticker")
  ticks = ticker.MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(*axes.get_xlim())
  inside = [t for t in ticks if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
  if shares:
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
  shares: bool = False,
) -> bytes:
  """Curves over training: smoothed, with what was measured faint behind.

  Args:
    lines: (steps, values, colour) by name; the name stands at the end of its curve.
    theme: `LIGHT` or `DARK`.
    width: Of the plot in inches; the smaller, the larger its letters where it is shown.
    limits: Range of the vertical axis; None takes it from the smoothed curves.
    baseline: Where a dashed horizontal line stands; None draws none.
    shares: Whether the values are shares, written as percentages.

  Returns:
    The plot as PNG with a transparent background.

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
    look = {"color": colour, "fontsize": 9, "fontweight": "bold"}
    axes.annotate(name, (step, below), annotation_clip=False, **at, **look)
  axes.set_xlabel("step", color=theme.faint, fontsize=9, loc="right")
  axes.grid(axis="y", color=theme.line, linewidth=0.7)
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="y", length=0)
  ticker = import_optional("matplotlib.ticker")
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  if shares:
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
  """Distributions one below the other on one scale, each with its mean.

  Args:
    rows: (values, colour) by name.
    theme: `LIGHT` or `DARK`.
    behind: Values whose outline stands behind every row, for comparison.

  Returns:
    The plot as PNG with a transparent background.

  Raises:
    InputError: matplotlib is not installed.
  """
  everything = np.concatenate([np.asarray(values) for values, _ in rows.values()])
  low, high = everything.min(), everything.max()
  edges = np.linspace(low - 1e-6, high + 1e-6, 41)
  figure, axes = _figure(4.6, 0.5 + 0.66 * len(rows), theme, rows=len(rows))
  for axis, (name, (values, colour)) in zip(axes, rows.items(), strict=True):
    axis.hist(values, edges, density=True, color=colour, alpha=0.75)
    if behind is not None:
      axis.hist(behind, edges, density=True, histtype="step", color=theme.faint, linewidth=1)
    axis.axvline(np.mean(values), ymax=0.69, color=colour, linewidth=1.6)
    axis.set_ylim(0, 1.45 * axis.get_ylim()[1])  # room for the words above
    words = {"transform": axis.transAxes, "va": "top", "fontsize": 9}
    axis.text(0, 0.95, name, color=theme.text, **words)
    axis.text(1, 0.95, f"mean {np.mean(values):.3f}", color=theme.faint, ha="right", **words)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="x", labelbottom=axis is axes[-1], length=3 * (axis is axes[-1]))
    axis.set_xlim(edges[0], edges[-1])
  figure.subplots_adjust(hspace=0.12)
  return _plot(figure)


def smoothed(values: Sequence[float]) -> np.ndarray:
  """Centred moving average over a twentieth of the curve, over what there is at its ends."""
  x = np.asarray(values, np.float64)
  window = np.ones(2 * (len(x) // 40) + 1)
  return np.convolve(x, window, "same") / np.convolve(np.ones_like(x), window, "same")


def curve_limits(
  values: Sequence[Sequence[float]], baseline: float | None = None
) -> tuple[float, float]:
  """A vertical range that shows the smoothed curves and most of what was measured."""
  ends = [np.quantile(x, q) for x in values for q in (0.02, 0.98)]
  ends += [end for x in values for end in (smoothed(x).min(), smoothed(x).max())]
  ends += [] if baseline is None else [baseline]
  margin = 0.08 * (max(ends) - min(ends)) or 1.0
  return float(min(ends) - margin), float(max(ends) + margin)


def _tile(image: np.ndarray, scale: int) -> Image.Image:
  """One sample as ink on paper, `[H, W, 1]` in [-1, 1]."""
  if not np.isfinite(image).all():
    raise InputError("a sample holds NaN or infinite pixels and cannot be shown")
  level = np.clip((image + 1) / 2, 0, 1)  # [H, W, 1]
  paper, black = (np.frombuffer(bytes.fromhex(c[1:]), np.uint8) for c in (PAPER, INK))
  colours = np.rint((1 - level) * paper + level * black).astype(np.uint8)  # [H, W, 3]
  return Image.fromarray(np.repeat(np.repeat(colours, scale, axis=0), scale, axis=1))


def _font(size: int) -> ImageFont.ImageFont:
  return ImageFont.load_default(size=size)


def _ascii(text: str) -> str:
  if not text.isascii():
    raise InputError(f"{text!r} is not ASCII: the font that Pillow carries has no other letters")
  return text


def _png(image: Image.Image, path: str | os.PathLike | None) -> bytes:
  buffer = io.BytesIO()
  image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
  if path is not None:
    with open(path, "wb") as file:
      file.write(buffer.getvalue())
  return buffer.getvalue()


def _figure(width: float, height: float, theme: Theme, rows: int | None = None):
  """A transparent figure with bare axes; matplotlib's global state is not touched."""
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
