"""Render emoji with captions from a font, to train a small text-to-image model on.

  sudo apt-get install fonts-noto-color-emoji unicode-data
  dmpo-jax data emoji --out data/emoji

Every fully-qualified emoji in Unicode's emoji-test.txt is rendered on white, including flags,
keycaps, skin tones and joined sequences (families, professions), with its name as the caption. The
folder has captions.csv (file, caption, split, group, subgroup, codepoints), images/, the captions
of each split as prompts-SPLIT.txt, and report.json, which counts what was left out and why.
Splits are by caption without skin tone. Training reads it with

  config.data = {"name": "image_captions", "folder": "data/emoji", "size": 32}
"""

import argparse

from dmpo_jax.common import paths

# The defaults are repeated here, because to import them takes as long as to import numpy.
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
NAMES = "/usr/share/unicode/emoji/emoji-test.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--out", required=True, type=paths.local_argument, help="folder to write")
  parser.add_argument("--size", type=int, default=64, help="side in pixels (default: 64)")
  parser.add_argument(
    "--groups",
    nargs="+",
    default=(),
    metavar="GROUP",
    help="groups of Unicode's list: smileys-emotion, people-body, animals-nature, food-drink, "
    "travel-places, activities, objects, symbols, flags (default: all)",
  )
  parser.add_argument(
    "--skin-tones",
    choices=("keep", "drop"),
    default="keep",
    help="emoji with a skin tone, half of all (default: keep)",
  )
  parser.add_argument(
    "--splits",
    default="train=0.9,test=0.1",
    help="fraction of the captions by split (default: train=0.9,test=0.1)",
  )
  parser.add_argument("--font", type=paths.local_argument, default=FONT, help=f"(default: {FONT})")
  parser.add_argument(
    "--names", type=paths.local_argument, default=NAMES, help=f"(default: {NAMES})"
  )


def run(options: argparse.Namespace) -> None:
  """Renders emoji and prints how many were rendered and left out."""
  from tqdm import tqdm

  from dmpo_jax.commands.data.convert import read_splits
  from dmpo_jax.demos.emoji import build as emoji

  report = emoji.build(
    options.out,
    size=options.size,
    groups=options.groups,
    skin_tones=options.skin_tones,
    splits=read_splits(options.splits),
    font=options.font,
    names=options.names,
    progress=lambda items: tqdm(items, desc="emoji", unit="emoji"),
  )
  lines = report["lines"]
  print(f"{lines['fully-qualified']} emoji in {options.names}")
  for status in sorted(set(lines) - {"fully-qualified"}):
    print(f"  {lines[status]} lines more are {status}: other spellings, or parts of emoji")
  for reason, count in report["left_out"].items():
    print(f"  {count} left out: {reason}")
  same = report["same_drawing_as_an_earlier_one"]
  print(f"{report['written']} drawn" + (f", {same} of them like an earlier one" if same else ""))
  print("splits: " + ", ".join(f"{name} {n}" for name, n in report["by_split"].items()))
  print(f"images with captions in {options.out}")
