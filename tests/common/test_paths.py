"""Names of files: local paths and URLs of buckets."""

import argparse
import os
import pathlib
import pickle

import pytest

from dmpo_jax.common import paths
from dmpo_jax.errors import InputError


@pytest.mark.parametrize("text", ["run", "/data/run", "a:b/c", "C:/data", "", "~/run"])
def test_a_text_without_a_scheme_is_a_local_path(text):
  assert paths.parse(text) == pathlib.Path(text)
  assert paths.parse(pathlib.Path(text)) == pathlib.Path(text)


def test_a_url_of_a_bucket_has_the_names_of_a_path():
  path = paths.parse("gs://bucket/runs/one.json")
  assert (path.name, path.stem, path.suffix) == ("one.json", "one", ".json")
  assert path.parent == paths.parse("gs://bucket/runs/")
  assert str(path.with_name("two") / "a/b") == "gs://bucket/runs/two/a/b"
  assert path.relative_to(path.parents[-1]).as_posix() == "runs/one.json"
  assert [str(parent) for parent in path.parents] == ["gs://bucket/runs", "gs://bucket"]
  assert pickle.loads(pickle.dumps(path)) == path
  assert paths.parse(path) is path


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("s4://bucket/run", "s4:// is not supported; expected a local path, gs://"),
    ("file:///run", "file:// is not supported"),
    ("gs:/bucket/run", "one slash"),
    ("gs://", "names no bucket"),
    ("gs://My_Bucket/run", "no name of a bucket"),
    ("gs://bucket//run", "has the part ''"),
    ("gs://bucket/../run", "has the part '..'"),
    ("gs://bucket/run#1", "has the character '#'"),
    ("gs://bucket/run[1]", r"has the character '\['"),
    ("gs://bucket/a\nb", r"has the character '\\n'"),
    ("gs://bucket/" + "x" * 1000, "too long"),
  ],
)
def test_a_url_that_names_nothing_is_refused_in_one_line(url, message):
  with pytest.raises(InputError, match=message) as error:
    paths.parse(url)
  assert "\n" not in str(error.value)


def test_a_url_in_a_pathlib_path_is_no_local_folder():
  with pytest.raises(InputError, match="one slash after gs"):
    paths.parse(pathlib.Path("gs://bucket/run"))


def test_an_option_of_a_command_shows_the_reason():
  with pytest.raises(argparse.ArgumentTypeError, match="s4:// is not supported"):
    paths.argument("s4://bucket")


def test_nothing_leaves_the_folder_of_a_bucket():
  folder = paths.parse("gs://bucket/run")
  for name in ("../other", "/etc/passwd", "a/../../b", "a\nb"):
    with pytest.raises(InputError):
      folder / name


def test_a_local_library_refuses_the_path_of_a_bucket():
  with pytest.raises(TypeError):
    os.fspath(paths.parse("gs://bucket/run"))
  with pytest.raises(TypeError):
    pathlib.Path(paths.parse("gs://bucket/run"))


def test_an_option_that_must_be_local_refuses_a_bucket():
  assert paths.local_argument("pairs") == pathlib.Path("pairs")
  with pytest.raises(argparse.ArgumentTypeError, match="gs://bucket/pairs lies in a bucket"):
    paths.local_argument("gs://bucket/pairs")


def test_checkpoints_on_s3_are_refused_before_a_run():
  with pytest.raises(InputError, match="orbax writes checkpoints to local folders and gs:// only"):
    paths.check_holds_checkpoints(paths.parse("s3://bucket/run"))
  paths.check_holds_checkpoints(paths.parse("gs://bucket/run"))
  paths.check_holds_checkpoints(pathlib.Path("run"))
