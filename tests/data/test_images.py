"""Images become 8-bit RGB by stated rules, or are refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dmpo_jax.data import images
from tests.data.sets import encoded, png

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(256, size=(12, 16, 3), dtype=np.uint8)


def as_file(image: Image.Image, kind="PNG", **settings) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **settings)
  return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_rgb_file_keeps_its_bytes(kind):
  data = as_file(Image.fromarray(PIXELS), kind)
  assert images.read(data) == images.Picture(data, (12, 16), "")


def test_pixels_of_a_lossless_file_come_back():
  np.testing.assert_array_equal(images.decode(as_file(Image.fromarray(PIXELS))), PIXELS)


def test_grey_becomes_three_equal_channels():
  picture = images.read(as_file(Image.fromarray(PIXELS[..., 0])))
  assert picture.reencoded == "grey"
  np.testing.assert_array_equal(
    np.asarray(images.decode(picture.encoded)), np.repeat(PIXELS[..., :1], 3, axis=2)
  )


def test_a_palette_becomes_its_colours():
  palette = Image.fromarray(PIXELS).quantize(16)
  picture = images.read(as_file(palette))
  assert picture.reencoded == "palette"
  colours = np.array(palette.getpalette()).reshape(-1, 3)
  np.testing.assert_array_equal(
    np.asarray(images.decode(picture.encoded)), colours[np.asarray(palette)]
  )


def test_transparency_is_composed_over_white():
  alpha = RNG.integers(256, size=(12, 16, 1), dtype=np.uint8)
  picture = images.read(as_file(Image.fromarray(np.concatenate([PIXELS, alpha], axis=2))))
  a = alpha / 255
  assert picture.reencoded == "alpha"
  np.testing.assert_allclose(
    np.asarray(images.decode(picture.encoded)), PIXELS * a + 255 * (1 - a), atol=1
  )


def test_one_transparent_colour_is_composed_over_white():
  flat = np.zeros((8, 8, 3), np.uint8)
  flat[0] = 9
  picture = images.read(as_file(Image.fromarray(flat), transparency=(0, 0, 0)))
  assert picture.reencoded == "alpha"
  np.testing.assert_array_equal(np.asarray(images.decode(picture.encoded))[:2, 0, 0], [9, 255])


def test_cmyk_becomes_rgb_without_a_profile():
  ink = np.zeros((16, 16, 4), np.uint8)
  ink[..., 0] = 255  # cyan only: no red
  picture = images.read(as_file(Image.fromarray(ink, "CMYK"), "JPEG", quality=100))
  assert picture.reencoded == "CMYK"
  np.testing.assert_allclose(
    np.asarray(images.decode(picture.encoded))[4, 4], [0, 255, 255], atol=3
  )


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_sixteen_bits_keep_the_high_byte(colour, channels):
  values = RNG.integers(2**16, size=(8, 9, channels), dtype=np.uint16)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  picture = images.read(png(9, 8, depth=16, colour=colour, rows=rows))
  assert picture.reencoded == "16-bit"
  expected = np.broadcast_to((values // 256).astype(np.uint8), (8, 9, 3))
  np.testing.assert_array_equal(np.asarray(images.decode(picture.encoded)), expected)


def test_an_orientation_is_applied():
  exif = Image.Exif()
  exif[images.ORIENTATION] = 6  # displayed rotated by 90 degrees clockwise
  picture = images.read(as_file(Image.fromarray(PIXELS), exif=exif))
  assert picture.reencoded == "orientation"
  assert picture.size == (16, 12)
  np.testing.assert_array_equal(np.asarray(images.decode(picture.encoded)), np.rot90(PIXELS, -1))


def test_a_reencoded_image_keeps_its_bytes():
  once = images.read(as_file(Image.fromarray(PIXELS[..., 0]))).encoded
  assert images.read(once).encoded is once


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_refused(kind):
  data = encoded(size=(64, 64), kind=kind)
  with pytest.raises(images.UndecodableError, match=r"cannot be decoded|not an image"):
    images.read(data[: len(data) // 2])


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
  with pytest.raises(images.UndecodableError, match=r"too large|claims 60000x60000"):
    images.read(png(60000, 60000))


def test_more_pixels_than_the_limit_are_refused():
  with pytest.raises(images.UndecodableError, match="claims 8192x8192"):
    images.read(png(8192, 8192))


def test_an_image_of_one_pixel_is_refused():
  with pytest.raises(images.UndecodableError, match="1x1 pixels; at least 8"):
    images.read(encoded(size=(1, 1)))


def test_an_animation_is_refused():
  frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
  data = as_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
  with pytest.raises(images.UndecodableError, match="animated \\(2 frames\\)"):
    images.read(data)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (encoded(mode="L"), "L of 16x12 pixels, not one that images.read returned"),
    (b"x", "cannot be decoded"),
    (png(60000, 60000), "cannot be decoded"),
  ],
)
def test_images_that_read_did_not_return_are_not_decoded(data, message):
  with pytest.raises(images.UndecodableError, match=message):
    images.decode(data)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", "text", None])
def test_bytes_of_no_image_are_refused(data):
  with pytest.raises(images.UndecodableError):
    images.read(data)


# EXIF blocks that no reader of TIFF accepts.
EXIF = [
  b"junk",
  b"",
  b"II*\0",
  b"Exif\0\0Exif\0\0II*\0",
  b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0",
]


@pytest.mark.parametrize("exif", EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_leaves_the_bytes_and_pixels_alone(kind, exif):
  data = as_file(Image.fromarray(PIXELS), kind, exif=exif)
  assert images.read(data) == images.Picture(data, (12, 16), "")


def test_malformed_exif_of_an_image_that_is_reencoded_means_no_orientation():
  data = as_file(Image.fromarray(PIXELS[..., 0]), exif=b"junk")
  picture = images.read(data)
  assert picture.reencoded == "grey"
  np.testing.assert_array_equal(np.asarray(images.decode(picture.encoded))[..., 0], PIXELS[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_as_pillow_applies_it(orientation):
  exif = Image.Exif()
  exif[images.ORIENTATION] = orientation
  data = as_file(Image.fromarray(PIXELS), exif=exif)
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(images.decode(images.read(data).encoded), expected)


def chunk(name: bytes, body: bytes) -> bytes:
  return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# Chunks behind the header of a PNG file that Pillow refuses to parse.
CHUNKS = {
  "a text of two megabytes": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 2_000_000)),
  "a text in an unknown compression": chunk(b"zTXt", b"k\0\7abc"),
  "a text with a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
  "a short gamma": chunk(b"gAMA", b""),
  "a profile in an unknown compression": chunk(b"iCCP", b"x\0\7abc"),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_metadata_of_a_png_file_that_pillow_refuses_are_left_out(name):
  data = as_file(Image.fromarray(PIXELS))
  picture = images.read(data[:33] + CHUNKS[name] + data[33:])
  assert picture.reencoded == "metadata"
  np.testing.assert_array_equal(images.decode(picture.encoded), PIXELS)


@pytest.mark.parametrize("segment", [b"\xff\xe0\0\x08JFIF\0d", b"\xff\xee\0\x07Adobe"])
def test_metadata_of_a_jpeg_file_that_pillow_refuses_are_left_out(segment):
  data = as_file(Image.fromarray(PIXELS), "JPEG")
  picture = images.read(data[:2] + segment + data[2:])
  assert picture.reencoded == "metadata"
  np.testing.assert_array_equal(images.decode(picture.encoded), images.decode(data))


def test_an_orientation_beside_metadata_that_are_left_out_is_applied():
  exif = Image.Exif()
  exif[images.ORIENTATION] = 6
  data = as_file(Image.fromarray(PIXELS), exif=exif)
  picture = images.read(data[:33] + CHUNKS["a short gamma"] + data[33:])
  np.testing.assert_array_equal(images.decode(picture.encoded), np.rot90(PIXELS, -1))
