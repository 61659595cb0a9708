"""Paths of images stay in their folder and are found in other systems' spellings."""

import os
import unicodedata

import pytest

from dmpo_jax.data import images
from dmpo_jax.errors import InputError
from tests.data.sets import encoded, save


def test_a_path_inside_the_folder_is_read(tmp_path):
  (tmp_path / "a.png").write_bytes(encoded(3))
  assert images.load("a.png", tmp_path).encoded == encoded(3)


@pytest.mark.parametrize(
  "name", ["../a.png", "x/../../a.png", "..\\a.png", "/etc/passwd", "", "a\0b"]
)
def test_a_path_that_escapes_its_folder_is_refused(tmp_path, name):
  root = tmp_path / "root"
  root.mkdir()
  (tmp_path / "a.png").write_bytes(encoded())
  with pytest.raises(InputError, match=r"leaves the folder|names no file"):
    images.load(name, root)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
  root = tmp_path / "root"
  root.mkdir()
  (tmp_path / "a.png").write_bytes(encoded())
  (root / "a.png").symlink_to(tmp_path / "a.png")
  with pytest.raises(InputError, match="is a link that leaves"):
    images.load("a.png", root)


def test_links_of_the_hubs_cache_are_followed(tmp_path):
  root = tmp_path / "snapshots" / "revision"
  root.mkdir(parents=True)
  (tmp_path / "blobs").mkdir()
  (tmp_path / "blobs" / "hash").write_bytes(encoded())
  (root / "a.png").symlink_to("../../blobs/hash")
  assert images.load("a.png", root).size == (12, 16)


@pytest.mark.parametrize("name", ["b.png", "x" * 5000, "pipe", "ring"])
def test_a_path_of_no_ordinary_file_is_refused(tmp_path, name):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "ring").symlink_to("ring")
  with pytest.raises(InputError, match=r"no file|cannot be opened"):
    images.load(name, tmp_path)


@pytest.fixture
def root(tmp_path):
  """A folder with one image, which no spelling below names exactly."""
  save(tmp_path / "root" / "sub" / unicodedata.normalize("NFD", "é.PNG"), 3)
  return tmp_path / "root"


SPELLINGS = ["sub/é.PNG", "sub/é.png", "./sub//é.Png", "sub\\é.png", "sub/../sub/é.png"]


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_another_systems_spelling_of_a_path_names_the_file(root, name, form):
  assert images.load(unicodedata.normalize(form, name), root).encoded == encoded(3)


def test_an_absolute_path_inside_the_folder_is_read(root):
  (root / "a.png").write_bytes(encoded(4))
  assert images.load(f"{root}/a.png", root).encoded == encoded(4)


def test_an_absolute_path_by_a_link_to_the_folder_is_read(root, tmp_path):
  (tmp_path / "link").symlink_to(root)
  (root / "a.png").write_bytes(encoded(4))
  assert images.load(f"{root}/a.png", tmp_path / "link").encoded == encoded(4)
  assert images.load(f"{tmp_path}/link/a.png", tmp_path / "link").encoded == encoded(4)


def test_a_suffix_that_fits_two_files_names_neither(root):
  (root / "a.PNG").write_bytes(encoded(4))
  (root / "a.Png").write_bytes(encoded(5))
  with pytest.raises(InputError, match="there is no file"):
    images.load("a.png", root)


def test_the_name_itself_must_agree_in_case(root):
  (root / "A.png").write_bytes(encoded(4))
  with pytest.raises(InputError, match="there is no file"):
    images.load("a.png", root)


def test_a_linked_folder_of_images_is_refused_with_the_option_that_reads_it(root, tmp_path):
  save(tmp_path / "big" / "images" / "a.png", 4)
  (root / "images").symlink_to(tmp_path / "big" / "images")
  with pytest.raises(InputError, match=rf"leaves the folder .*; --images {tmp_path}/big reads"):
    images.load("images/a.png", root)
  assert images.load("images/a.png", tmp_path / "big").encoded == encoded(4)


def test_a_linked_folder_of_another_name_is_refused_with_the_option_to_use(root, tmp_path):
  save(tmp_path / "big" / "a.png", 4)
  (root / "images").symlink_to(tmp_path / "big")
  with pytest.raises(InputError, match="give the folder that it leads to by --images"):
    images.load("images/a.png", root)
