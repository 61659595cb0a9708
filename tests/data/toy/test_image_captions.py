"""Images of a folder with captions, read into memory."""

import numpy as np
import pytest
from PIL import Image

from dmpo_jax import data
from dmpo_jax.data.toy import image_captions
from dmpo_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
  """A black square, a white tall image with a red middle, and a green square."""
  (tmp_path / "images").mkdir()
  Image.new("RGB", (8, 8), "black").save(tmp_path / "images/a.png")
  tall = Image.new("RGB", (8, 16), "white")
  tall.paste("red", (0, 4, 8, 12))
  tall.save(tmp_path / "images/b.png")
  Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "images/c.png")
  lines = ["file,caption,split", 'images/a.png,"night, at sea",train']
  lines += ["images/b.png,a poppy,train", "images/c.png,a lawn,test"]
  write(tmp_path, lines)
  return tmp_path


def write(folder, lines):
  (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def test_a_split_is_read_with_its_captions_and_rows_as_ids(folder):
  examples = image_captions.load(folder, size=8, split="train")
  assert examples.captions == ["night, at sea", "a poppy"]
  np.testing.assert_array_equal(examples.ids, [0, 1])
  assert examples.images.shape == (2, 1, 8, 8, 3)
  np.testing.assert_array_equal(examples.images[0], -1)
  np.testing.assert_array_equal(image_captions.load(folder, size=8, split="test").ids, [2])


def test_an_image_that_is_not_square_is_cropped_at_the_center(folder):
  examples = image_captions.load(folder, size=8, split="train")
  np.testing.assert_array_equal(examples.images[1], np.broadcast_to([1.0, -1, -1], (1, 8, 8, 3)))


def test_without_a_column_split_all_images_are_of_the_training_split(folder):
  write(folder, ["caption,file", "a lawn,images/c.png"])
  examples = image_captions.load(folder, size=4, split="train")
  np.testing.assert_array_equal(examples.images[0, 0, 0, 0], [-1, 1, -1])


def test_a_table_of_a_spreadsheet_is_read_as_a_plain_one(folder):
  text = ",file,caption,note,note\r\n0,images/a.PNG,\ufeffa black square,x,y\r\n"
  (folder / "captions.csv").write_bytes(("\ufeff" + text).encode("utf-16-le"))
  assert image_captions.load(folder, size=8, split="train").captions == ["a black square"]


def test_a_config_can_name_the_data_set(folder):
  examples = data.DATASETS["image_captions"](folder=str(folder), size=8)
  assert len(examples) == 2
  assert examples.fingerprint() == image_captions.load(folder, size=8, split="train").fingerprint()


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (["file,split", "images/a.png,train"], "lacks the column caption"),
    (["file,caption", "images/a.png"], "row 0: the row has 1 fields, the header"),
    (["file,caption", "images/a.png,x", "images/c.png,"], "row 1: the caption is empty"),
    (["file,caption", "images/d.png,x"], "row 0: there is no file 'images/d.png'"),
    (["file,caption", "../a.png,x"], "row 0: the path '../a.png' leaves the folder"),
    (["file,caption", "captions.csv,x"], "row 0: .*not an image"),
    (["file,caption"], "holds no row"),
  ],
)
def test_an_invalid_table_is_refused(folder, lines, message):
  write(folder, lines)
  with pytest.raises(InputError, match=message):
    image_captions.load(folder, size=8, split="train")


def test_the_error_of_an_unknown_split_names_the_known_ones(folder):
  with pytest.raises(InputError, match=r"unknown split .* 'tests'; did you mean 'test'"):
    image_captions.load(folder, size=8, split="tests")


def test_a_folder_without_the_table_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"there is no table .*captions\.csv"):
    image_captions.load(tmp_path, size=8, split="train")
