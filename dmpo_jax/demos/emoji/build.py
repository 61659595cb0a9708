"""Captioned emoji: the drawings of a colour font and the names that Unicode gives them.

Debian has both: Noto Color Emoji in `fonts-noto-color-emoji`, Unicode's list of emoji in
`unicode-data`. What `build` writes is a folder of captioned images, see `image_captions.load`.
"""

import csv
import hashlib
import io
import json
import pathlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from dmpo_jax.data.images import MIN_SIDE
from dmpo_jax.data.pairs import check_splits, prompt_key, split_of
from dmpo_jax.data.toy import image_captions
from dmpo_jax.errors import InputError, unknown

FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = pathlib.Path("/usr/share/unicode/emoji/emoji-test.txt")
PACKAGES = {FONT: "fonts-noto-color-emoji", NAMES: "unicode-data"}
EM = 109  # pixels; the only size that the font has bitmaps of, each 136x128
MAX_SIZE = 1024
SKIN_TONES = ("keep", "drop")
SPLITS = {"train": 0.9, "test": 0.1}

NO_CHARACTER = "\U0010ffff"  # no font has a glyph for it: what is drawn is the missing glyph
LINE = re.compile(
  r"(?P<codepoints>[0-9A-F]+(?: [0-9A-F]+)*)\s*;\s*(?P<status>[a-z-]+)\s*#"
  r"\s*\S+\s+E\d+\.\d+\s+(?P<name>\S.*)"
)
TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")


class Emoji(NamedTuple):
  """An emoji as Unicode lists it.

  Attributes:
    codepoints: Hexadecimal, one space between them.
    caption: Its name ("red apple").
    group: Its group as a slug ("food-drink").
    subgroup: Its subgroup ("food-fruit").
  """

  codepoints: str
  caption: str
  group: str
  subgroup: str

  @property
  def text(self) -> str:
    """The characters."""
    return "".join(chr(int(code, 16)) for code in self.codepoints.split())

  @property
  def plain_caption(self) -> str:
    """The name without skin tones ("waving hand" of "waving hand: light skin tone")."""
    kept = [part for part in re.split("[:,] ", self.caption) if not TONE.fullmatch(part)]
    return ", ".join(kept)


def parse(text: str) -> tuple[list[Emoji], Counter]:
  """The fully-qualified emoji in the text of Unicode's emoji-test.txt.

  The other lines hold the same emoji with fewer code points, and components (a skin tone by
  itself).

  Args:
    text: Of the file.

  Returns:
    The emoji in the file's order, and the number of lines of each status.

  Raises:
    InputError: A line is not of the file's form, or no emoji is there.

  Source: UTS #51; the form is told in the head of the file.
  """
  found, statuses = [], Counter()
  group = subgroup = ""
  for number, line in enumerate(text.splitlines(), 1):
    if line.startswith("# group: "):
      group = _slug(line.removeprefix("# group: "))
    elif line.startswith("# subgroup: "):
      subgroup = line.removeprefix("# subgroup: ").strip()
    elif line.strip() and not line.startswith("#"):
      match = LINE.fullmatch(line.strip())
      if not match or any(int(code, 16) > 0x10FFFF for code in match["codepoints"].split()):
        raise InputError(
          f"line {number}: {line[:80]!r} is not of the form 'CODES ; STATUS # emoji E1.0 name'"
        )
      statuses[match["status"]] += 1
      if match["status"] == "fully-qualified":
        found.append(Emoji(match["codepoints"], match["name"].strip(), group, subgroup))
  if not found:
    raise InputError("no line has the status fully-qualified: this is not emoji-test.txt")
  return found, statuses


class Font:
  """A font that draws emoji in colour.

  Args:
    path: A TrueType or OpenType file; outlines work too, drawn in black.

  Raises:
    InputError: The file is no font, has no bitmaps of `EM`, or Pillow cannot join sequences.
  """

  def __init__(self, path: pathlib.Path):
    if not features.check("raqm"):
      raise InputError(
        "this Pillow was built without libraqm, which joins the characters of an emoji; the wheels "
        "of pip install pillow have it"
      )
    try:
      self.font = ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
      raise InputError(f"{path} is no font with glyphs of {EM} pixels: {error}") from error
    self.missing = self._layer(NO_CHARACTER)

  def draw(self, text: str, size: int) -> Image.Image | str:
    """A drawing in the middle of a white square, scaled to `size` with Pillow's LANCZOS filter.

    Args:
      text: One emoji.
      size: Side of the result in pixels.

    Returns:
      An RGB image; or, where the font has no drawing of it, why: "not in the font", or "not joined"
      where it would draw the parts side by side.
    """
    if self.font.getlength(text) > 1.01 * max(self.font.getlength(part) for part in text):
      return "not joined"
    layer = self._layer(text)
    if layer.tobytes() == self.missing.tobytes() or layer.getbbox() is None:
      return "not in the font"
    side = max(layer.size)
    sheet = Image.new("RGBA", (side, side), "white")
    sheet.alpha_composite(layer, ((side - layer.width) // 2, (side - layer.height) // 2))
    return sheet.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)

  def _layer(self, text: str) -> Image.Image:
    """The drawing on nothing, RGBA."""
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
  """Draws the emoji of a font into a folder of captioned images, which appears when it is whole.

  Args:
    out: The folder; must not exist.
    size: Side of the images in pixels.
    groups: Slugs of Unicode's groups ("food-drink"); none: all.
    skin_tones: "drop" leaves out emoji whose name tells a skin tone.
    splits: Share of the captions by split. An emoji goes with the other skin tones of it.
    font: The font's file.
    names: Unicode's emoji-test.txt.
    progress: Wraps the emoji to be drawn, for a progress bar.

  Returns:
    What report.json says: what was read, what was left out and why, what was written.

  Raises:
    InputError: A file is not there (with the package that has it) or is another one, an option does
      not exist, or no emoji is left.
    OSError: A file cannot be written.
  """
  out, font, names = pathlib.Path(out), pathlib.Path(font), pathlib.Path(names)
  if isinstance(size, bool) or not isinstance(size, int) or not MIN_SIDE <= size <= MAX_SIZE:
    raise InputError(f"size must be from {MIN_SIDE} to {MAX_SIZE} pixels, got {size!r}")
  if skin_tones not in SKIN_TONES:
    raise unknown("choice for skin tones", skin_tones, SKIN_TONES)
  splits = check_splits(splits)
  if out.exists():
    raise InputError(f"{out} exists; give another folder, or delete it first")
  _check_there(font, names)
  try:
    everything, statuses = parse(names.read_text(encoding="utf-8"))
  except ValueError as error:  # InputError too
    raise InputError(f"{names}: {error}") from error
  for group in groups:
    if group not in (known := {emoji.group for emoji in everything}):
      raise unknown("group of emoji", group, known)

  drawer, left_out, digests = Font(font), Counter(), Counter()
  part = out.with_name(f"{out.name}.unfinished")
  shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
  (part / image_captions.IMAGES).mkdir(parents=True)
  try:
    rows = []
    for emoji in progress(everything):
      if groups and emoji.group not in groups:
        left_out["other groups"] += 1
      elif skin_tones == "drop" and TONE.search(emoji.caption):
        left_out["skin tones"] += 1
      elif isinstance(image := drawer.draw(emoji.text, size), str):
        left_out[image] += 1
      else:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        digests[hashlib.sha256(image.tobytes()).digest()] += 1
        file = f"{image_captions.IMAGES}/{emoji.codepoints.replace(' ', '-')}.png"
        (part / file).write_bytes(stream.getvalue())
        split = split_of(prompt_key(emoji.plain_caption), splits)
        rows.append({"file": file, "split": split, **emoji._asdict()})
    if not rows:
      raise InputError(f"no emoji is left of {len(everything)} ({dict(left_out)})")
    report = {
      "font": {"path": str(font), "name": " ".join(drawer.font.getname()), **_digest(font)},
      "names": {"path": str(names), **_digest(names)},
      "options": {"size": size, "groups": list(groups), "skin_tones": skin_tones, "splits": splits},
      "lines": dict(statuses),
      "left_out": dict(left_out),
      "written": len(rows),
      "same_drawing_as_an_earlier_one": len(rows) - len(digests),
      "by_group": dict(Counter(row["group"] for row in rows)),
      "by_split": {name: sum(row["split"] == name for row in rows) for name in splits},
    }
    _write_table(part, rows, splits)
    text = json.dumps(report, indent=1) + "\n"
    (part / "report.json").write_text(text, encoding="utf-8")
    part.rename(out)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise
  return report


def _write_table(folder: pathlib.Path, rows: list[dict], splits: Iterable[str]) -> None:
  """The table that training reads, and the captions of each split as prompts."""
  with (folder / image_captions.TABLE).open("w", encoding="utf-8", newline="") as stream:
    writer = csv.DictWriter(stream, ["file", "caption", "split", "group", "subgroup", "codepoints"])
    writer.writeheader()
    writer.writerows(rows)
  for split in splits:
    captions = [row["caption"] for row in rows if row["split"] == split]
    text = "".join(caption + "\n" for caption in captions)
    (folder / f"prompts-{split}.txt").write_text(text, encoding="utf-8")


def _check_there(*paths: pathlib.Path) -> None:
  """Raises InputError where a file is absent, with the packages that bring what is absent."""
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
