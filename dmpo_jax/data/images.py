"""Checks of encoded images under hard limits, and their conversion to 8-bit RGB.

The result is an 8-bit RGB image, upright, opaque and still, as JPEG, PNG or WebP bytes that every
decoder reads alike. Such an image keeps its bytes; any other is re-encoded as PNG by these rules:

- grey, black-and-white and palette images: their colours as RGB;
- transparency: composed over white;
- CMYK: Pillow's conversion, without a colour profile;
- 16 bits a channel: the high byte;
- an orientation in the metadata: the pixels are rotated;
- metadata that Pillow cannot parse: left out. They decide nothing about the pixels.

Embedded colour profiles are ignored, as diffusers' own image loader does.
"""

import io
import struct
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from dmpo_jax.common import paths
from dmpo_jax.data import image_paths
from dmpo_jax.errors import InputError, short

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
KEPT = ("JPEG", "MPO", "PNG", "WEBP")  # MPO: a JPEG with further images appended
MAX_BYTES = 2**26  # an encoded image
MAX_PIXELS = 2**25  # 33.5 million: 7680x4320 fits; 100 MB when decoded
MIN_SIDE = 8
ORIENTATION = 0x0112
# Orientation -> how the pixels become upright; others mean nothing.
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE, JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# What decides about the pixels of a PNG file; acTL says that it is animated.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"IDAT", b"eXIf", b"IEND")
JPEG_EXIF, JPEG_ADOBE = 0xE1, 0xEE  # segments that are kept; Adobe's says how colours are stored


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
  try:
    return _read(encoded)
  except UndecodableError:
    plain = _without_metadata(encoded)
    if plain is None:
      raise
    try:
      picture = _read(plain)
    except UndecodableError:
      picture = None
    if picture is None:
      raise
  if not picture.reencoded:  # its own bytes, which other decoders may refuse as Pillow does
    picture = picture._replace(encoded=_as_png(decode(plain)), reencoded="metadata")
  return picture


def _read(encoded: bytes) -> Picture:
  """`read` of bytes as they are."""
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


def _without_metadata(encoded: bytes) -> bytes | None:
  """A PNG or JPEG file without the parts that do not decide about its pixels.

  Returns:
    Bytes, or None if it has no such part, or is no such file.
  """
  try:
    if encoded.startswith(PNG_SIGNATURE):
      plain = _png_without_metadata(encoded)
    elif encoded.startswith(JPEG_SIGNATURE):
      plain = _jpeg_without_metadata(encoded)
    else:
      return None
  except (struct.error, IndexError):  # it ends within a part
    return None
  return None if plain == encoded else plain


def _png_without_metadata(encoded: bytes) -> bytes:
  parts, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
  while at < len(encoded):
    (length,), kind = struct.unpack_from(">I", encoded, at), encoded[at + 4 : at + 8]
    end = at + length + 12
    if kind in PNG_CHUNKS:
      parts.append(encoded[at:end])
    at = len(encoded) if kind == b"IEND" else end
  return b"".join(parts)


def _jpeg_without_metadata(encoded: bytes) -> bytes:
  parts, at = [JPEG_SIGNATURE], len(JPEG_SIGNATURE)
  while encoded[at] == 0xFF and encoded[at + 1] != 0xDA:  # to the start of the scan
    marker = encoded[at + 1]
    (length,) = struct.unpack_from(">H", encoded, at + 2)
    end = at + 2 + length
    comment = marker == 0xFE or 0xE0 <= marker <= 0xEF
    if not comment or marker == JPEG_EXIF or (marker == JPEG_ADOBE and length >= 14):
      parts.append(encoded[at:end])
    at = end
  return b"".join(parts) + encoded[at:]


def _as_png(image: Image.Image) -> bytes:
  out = io.BytesIO()
  image.save(out, "PNG")
  return out.getvalue()


def _orientation(image: Image.Image) -> Image.Transpose | None:
  """How the pixels become upright; None if they are, or if the metadata are damaged."""
  try:
    return UPRIGHT.get(image.getexif().get(ORIENTATION))
  except Exception:  # of any class; a viewer shows such an image as it is stored
    return None


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
  method = _orientation(image)
  rgb = _to_rgb(image if method is None else image.transpose(method))
  return Picture(_as_png(rgb), (rgb.height, rgb.width), reason)


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
  if _orientation(image) is not None:
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


def load(value: bytes | str, root: paths.Path) -> Picture:
  """Reads an image from bytes or from a file of a folder.

  Args:
    value: Encoded bytes, or the path of a file inside `root`.
    root: Folder that paths are relative to and may not leave, see `image_paths.inside`.

  Returns:
    `Picture`, see `read`.

  Raises:
    UndecodableError: The image is unusable, see `read`.
    InputError: The path leaves the folder, or there is no such file.
  """
  if isinstance(value, bytes):
    return read(value)
  path, quoted = image_paths.inside(value, root), short(value, 200)
  try:
    if path.stat().st_size > MAX_BYTES:
      raise UndecodableError(f"the file is larger than {MAX_BYTES} bytes")
    return read(path.read_bytes())
  except UndecodableError as error:
    raise UndecodableError(f"{quoted}: {error}") from error
  except OSError as error:
    raise InputError(f"cannot read the image {quoted}: {error.strerror}") from error
