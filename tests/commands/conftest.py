"""A tiny pipeline, and the directory of a run that was killed while it trained that pipeline."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dmpo_jax import interop
from dmpo_jax.commands.main import main
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.parallel.array_checksums import tree_checksum
from dmpo_jax.training import config as configs
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.resume import position, to_saved
from dmpo_jax.training.run import MUTABLE_KEYS
from dmpo_jax.training.run_directory import FORMAT
from dmpo_jax.training.step import State
from tests.interop import tiny


@pytest.fixture(scope="session")
def start(tmp_path_factory):
  """A StableDiffusionPipeline's folder, written by torch."""
  return tiny.write_tiny_sd(tmp_path_factory.mktemp("start") / "pipeline")


@dataclasses.dataclass(frozen=True)
class Run:
  """A work directory with checkpoints, and the weights in the last one."""

  workdir: pathlib.Path
  start: pathlib.Path
  last: dict
  ema: dict


@pytest.fixture(scope="session")
def run(start, tmp_path_factory):
  """Run with EMA, checkpoints at steps 2 and 4, and no pipeline/ yet."""
  folder = shutil.copytree(start, tmp_path_factory.mktemp("small") / "pipeline")
  blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
  tiny.make_unet(**tiny.LATENTS, **blocks, block_out_channels=(8,)).save_pretrained(folder / "unet")
  return make_run(folder, tmp_path_factory.mktemp("run"), steps=(2, 4), ema=True)


@pytest.fixture(scope="session")
def run_without_ema(run, tmp_path_factory):
  """Another run from the same pipeline, without EMA."""
  return make_run(run.start, tmp_path_factory.mktemp("plain"), steps=(1,), ema=False)


def make_run(start, workdir, *, steps, ema):
  """Writes the files of a run that was killed after its last checkpoint."""
  config = configs.default()
  config.pipeline = str(start)
  config.data.name, config.loss.name = "digits", "dmpo"
  config.loss.beta, config.loss.alpha = 100.0, 0.01
  config.optimizer.learning_rate = 1e-4
  config.batch_size = 4
  config.ema_decay = 0.9 if ema else 0.0
  params = interop.load_pipeline(start).params
  base_weights, unet = tree_checksum(params), params["unet"]
  fixed = {key: value for key, value in config.to_dict().items() if key not in MUTABLE_KEYS}
  run = {"format": FORMAT, "config": fixed, "base_weights": base_weights}
  write_atomically(workdir / "run.json", json.dumps(run))
  checkpoints = Checkpoints(workdir / "checkpoints", keep=None)
  for step in steps:
    last, averaged = {"unet": moved(unet, 0.01 * step)}, {"unet": moved(unet, 0.005 * step)}
    optimizer = make_optimizer(config.optimizer)
    state = State(np.int32(step), last, optimizer.init(last), averaged if ema else None)
    checkpoints.save(
      step, jax.tree.map(np.asarray, to_saved(state)), position(config, base_weights, step)
    )
  checkpoints.close()
  return Run(workdir, start, last, averaged)


def moved(params, scale):
  """Other parameters: those of the way down a little off."""

  def move(path, leaf):
    off = "down_blocks" in jax.tree_util.keystr(path)
    return leaf * np.float32(1 + scale) if off else leaf

  return jax.tree_util.tree_map_with_path(move, params)


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
  """Exports the run once with each set of options."""

  @functools.cache
  def export(*options):
    out = tmp_path_factory.mktemp("exported") / "pipeline"
    assert main(["export", "--workdir", str(run.workdir), "--out", str(out), *options]) == 0
    return out

  return export


@pytest.fixture
def inspect(capsys):
  """Runs the command; returns its JSON."""

  def call(*arguments):
    capsys.readouterr()
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)

  return call


@pytest.fixture
def tables(capsys):
  """Runs the command; returns its tables."""

  def call(*arguments):
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out

  return call


@pytest.fixture
def refused(capsys):
  """Runs the command; returns its error message."""

  def call(*arguments):
    assert main(["inspect", *map(str, arguments)]) == 2
    return capsys.readouterr().err

  return call


@pytest.fixture
def copy(start, tmp_path):
  """A copy of the pipeline to change."""
  return shutil.copytree(start, tmp_path / "copy")
