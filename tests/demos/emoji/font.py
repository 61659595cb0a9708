"""A font of three emoji and a list of names, small enough to be made by a test."""

import pathlib

from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

NAMES = """\
# emoji-test.txt
# group: Food & Drink
# subgroup: food-fruit
1F34E ; fully-qualified # \U0001f34e E0.6 red apple
1F34F ; fully-qualified # \U0001f34f E0.6 green apple
1F350 ; fully-qualified # \U0001f350 E1.0 pear
# group: People & Body
# subgroup: hand
1F44B ; fully-qualified # \U0001f44b E0.6 waving hand
1F44B 1F3FB ; fully-qualified # \U0001f44b\U0001f3fb E1.0 waving hand: light skin tone
1F44B 1F3FF ; fully-qualified # \U0001f44b\U0001f3ff E1.0 waving hand: dark skin tone
# group: Component
# subgroup: skin-tone
1F3FB ; component # \U0001f3fb E1.0 light skin tone
# Status Counts
#EOF
"""
# Apples are a tall and a wide bar, the hand a square, alone and with the light tone; the dark tone
# is not joined to the hand, and there is no pear.
BARS = {
  "apple": (400, 0, 600, 1000),
  "green": (0, 400, 1000, 600),
  "hand": (200, 200, 800, 800),
  "tone": (0, 0, 1000, 1000),
  "dark": (0, 0, 1000, 1000),
  "light_hand": (100, 100, 900, 900),
}
CHARACTERS = {
  0x1F34E: "apple",
  0x1F34F: "green",
  0x1F44B: "hand",
  0x1F3FB: "tone",
  0x1F3FF: "dark",
}


def write(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes font and names; returns their paths."""
  font = FontBuilder(1000, isTTF=True)
  font.setupGlyphOrder([".notdef", *BARS])
  font.setupCharacterMap(CHARACTERS)
  glyphs = {".notdef": _bar(0, 0, 10, 10)} | {name: _bar(*bar) for name, bar in BARS.items()}
  font.setupGlyf(glyphs)
  left = {name: bar[0] for name, bar in BARS.items()} | {".notdef": 0}
  font.setupHorizontalMetrics({name: (1000, left[name]) for name in glyphs})
  font.setupHorizontalHeader(ascent=1000, descent=0)
  font.setupNameTable({"familyName": "Three", "styleName": "Regular"})
  font.setupOS2(sTypoAscender=1000, sTypoDescender=0, usWinAscent=1000, usWinDescent=0)
  font.setupPost()
  rule = "feature ccmp { sub hand tone by light_hand; } ccmp;"
  addOpenTypeFeaturesFromString(font.font, rule)
  folder.mkdir(parents=True, exist_ok=True)
  font.save(folder / "three.ttf")
  (folder / "emoji-test.txt").write_text(NAMES, encoding="utf-8")
  return folder / "three.ttf", folder / "emoji-test.txt"


def _bar(left: int, bottom: int, right: int, top: int):
  pen = TTGlyphPen(None)
  pen.moveTo((left, bottom))
  for point in ((left, top), (right, top), (right, bottom)):
    pen.lineTo(point)
  pen.closePath()
  return pen.glyph()
