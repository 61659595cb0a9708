"""Checks of encoded images under hard limits, and their conversion to 8-bit RGB.

The result is an 8-bit RGB image, upright, opaque and still, as JPEG, PNG or WebP bytes that every
decoder reads alike. Such an image keeps its bytes; any other is re-encoded as PNG by these rules:

- grey, black-and-white and palette images: their colours as RGB;
- transparency: composed over white;
- CMYK: Pillow's conversion, without a colour profile;
- 16 bits a channel: the high byte;
- an orientation in the metadata: the pixels are rotated.

Embedded colour profiles are ignored, as diffusers' own image loader does.
"""

import io
import pathlib
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dmpo_jax.common import files
from dmpo_jax.errors import InputError, short

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
KEPT = ("JPEG", "MPO", "PNG", "WEBP")  # MPO: a JPEG with further images appended
MAX_BYTES = 2**26  # an encoded image
MAX_PIXELS = 2**25  # 33.5 million: 7680x4320 fits; 100 MB when decoded
MIN_SIDE = 8
ORIENTATION = 0x0112


class UndecodableError(InputError):
  """The bytes are no usable image; the message says why."""


class Picture(NamedTuple):
  """An encoded image that was decoded once to check it.

  Attributes:
    encoded: Bytes of an 8-bit RGB image.
    size: (height, width).
    reencoded: Why the image was re-encoded ("palette", "alpha", ...); "" if it keeps its bytes.
  """

  encoded: bytes
  size: tuple[int, int]
  reencoded: str


def read(encoded: bytes) -> Picture:
  """Checks that an image is complete, and converts it to 8-bit RGB where it is not.

  Args:
    encoded: Bytes of a JPEG, PNG, WebP, GIF or BMP file.

  Returns:
    `Picture`, with the file's bytes where it is 8-bit RGB, upright and opaque.

  Raises:
    UndecodableError: The file is of another format, truncated or corrupt, too large (a
      decompression bomb), too small, or animated.
  """
  if not isinstance(encoded, bytes):
    raise UndecodableError(f"an image must be encoded bytes, got {type(encoded).__name__}")
  if not encoded:
    raise UndecodableError("the image is empty (0 bytes)")
  if len(encoded) > MAX_BYTES:
    raise UndecodableError(f"the image file has {len(encoded)} bytes, at most {MAX_BYTES} are read")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Pillow warns of images that are refused here
    try:
      with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return _checked(image, encoded)
    except InputError:
      raise
    except Image.UnidentifiedImageError as error:
      raise UndecodableError(
        f"not an image in one of the formats {', '.join(FORMATS)} ({len(encoded)} bytes)"
      ) from error
    except Image.DecompressionBombError as error:
      raise UndecodableError(f"the image is too large: {error}") from error
    except Exception as error:  # Pillow's decoders raise errors of any class on broken files
      raise UndecodableError(f"the image cannot be decoded: {error}") from error


def _checked(image: Image.Image, encoded: bytes) -> Picture:
  width, height = image.size
  if width * height > MAX_PIXELS:
    raise UndecodableError(
      f"the image claims {width}x{height} pixels, at most {MAX_PIXELS} are decoded"
    )
  if min(width, height) < MIN_SIDE:
    raise UndecodableError(f"the image has {width}x{height} pixels; at least {MIN_SIDE} a side")
  if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
    raise UndecodableError(f"the image is animated ({image.n_frames} frames); give a still one")
  image.load()
  reason = _reencoding_reason(image, encoded)
  if not reason:
    return Picture(encoded, (height, width), "")
  rgb = _to_rgb(ImageOps.exif_transpose(image))
  out = io.BytesIO()
  rgb.save(out, "PNG")
  return Picture(out.getvalue(), (rgb.height, rgb.width), reason)


def _reencoding_reason(image: Image.Image, encoded: bytes) -> str:
  """The reason to re-encode an image in a word; "" if it can keep its bytes."""
  if image.format == "PNG" and encoded[24:25] == b"\x10":  # bit depth in the header
    return "16-bit"
  if image.mode in ("P", "PA"):
    return "palette"
  if image.mode == "CMYK":
    return "CMYK"
  if image.has_transparency_data:
    return "alpha"
  if image.mode in ("L", "1"):
    return "grey"
  if image.mode != "RGB":
    return f"mode {image.mode}"
  if image.getexif().get(ORIENTATION, 1) != 1:
    return "orientation"
  return "" if image.format in KEPT else image.format


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I;16"):
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
  if image.mode in ("I", "F"):
    raise UndecodableError(f"the image's pixels are of kind {image.mode!r}; give 8 or 16 bits")
  if image.has_transparency_data:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
  return image.convert("RGB")


def decode(encoded: bytes) -> Image.Image:
  """Decodes an image that `read` accepted.

  Args:
    encoded: `Picture.encoded`.

  Returns:
    Pillow's image, 8-bit RGB; `np.asarray` of it is uint8 `[H, W, 3]`.

  Raises:
    UndecodableError: The bytes are no such image.
  """
  return decode_scaled(encoded, None)[0]


def decode_scaled(encoded: bytes, least: int | None) -> tuple[Image.Image, tuple[int, int], int]:
  """Decodes an image that `read` accepted, no larger than necessary.

  Args:
    encoded: `Picture.encoded`.
    least: No side may become smaller than this: a JPEG is decoded at the smallest of 1, 1/2, 1/4
      and 1/8 of its size by libjpeg's scaled inverse transform, which skips most of the work.
      Other images keep their size. None: all images keep their size.

  Returns:
    image: See `decode`.
    size: (height, width) of the full-size image.
    factor: Ratio of full to decoded size. Where it does not divide a side, the last decoded row or
      column extends beyond the full-size image.

  Raises:
    UndecodableError: The bytes are no such image.
  """
  try:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      width, height = image.size
      if image.mode == "RGB" and width * height <= MAX_PIXELS:
        if least is not None and image.format == "JPEG":
          image.draft("RGB", (least, least))
        image.load()
        full = height, width
        decoded = image.height, image.width
        factor = next(f for f in (1, 2, 4, 8) if tuple(-(-side // f) for side in full) == decoded)
        return image, full, factor
      kind = f"{image.mode} of {width}x{height} pixels"
  except Exception as error:  # Pillow's decoders raise errors of any class on broken files
    raise UndecodableError(f"the image cannot be decoded: {error}") from error
  raise UndecodableError(f"the image is {kind}, not one that images.read returned")


def load(value: bytes | str, root: pathlib.Path) -> Picture:
  """Reads an image from bytes or from a file of a folder.

  Args:
    value: Encoded bytes, or the path of a file inside `root`.
    root: Folder that paths are relative to and may not leave, nor by a link. In the cache of the
      Hugging Face hub a snapshot's links may lead to its `blobs`.

  Returns:
    `Picture`, see `read`.

  Raises:
    UndecodableError: The image is unusable, see `read`.
    InputError: The path leaves the folder, or there is no such file.
  """
  if isinstance(value, bytes):
    return read(value)
  try:
    return read(inside(value, root).read_bytes())
  except UndecodableError as error:
    raise UndecodableError(f"{value[:200]!r}: {error}") from error
  except OSError as error:
    raise InputError(f"cannot read the image {value[:200]!r}: {error.strerror}") from error


def inside(name: str, root: pathlib.Path) -> pathlib.Path:
  """Resolves the path of a file that must lie in a folder.

  Args:
    name: Path relative to the folder.
    root: The folder.

  Returns:
    Path of an ordinary file of at most `MAX_BYTES` bytes.

  Raises:
    InputError: The name is absolute, contains "..", is a link out of the folder, or names no
      ordinary file.
  """
  path, quoted = files.inside(root, name), short(name, 200)
  try:
    if not path.is_file():
      raise InputError(f"there is no file {quoted} in {root}")
    if path.stat().st_size > MAX_BYTES:
      raise UndecodableError(f"the file {quoted} is larger than {MAX_BYTES} bytes")
  except OSError as error:
    raise InputError(f"the path {quoted} cannot be opened: {error}") from error
  return path
