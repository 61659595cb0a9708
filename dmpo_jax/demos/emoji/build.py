"""Captioned emoji: the drawings of a colour font with their Unicode names.

Debian has both: Noto Color Emoji in `fonts-noto-color-emoji`, Unicode's list of emoji in
`unicode-data`. What `build` writes is a folder of captioned images, see `image_captions.load`.
"""

import csv
import hashlib
import io
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from dmpo_jax.common import atomic_folders, files
from dmpo_jax.data.images import MIN_SIDE
from dmpo_jax.data.pairs import check_splits, prompt_key, split_of
from dmpo_jax.data.toy import image_captions
from dmpo_jax.errors import InputError, unknown

FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = pathlib.Path("/usr/share/unicode/emoji/emoji-test.txt")
PACKAGES = {FONT: "fonts-noto-color-emoji", NAMES: "unicode-data"}
EM = 109  # pixels; the only size of the font's bitmaps, each 136x128
MAX_SIZE = 1024
SKIN_TONES = ("keep", "drop")
SPLITS = {"train": 0.9, "test": 0.1}

NO_CHARACTER = "\U0010ffff"  # no font has a glyph for it, so this draws the glyph for missing ones
LINE = re.compile(
  r"(?P<codepoints>[0-9A-F]{1,6}(?: [0-9A-F]{1,6}){0,20})\s*;\s*(?P<status>[a-z-]+)\s*#"
  r"\s*\S+\s+E\d+\.\d+\s+(?P<name>\S.*)"
)
TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")


class Emoji(NamedTuple):
  """An emoji of Unicode's list.

  Attributes:
    codepoints: Hexadecimal code points, separated by spaces.
    caption: Name ("red apple").
    group: Group as a slug ("food-drink").
    subgroup: Subgroup ("food-fruit").
  """

  codepoints: str
  caption: str
  group: str
  subgroup: str

  @property
  def text(self) -> str:
    """Characters of the emoji."""
    return "".join(chr(int(code, 16)) for code in self.codepoints.split())

  @property
  def plain_caption(self) -> str:
    """Name without skin tones ("waving hand" of "waving hand: light skin tone")."""
    words = re.split("[:,] ", self.caption)
    return ", ".join(word for word in words if not TONE.fullmatch(word))


def parse(text: str) -> tuple[list[Emoji], Counter]:
  """Fully-qualified emoji in the text of Unicode's emoji-test.txt.

  The other lines have the same emoji with fewer code points, and components (a single skin tone).

  Args:
    text: Content of the file.

  Returns:
    The emoji in the file's order, and the number of lines of each status.

  Raises:
    InputError: A line has another form, or there is no emoji.

  Source: UTS #51; the head of the file describes its form.
  """
  emojis, statuses = [], Counter()
  group = subgroup = ""
  for number, line in enumerate(files.split_lines(text), 1):
    if line.startswith("# group: "):
      group = _slug(line.removeprefix("# group: "))
    elif line.startswith("# subgroup: "):
      subgroup = line.removeprefix("# subgroup: ").strip()
    elif line.strip() and not line.startswith("#"):
      match = LINE.fullmatch(line.strip())
      if not match or not all(map(_is_character, match["codepoints"].split())):
        raise InputError(
          f"line {number}: {line[:80]!r} is not of the form 'CODES ; STATUS # emoji E1.0 name'"
        )
      statuses[match["status"]] += 1
      if match["status"] == "fully-qualified":
        emojis.append(Emoji(match["codepoints"], match["name"].strip(), group, subgroup))
  if not emojis:
    raise InputError("no line has the status fully-qualified; expected Unicode's emoji-test.txt")
  return emojis, statuses


class Font:
  """A font with emoji in colour.

  Args:
    path: A TrueType or OpenType file. Outlines without colour are drawn in black.

  Raises:
    InputError: The file is not a font, has no bitmaps of `EM` pixels, or Pillow cannot join
      sequences.
  """

  def __init__(self, path: pathlib.Path):
    if not features.check("raqm"):
      raise InputError(
        "this Pillow was built without libraqm, which joins the characters of an emoji; install it "
        "with pip install pillow, whose wheels have libraqm"
      )
    with files.reading(path, "font", advice=f"give one with glyphs of {EM} pixels"):
      self.font = ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.RAQM)
      self.missing = self._layer(NO_CHARACTER)

  def draw(self, text: str, size: int) -> Image.Image | str:
    """Drawing in the middle of a white square, scaled to `size` with Pillow's LANCZOS filter.

    Args:
      text: One emoji.
      size: Side of the result in pixels.

    Returns:
      An RGB image; or, if the font has no drawing, the reason: "not in the font", or "not joined"
      if the font has only the single characters of a sequence.
    """
    if self.font.getlength(text) > 1.01 * max(self.font.getlength(character) for character in text):
      return "not joined"
    layer = self._layer(text)
    if layer.tobytes() == self.missing.tobytes() or layer.getbbox() is None:
      return "not in the font"
    side = max(layer.size)
    sheet = Image.new("RGBA", (side, side), "white")
    sheet.alpha_composite(layer, ((side - layer.width) // 2, (side - layer.height) // 2))
    return sheet.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)

  def _layer(self, text: str) -> Image.Image:
    """Drawing on a transparent background, RGBA."""
    left, top, right, bottom = (round(edge) for edge in self.font.getbbox(text))
    layer = Image.new("RGBA", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(layer).text(
      (-left, -top), text, font=self.font, fill="black", embedded_color=True
    )
    return layer


def build(
  out: pathlib.Path,
  *,
  size: int = 64,
  groups: Sequence[str] = (),
  skin_tones: str = "keep",
  splits: Mapping[str, float] = SPLITS,
  font: pathlib.Path = FONT,
  names: pathlib.Path = NAMES,
  progress: Callable[[Iterable], Iterable] = iter,
) -> dict:
  """Draws the emoji of a font into a folder of captioned images, written whole or not at all.

  Args:
    out: The folder; must not exist.
    size: Side of the images in pixels.
    groups: Slugs of Unicode's groups ("food-drink"); empty: all.
    skin_tones: "keep", or "drop" to leave out emoji with a skin tone in their name.
    splits: Fraction of the captions by split. All skin tones of an emoji share its split.
    font: File of the font.
    names: Unicode's emoji-test.txt.
    progress: Wraps the iterable of emoji, for a progress bar.

  Returns:
    Content of report.json: counts of emoji read, left out by reason, and written.

  Raises:
    InputError: A file is missing (the message names its package) or malformed, an option is
      unknown, or no emoji is left.
    OSError: A file cannot be written.
  """
  out, font, names = pathlib.Path(out), pathlib.Path(font), pathlib.Path(names)
  if isinstance(size, bool) or not isinstance(size, int) or not MIN_SIDE <= size <= MAX_SIZE:
    raise InputError(f"size must be from {MIN_SIDE} to {MAX_SIZE} pixels, got {size!r}")
  if skin_tones not in SKIN_TONES:
    raise unknown("choice for skin tones", skin_tones, SKIN_TONES)
  splits = check_splits(splits)
  if out.exists():
    raise InputError(f"{out} exists; give another folder or delete it")
  _check_there(font, names)
  text = files.read_text(names, advice="expected Unicode's emoji-test.txt")
  with files.located(names):
    everything, statuses = parse(text)
  for group in groups:
    if group not in (groups_of_file := {emoji.group for emoji in everything}):
      raise unknown("group of emoji", group, groups_of_file)

  drawing_font, left_out, digests = Font(font), Counter(), Counter()
  with atomic_folders.folder_atomically(out) as folder:
    (folder / image_captions.IMAGES).mkdir()
    rows = []
    for emoji in progress(everything):
      if groups and emoji.group not in groups:
        left_out["other groups"] += 1
      elif skin_tones == "drop" and TONE.search(emoji.caption):
        left_out["skin tones"] += 1
      elif isinstance(image := _draw(drawing_font, font, emoji, size), str):
        left_out[image] += 1
      else:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        digests[hashlib.sha256(image.tobytes()).digest()] += 1
        file = f"{image_captions.IMAGES}/{emoji.codepoints.replace(' ', '-')}.png"
        (folder / file).write_bytes(stream.getvalue())
        split = split_of(prompt_key(emoji.plain_caption), splits)
        rows.append({"file": file, "split": split, **emoji._asdict()})
    if not rows:
      raise InputError(f"no emoji is left of {len(everything)} ({dict(left_out)})")
    family = " ".join(filter(None, drawing_font.font.getname()))
    report = {
      "font": {"path": str(font), "name": family, **_digest(font)},
      "names": {"path": str(names), **_digest(names)},
      "options": {"size": size, "groups": list(groups), "skin_tones": skin_tones, "splits": splits},
      "lines": dict(statuses),
      "left_out": dict(left_out),
      "written": len(rows),
      "same_drawing_as_an_earlier_one": len(rows) - len(digests),
      "by_group": dict(Counter(row["group"] for row in rows)),
      "by_split": {name: sum(row["split"] == name for row in rows) for name in splits},
    }
    _write_table(folder, rows, splits)
    text = json.dumps(report, indent=1) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
  return report


def _draw(font: Font, path: pathlib.Path, emoji: Emoji, size: int) -> Image.Image | str:
  """`Font.draw`, with the file and the emoji in the message about a damaged glyph."""
  with files.reading(path, "font", advice=f"its glyph of {emoji.codepoints} cannot be drawn"):
    return font.draw(emoji.text, size)


def _is_character(code: str) -> bool:
  """Whether a hexadecimal code point is a character, and not half a surrogate pair."""
  return int(code, 16) <= 0x10FFFF and not 0xD800 <= int(code, 16) <= 0xDFFF


def _write_table(folder: pathlib.Path, rows: list[dict], splits: Iterable[str]) -> None:
  """Writes the table that training reads, and the captions of each split as prompts."""
  with (folder / image_captions.TABLE).open("w", encoding="utf-8", newline="") as stream:
    writer = csv.DictWriter(stream, ["file", "caption", "split", "group", "subgroup", "codepoints"])
    writer.writeheader()
    writer.writerows(rows)
  for split in splits:
    captions = [row["caption"] for row in rows if row["split"] == split]
    text = "".join(caption + "\n" for caption in captions)
    (folder / f"prompts-{split}.txt").write_text(text, encoding="utf-8")


def _check_there(*paths: pathlib.Path) -> None:
  """Raises InputError if a file is missing, with the packages that have the missing files."""
  absent = [path for path in paths if not path.is_file()]
  packages = [PACKAGES[path] for path in absent if path in PACKAGES]
  if packages:
    raise InputError(
      f"there is no file {' and no file '.join(map(str, absent))}; on Debian and Ubuntu:\n"
      f"  sudo apt-get install {' '.join(packages)}\n"
      "elsewhere, give --font (NotoColorEmoji.ttf with bitmaps) and --names (emoji-test.txt)"
    )
  if absent:
    raise InputError(f"there is no file {absent[0]}")


def _digest(path: pathlib.Path) -> dict:
  with path.open("rb") as stream:
    return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _slug(name: str) -> str:
  return "-".join(re.findall(r"[a-z]+", name.lower()))
