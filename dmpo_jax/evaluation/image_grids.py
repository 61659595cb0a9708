"""Grids of samples and preference pairs (Pillow) as PNG files in memory."""

import io
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.plots import LIGHT

BACKGROUND, TEXT, FAINT = "#e4e7ec", "#20232b", "#5c6370"
GREY = ("#000000", "#ffffff")


class Panel(NamedTuple):
  """Samples of one model within a comparison.

  Attributes:
    label: Name above the samples.
    note: A few words below the name; may be empty.
    images: `[R, C, H, W, 1]` or `[R, C, H, W, 3]` in [-1, 1].
  """

  label: str
  note: str
  images: np.ndarray


def grid(
  images: np.ndarray,
  row_labels: Sequence[str],
  *,
  scale: int = 5,
  colours: tuple[str, str] = GREY,
  path: str | os.PathLike | None = None,
) -> bytes:
  """PNG of samples in rows and columns, each pixel an exact square.

  Args:
    images: `[R, C, H, W, 1]` or `[R, C, H, W, 3]` in [-1, 1]; values outside are clipped.
    row_labels: R short texts (ASCII), one before each row.
    scale: Width of an image's pixel in pixels of the PNG.
    colours: Colours of the levels -1 and 1 of one-channel images.
    path: File to write the PNG to; None writes nothing.

  Returns:
    The PNG.

  Raises:
    InputError: Shapes do not fit, a pixel is not finite, or a label is not ASCII.
  """
  return comparison([Panel("", "", images)], row_labels, scale=scale, colours=colours, path=path)


def comparison(
  panels: Sequence[Panel],
  row_labels: Sequence[str],
  *,
  scale: int = 5,
  colours: tuple[str, str] = GREY,
  text_scale: int | None = None,
  path: str | os.PathLike | None = None,
) -> bytes:
  """PNG of the samples of several models side by side, the same captions in the same rows.

  Args:
    panels: The models, the reference first. Their images `[R, C, H, W, 1 or 3]` have one shape,
      but for the number of columns.
    row_labels: R short texts (ASCII), one before each row.
    scale: Width of an image's pixel in pixels of the PNG.
    colours: Colours of the levels -1 and 1 of one-channel images.
    text_scale: Unit of letters and margins in pixels of the PNG; None: `scale`.
    path: File to write the PNG to; None writes nothing.

  Returns:
    The PNG.

  Raises:
    InputError: No panel, shapes that do not fit, a pixel that is not finite, or text that is not
      ASCII.
  """
  shapes = [np.shape(panel.images) for panel in panels]
  common = {shape[:1] + shape[2:] for shape in shapes}
  if len(common) != 1 or len(shapes[0]) != 5 or shapes[0][-1] not in (1, 3):
    raise InputError(f"panels must hold images of one shape [R, C, H, W, 1 or 3], got {shapes}")
  rows, _, height, width, _ = shapes[0]
  if len(row_labels) != rows:
    raise InputError(f"{len(row_labels)} row labels for {rows} rows of images")
  unit = text_scale or scale
  gap, margin, between = unit, 4 * unit, 6 * unit
  titles = any(panel.label for panel in panels)
  notes = any(panel.note for panel in panels)
  name, small = _font(int(4.4 * unit)), _font(int(3.0 * unit))
  label = _font(int(3.4 * unit))
  left = margin + max((int(label.getlength(_ascii(t))) for t in row_labels), default=0) + 2 * unit
  top = margin + titles * int(5.8 * unit) + notes * int(4.6 * unit)
  tile_w, tile_h = width * scale + gap, height * scale + gap
  # All panels are as wide as the widest, and that is at least as wide as the text above it.
  texts = [
    max(name.getlength(_ascii(p.label)), *(small.getlength(_ascii(t)) for t in p.note.split("\n")))
    for p in panels
  ]
  widths = [
    max(shape[1] * tile_w - gap, int(text)) for shape, text in zip(shapes, texts, strict=True)
  ]
  if len(set(shapes)) == 1:  # models of equal columns are aligned alike
    widths = [max(widths)] * len(panels)
  lefts = [left + sum(widths[:i]) + i * between for i in range(len(panels))]
  size = (lefts[-1] + widths[-1] + margin, top + rows * tile_h - gap + margin)
  sheet = Image.new("RGB", size, BACKGROUND)
  draw = ImageDraw.Draw(sheet)
  for row, text in enumerate(row_labels):
    middle = top + row * tile_h + height * scale // 2
    draw.text((left - 2 * unit, middle), text, font=label, fill=FAINT, anchor="rm")
  for x, panel in zip(lefts, panels, strict=True):
    draw.text((x, margin - unit), panel.label, font=name, fill=TEXT)
    draw.text((x, margin + int(4.8 * unit)), panel.note, font=small, fill=FAINT)
    for row, images in enumerate(panel.images):
      for column, image in enumerate(images):
        tile = _tile(image, scale, colours)
        sheet.paste(tile, (x + column * tile_w, top + row * tile_h))
  return _png(sheet, path, quantize=shapes[0][-1] == 1)


def pairs(
  images: np.ndarray,
  scores: np.ndarray,
  *,
  columns: int = 6,
  scale: int = 8,
  colours: tuple[str, str] = GREY,
  path: str | os.PathLike | None = None,
) -> bytes:
  """PNG of preference pairs: the preferred image framed, the rejected one beside it.

  The frame is green where the preferred image has the higher score or the same, and red where it
  has the lower one. Below each image stands its score.

  Args:
    images: `[P, 2, H, W, 1]` or `[P, 2, H, W, 3]` in [-1, 1]; axis 1 is (preferred, rejected).
    scores: `[P, 2]`.
    columns: Pairs in a row.
    scale: Width of an image's pixel in pixels of the PNG.
    colours: Colours of the levels -1 and 1 of one-channel images.
    path: File to write the PNG to; None writes nothing.

  Returns:
    The PNG.

  Raises:
    InputError: Shapes do not fit, or a pixel is not finite.
  """
  shape, scores = np.shape(images), np.asarray(scores)
  if len(shape) != 5 or shape[1] != 2 or shape[4] not in (1, 3) or scores.shape != shape[:2]:
    raise InputError(
      f"images must be [P, 2, H, W, 1 or 3] and scores [P, 2], got {shape} and {scores.shape}"
    )
  count, _, height, width, _ = shape
  columns = max(1, min(columns, count))
  rows = -(-count // columns)
  edge, margin, font = max(2, scale // 2), 4 * scale, _font(int(2.6 * scale))
  apart = 2 * edge  # room for the frame within a pair
  pair_w, pair_h = 2 * width * scale + apart + 5 * scale, height * scale + 8 * scale
  size = (2 * margin + columns * pair_w - 5 * scale, 2 * margin + rows * pair_h - 3 * scale)
  sheet = Image.new("RGB", size, BACKGROUND)
  draw = ImageDraw.Draw(sheet)
  for number, (preferred, rejected) in enumerate(scores):
    y = margin + number // columns * pair_h
    colour = LIGHT.rejected if preferred < rejected else LIGHT.preferred
    for side in range(2):
      x = margin + number % columns * pair_w + side * (width * scale + apart)
      right, bottom = x + width * scale, y + height * scale
      if side == 0:
        draw.rectangle((x - edge, y - edge, right + edge - 1, bottom + edge - 1), fill=colour)
      sheet.paste(_tile(images[number, side], scale, colours), (x, y))
      draw.text(
        ((x + right) // 2, bottom + int(1.4 * scale)),
        f"{scores[number, side]:.2f}",
        font=font,
        fill=FAINT if side else colour,
        anchor="ma",
      )
  return _png(sheet, path, quantize=shape[4] == 1)


def _tile(image: np.ndarray, scale: int, colours: tuple[str, str]) -> Image.Image:
  """One sample `[H, W, 1 or 3]` in [-1, 1]."""
  if not np.isfinite(image).all():
    raise InputError("a sample holds NaN or infinite pixels and cannot be shown")
  level = np.clip((image + 1) / 2, 0, 1)  # [H, W, C]
  low, high = (
    np.frombuffer(bytes.fromhex(c[1:]), np.uint8)
    for c in (colours if image.shape[-1] == 1 else GREY)
  )
  pixels = np.rint((1 - level) * low + level * high).astype(np.uint8)  # [H, W, 3]
  return Image.fromarray(np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1))


def _font(size: int) -> ImageFont.ImageFont:
  return ImageFont.load_default(size=size)


def _ascii(text: str) -> str:
  if not text.isascii():
    raise InputError(f"{text!r} is not ASCII: the font that Pillow carries has no other letters")
  return text


def _png(image: Image.Image, path: str | os.PathLike | None, *, quantize: bool) -> bytes:
  buffer = io.BytesIO()
  if quantize:
    image = image.quantize(256, dither=Image.Dither.NONE)
  image.save(buffer, "PNG", optimize=True)
  if path is not None:
    write_atomically(path, buffer.getvalue())
  return buffer.getvalue()
