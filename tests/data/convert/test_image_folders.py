"""Three folders as a table: every file is read, refused by name, or counted."""

import codecs
import pathlib
import unicodedata

import pytest

from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.tables import image_folders
from dmpo_jax.errors import InputError
from tests.data import sets
from tests.data.convert.conversions import all_pairs, bad_rows

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture
def root(tmp_path):
  """One pair, named 1."""
  return put(tmp_path / "my", "1.png", "1.png", "1.txt")


def put(root: pathlib.Path, winner: str, loser: str, caption: str, text="a fox") -> pathlib.Path:
  for path in (f"winner/{winner}", f"loser/{loser}"):
    sets.save(root / "kept.png", len(path))
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "kept.png").rename(root / path)
  (root / "captions").mkdir(exist_ok=True)
  data = text if isinstance(text, bytes) else text.encode()
  (root / "captions" / caption).write_bytes(data)
  return root


def run(root: pathlib.Path, **options) -> dict:
  source = source_reader.find("custom", root)
  return convert.convert(source, root.parent / "out", Options(**options))


def prompts(root: pathlib.Path) -> list[str]:
  return [pair.prompt for pair in all_pairs(root.parent / "out")]


MARKS = {
  "utf-8": codecs.BOM_UTF8,
  "utf-16-le": codecs.BOM_UTF16_LE,
  "utf-16-be": codecs.BOM_UTF16_BE,
}


@pytest.mark.parametrize("encoding", MARKS)
def test_a_byte_order_mark_is_no_part_of_a_caption(root, encoding):
  text = "a fox\u2028in snow\r\n"
  put(root, "2.png", "2.png", "2.txt", MARKS[encoding] + text.encode(encoding))
  run(root)
  assert prompts(root) == ["a fox", "a fox\u2028in snow"]


def test_captions_with_and_without_a_mark_are_one_prompt(root):
  put(root, "2.png", "2.png", "2.txt", codecs.BOM_UTF8 + b"a fox")
  assert run(root)["splits"]["train"] == {"pairs": 2, "prompts": 1}


@pytest.mark.parametrize("text", [b"a\0 \0f\0o\0x\0", b"\xff\xfea", b"f\xfcr"])
def test_a_caption_in_an_encoding_that_is_not_known_is_a_bad_row(root, text):
  put(root, "2.png", "2.png", "2.txt", text)
  with pytest.raises(InputError, match=r"row 1: .*2\.txt.*save it as UTF-8"):
    run(root)


@pytest.mark.parametrize(
  ("files", "problem"),
  [
    (["winner/2.tif", "loser/2.tif", "captions/2.txt"], "winner/2.tif': not an image in one of"),
    (["winner/2.heic", "loser/2.png", "captions/2.txt"], "winner/2.heic': not an image in one of"),
    (["winner/2.png"], "loser/ must hold one image '2', found none for 'winner/2.png'"),
    (["loser/2.png"], "winner/ must hold one image '2', found none for 'loser/2.png'"),
    (["captions/2.txt"], "winner/ must hold one image '2', found none for 'captions/2.txt'"),
    (["winner/2.png", "loser/2.png"], "captions/ must hold one text '2', found none"),
    (["winner/1.jpg"], "winner/ must hold one image '1', found '1.jpg', '1.png'"),
    (["loser/1.PNG"], "loser/ must hold one image '1', found '1.PNG', '1.png'"),
    (["captions/1.caption"], "captions/ must hold one text '1', found '1.caption', '1.txt'"),
  ],
)
def test_a_name_that_lacks_a_file_or_has_two_is_a_bad_row(root, files, problem):
  put(root, "0.png", "0.png", "0.txt")
  for file in files:
    (root / file).write_bytes(b"II*\0" if file.endswith(("tif", "heic")) else b"x")
  with pytest.raises(InputError) as error:
    run(root)
  assert problem in str(error.value)
  assert "--on-bad-row=skip" in str(error.value)
  report = run(root, on_bad_row="skip")
  assert report["found"]["bad_rows"] + report["found"]["undecodable"] == 1
  assert len(bad_rows(root.parent / "out")) == 1


@pytest.mark.parametrize(
  "names",
  [
    ("2.PNG", "2.png", "2.txt"),
    ("2.png", "2.PNG", "2.txt"),
    ("2.JPG", "2.Jpeg", "2.TXT"),
    ("2.png", "2.webp", "2.caption"),
    ("a.b.1.png", "a.b.1.png", "a.b.1.txt"),
    ("a b%20#.png", "a b%20#.png", "a b%20#.txt"),
    (NFD + ".png", NFC + ".png", NFC + ".txt"),
    (NFC + ".png", NFD + ".png", NFD + ".txt"),
    (NFD + ".png", NFD + ".png", NFC + ".txt"),
  ],
)
def test_names_of_other_systems_are_pairs(root, names):
  put(root, *names)
  assert run(root)["kept"] == 2


def test_hidden_files_folders_and_other_kinds_are_passed_over_and_counted(root, capsys):
  for file in ("winner/._1.png", "loser/._1.png", "captions/._1.txt", "winner/.DS_Store"):
    (root / file).write_bytes(b"\0\5\x16\7")
  for file in ("winner/Thumbs.db", "loser/notes.json"):
    (root / file).write_bytes(b"x")
  (root / "winner/x.png").mkdir()
  (root / "winner/.ipynb_checkpoints").mkdir()
  report = run(root)
  assert (report["kept"], report["found"]["passed_over"]) == (1, 8)
  assert "winner/x.png/" in report["passed_over"]
  assert "loser/notes.json" in report["passed_over"]


def test_a_folder_that_is_a_link_is_refused_before_anything_is_written(root):
  (root / "winner").rename(root.parent / "elsewhere")
  (root / "winner").symlink_to(root.parent / "elsewhere")
  with pytest.raises(InputError, match=r"'winner' is a link that leaves .*copy its files into"):
    run(root)
  assert not (root.parent / "out").exists()


def test_folders_without_an_image_are_named(root):
  (root / "winner/1.png").unlink()
  with pytest.raises(InputError, match="winner holds no image"):
    run(root)


def test_a_file_that_appears_between_two_chunks_is_another_conversion(root):
  source = source_reader.find("custom", root)
  (before,) = source_reader.plan(source, rows=1)
  put(root, "2.png", "2.png", "2.txt")
  (after,) = source_reader.plan(source, rows=1)
  assert before.fingerprint != after.fingerprint
  assert image_folders.plan(root, "winner", (), optional=(), rows=1) == after
