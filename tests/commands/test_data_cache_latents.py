"""The command `dmpo-jax data cache-latents`."""

import argparse

import pytest

from dmpo_jax.commands.data import cache_latents
from dmpo_jax.commands.main import main
from dmpo_jax.data import CachedLatents
from dmpo_jax.data.convert import convert, source_reader
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.latents import options as cache_options
from tests.data import sets
from tests.interop import tiny


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Five converted pairs."""
  root = tmp_path_factory.mktemp("own")
  lines = ["prompt,image_0,image_1,label_0", *(f"the one,{i}.png,{i + 1}.png,1" for i in range(5))]
  table = sets.custom(root / "source", lines, images=6)
  convert.convert(source_reader.find("custom", table), root / "out", Options())
  return root / "out"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  return tiny.write_tiny_sd(tmp_path_factory.mktemp("pipeline") / "sd")


def test_a_folder_is_cached_by_one_command_on_any_number_of_hosts(
  pairs, pipeline, tmp_path, capsys
):
  out = tmp_path / "out"
  line = ["data", "cache-latents", str(pairs), "--pipeline", str(pipeline), "--out", str(out)]
  line += ["--size=16", "--batch-size=1", "--pairs-per-shard=2", "--hosts=2"]
  assert main([*line, "--host=1"]) == 0
  assert "this host is done; 2 shards of other hosts are missing" in capsys.readouterr().out
  assert main([*line, "--host=0"]) == 0
  text = capsys.readouterr().out
  assert "cached latents of 5 pairs of split 'train', 1 augmentations each, and 3 captions" in text
  assert "bytes per pair" in text
  assert "mean: rms " in text
  assert len(CachedLatents(folder=str(out))) == 5


def test_the_commands_defaults_are_those_of_the_options():
  parser = argparse.ArgumentParser()
  cache_latents.add_arguments(parser)
  values = vars(parser.parse_args(["x", "--pipeline=y", "--out=z"]))
  values["embeddings"] = values["text"] == "embeddings"
  default = cache_options.Options()._asdict()
  assert {name: values[name] for name in default} == default


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--pipeline=absent"], "absent"),
    (["--size=0"], "size must be a whole number"),
    (["--host=2", "--hosts=2"], "host 2 of 2"),
    (["--hosts=0"], "host 0 of 0"),
    (["--augmentations=1000000000"], "augmentations must be from 1 to 10,000"),
    (["--out=\udcff"], "the path of the output folder is not valid UTF-8"),
    (["--distributed", "--hosts=2"], "leave --host and --hosts out"),
    (["--split=test"], "unknown split"),
  ],
)
def test_invalid_input_is_one_message_and_status_two(
  pairs, pipeline, tmp_path, capsys, arguments, message
):
  line = [
    "data",
    "cache-latents",
    str(pairs),
    f"--pipeline={pipeline}",
    f"--out={tmp_path / 'out'}",
  ]
  assert main([*line, "--text=tokens", *arguments]) == 2
  assert message in capsys.readouterr().err


def test_the_former_command_names_the_new_one(capsys):
  assert main(["data", "encode", "pairs", "--pipeline=x", "--out=y"]) == 2
  assert "`dmpo-jax data cache-latents` now" in capsys.readouterr().err
