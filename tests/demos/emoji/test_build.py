"""Captioned emoji: Unicode's names, a font's drawings."""

import contextlib
import csv
import json

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.demos.emoji import build as emoji
from dmpo_jax.errors import InputError
from tests.demos.emoji import font as emoji_font


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Paths of the tests' font and names."""
  return emoji_font.write(tmp_path_factory.mktemp("font"))


@pytest.fixture(scope="module")
def built(made, tmp_path_factory):
  """A folder of all emoji of the tests' font, and its report."""
  font, names = made
  out = tmp_path_factory.mktemp("built") / "emoji"
  splits = {"train": 0.5, "test": 0.5}
  return out, emoji.build(out, size=20, splits=splits, font=font, names=names)


def rows_of(folder):
  with (folder / "captions.csv").open(encoding="utf-8", newline="") as stream:
    return list(csv.DictReader(stream))


def test_names_and_groups_are_read_and_other_lines_are_counted():
  emojis, statuses = emoji.parse(emoji_font.NAMES)
  assert emojis[0] == emoji.Emoji("1F34E", "red apple", "food-drink", "food-fruit")
  assert emojis[4].text == "\U0001f44b\U0001f3fb"
  assert statuses == {"fully-qualified": 6, "component": 1}


def test_a_caption_without_its_skin_tones_keeps_the_rest():
  captions = {
    "waving hand: light skin tone": "waving hand",
    "woman: medium-dark skin tone, red hair": "woman, red hair",
    "kiss: man, man, dark skin tone, light skin tone": "kiss, man, man",
    "flag: Chad": "flag, Chad",
  }
  for caption, plain in captions.items():
    assert emoji.Emoji("1F44B", caption, "", "").plain_caption == plain


@pytest.mark.parametrize(
  "line", ["1F34E fully-qualified # x E0.6 apple", "XYZ ; fully-qualified # x E0.6 apple"]
)
def test_a_line_of_another_form_is_named(line):
  with pytest.raises(InputError, match=r"line 2: .* is not of the form"):
    emoji.parse(f"# group: Food & Drink\n{line}\n")


@pytest.mark.parametrize("codes", ["FFFFFF", "1F34E D83D", "1" * 5000, " ".join(["1F34E"] * 500)])
def test_codes_that_are_no_characters_are_refused(codes):
  with pytest.raises(InputError, match="line 1"):
    emoji.parse(f"{codes} ; fully-qualified # x E0.6 nothing\n")


def test_a_font_that_is_cut_short_is_one_line(made, tmp_path):
  content = made[0].read_bytes()
  for length in range(50, len(content), len(content) // 15):
    font = tmp_path / "cut.ttf"
    font.write_bytes(content[:length])
    with contextlib.suppress(InputError):  # some of them still have the drawings
      emoji.build(tmp_path / f"out{length}", size=32, font=font, names=made[1])


def test_a_folder_beside_the_new_one_is_left_alone(made, tmp_path):
  (tmp_path / "out.unfinished").mkdir()
  (tmp_path / "out.unfinished" / "mine").write_text("mine")
  emoji.build(tmp_path / "out", size=32, font=made[0], names=made[1])
  assert (tmp_path / "out.unfinished" / "mine").read_text() == "mine"


def test_a_text_without_emoji_is_refused():
  with pytest.raises(InputError, match=r"expected Unicode.s emoji-test\.txt"):
    emoji.parse("# a list of something else\n")


def test_a_drawing_is_centred_on_white(built):
  folder, _ = built
  picture = np.asarray(Image.open(folder / "images" / "1F34E.png"))
  assert picture.shape == (20, 20, 3)
  level = picture[..., 0].astype(int)
  np.testing.assert_allclose(level, level[:, ::-1], atol=40)  # of hinting
  assert level[:, 0].min() > 250  # white beside the bar
  assert level[:, 9:11].max() < 120  # the bar's middle


def test_a_joined_sequence_has_its_own_drawing(built):
  hand, joined = (
    np.asarray(Image.open(built[0] / "images" / f"{name}.png")).astype(int)
    for name in ("1F44B", "1F44B-1F3FB")
  )
  assert not np.array_equal(hand, joined)
  assert [row["codepoints"] for row in rows_of(built[0])].count("1F44B 1F3FB") == 1


def test_emoji_that_the_font_lacks_are_counted_by_reason(built):
  folder, report = built
  assert report["left_out"] == {"not in the font": 1, "not joined": 1}
  captions = {row["caption"] for row in rows_of(folder)}
  assert captions == {"red apple", "green apple", "waving hand", "waving hand: light skin tone"}
  assert report["written"] == 4
  assert json.loads((folder / "report.json").read_text())["left_out"] == report["left_out"]


def test_skin_tones_of_an_emoji_share_its_split(built):
  split = {row["caption"]: row["split"] for row in rows_of(built[0])}
  assert split["waving hand"] == split["waving hand: light skin tone"]


def test_prompts_are_the_captions_of_each_split(built):
  for name in ("train", "test"):
    prompts = (built[0] / f"prompts-{name}.txt").read_text().splitlines()
    assert prompts == [row["caption"] for row in rows_of(built[0]) if row["split"] == name]


def test_equal_options_give_equal_files(made, built, tmp_path):
  font, names = made
  splits = {"train": 0.5, "test": 0.5}
  emoji.build(tmp_path / "again", size=20, splits=splits, font=font, names=names)
  for path in built[0].rglob("*.*"):
    assert (tmp_path / "again" / path.relative_to(built[0])).read_bytes() == path.read_bytes()


def test_groups_and_skin_tones_can_be_left_out(made, tmp_path):
  font, names = made
  report = emoji.build(
    tmp_path / "out", groups=("people-body",), skin_tones="drop", font=font, names=names
  )
  assert report["left_out"] == {"other groups": 3, "skin tones": 2}
  assert [row["caption"] for row in rows_of(tmp_path / "out")] == ["waving hand"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"size": 4}, "size must be from 8 to 1024 pixels, got 4"),
    ({"groups": ("food",)}, "unknown group of emoji 'food'; did you mean 'food-drink'"),
    ({"skin_tones": "some"}, "unknown choice for skin tones 'some'"),
    ({"splits": {"train": 0.5}}, "sum to 0.5"),
  ],
)
def test_an_unknown_option_is_refused(made, tmp_path, options, message):
  font, names = made
  with pytest.raises(InputError, match=message):
    emoji.build(tmp_path / "out", font=font, names=names, **options)
  assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_changed(made, tmp_path):
  font, names = made
  with pytest.raises(InputError, match="exists; give another folder"):
    emoji.build(tmp_path, font=font, names=names)


def test_missing_files_of_debian_are_reported_with_their_packages(monkeypatch, tmp_path):
  font, names = tmp_path / "NotoColorEmoji.ttf", tmp_path / "emoji-test.txt"
  monkeypatch.setattr(emoji, "PACKAGES", {font: "fonts-noto-color-emoji", names: "unicode-data"})
  with pytest.raises(InputError, match="apt-get install fonts-noto-color-emoji unicode-data"):
    emoji.build(tmp_path / "out", font=font, names=names)
  font.touch()
  with pytest.raises(InputError, match="apt-get install unicode-data"):
    emoji.build(tmp_path / "out", font=font, names=names)


def test_a_missing_custom_font_names_no_package(made, tmp_path):
  with pytest.raises(InputError, match=r"there is no file .*other.ttf$"):
    emoji.build(tmp_path / "out", font=tmp_path / "other.ttf", names=made[1])


def test_a_file_that_is_not_a_font_is_refused(made, tmp_path):
  with pytest.raises(InputError, match=r"emoji-test.txt is a damaged font: .*; give one with"):
    emoji.build(tmp_path / "out", font=made[1], names=made[1])
  assert not list(tmp_path.iterdir())


def test_names_that_are_not_text_are_refused(made, tmp_path):
  with pytest.raises(InputError, match=r"three\.ttf, line 1: byte"):
    emoji.build(tmp_path / "out", font=made[0], names=made[0])


def test_a_pillow_that_cannot_join_is_refused(made, monkeypatch):
  monkeypatch.setattr(emoji.features, "check", lambda feature: False)
  with pytest.raises(InputError, match="without libraqm"):
    emoji.Font(made[0])


@pytest.mark.skipif(
  not (emoji.FONT.is_file() and emoji.NAMES.is_file()),
  reason="Debian's fonts-noto-color-emoji and unicode-data are not installed",
)
def test_debians_font_has_every_food_in_colour(tmp_path):
  report = emoji.build(tmp_path / "out", size=16, groups=("food-drink",))
  assert report["left_out"].keys() == {"other groups"}
  assert report["written"] > 100
  row = next(row for row in rows_of(tmp_path / "out") if row["caption"] == "red apple")
  red, green, blue = np.asarray(Image.open(tmp_path / "out" / row["file"]))[8, 8]
  assert red > 180 > 120 > max(green, blue)
