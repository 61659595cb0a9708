"""Runs that train LoRAs: parameters, files, resume and errors."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors

from dmpo_jax import interop, pipelines
from dmpo_jax.commands.main import main
from dmpo_jax.models import trees
from dmpo_jax.parallel.sharding import make_mesh
from dmpo_jax.training import setup
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.config import check
from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.optimizer import make_optimizer
from dmpo_jax.training.run import train
from dmpo_jax.training.step import compile_step, initial_state, make_step
from tests.training.rows import computed
from tests.training.tiny import pairs_config, smallest_config

COMPONENTS = ("unet", "text_encoder")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Folder of a random pipeline that denoises pixels."""
  folder = tmp_path_factory.mktemp("base") / "pipeline"
  interop.save_pipeline(folder, setup.load_pipeline(smallest_config(), ["the digit seven"]))
  return folder


def _config(base, steps=4):
  config = pairs_config(base)
  config.trained = COMPONENTS
  config.lora.rank, config.lora.alpha = 2, 4.0
  config.num_steps, config.optimizer.learning_rate = steps, 1e-2
  return config


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
  """Work directory of four steps with LoRAs of UNet and text encoder."""
  workdir = tmp_path_factory.mktemp("lora")
  train(_config(base), workdir, show_progress=False)
  return workdir


def _flat(folder, name):
  return trees.flatten(interop.load_pipeline(folder).params[name])


def _file(workdir):
  return workdir / "lora" / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(("name", "adapted"), [("unet", 8), ("text_encoder", 4)])
def test_the_pipeline_is_the_base_plus_the_update_in_the_lora_file(name, adapted, base, run):
  before, after = _flat(base, name), _flat(run / "pipeline", name)
  lora = interop.load_lora(_file(run), interop.load_pipeline(base).params)
  factors = trees.flatten(lora.params[name])
  layers = {leaf.rpartition(".")[0] for leaf in factors}
  assert len(layers) == adapted  # four of each attention
  for leaf, array in before.items():
    layer, _, kind = leaf.rpartition(".")
    if kind == "kernel" and layer in layers:
      update = factors[f"{layer}.down"].astype(np.float64) @ factors[f"{layer}.up"]
      assert np.abs(update).max() > 1e-4
      np.testing.assert_allclose(after[leaf], array + update, rtol=1e-6, atol=1e-7)
    else:
      np.testing.assert_array_equal(after[leaf], array)


def test_the_first_row_is_that_of_policy_equal_to_reference(run):
  first = read(run)[0]
  np.testing.assert_allclose(first["loss"], 1.614463, atol=1e-3)
  assert abs(first["logit"]) < 1e-3


def test_a_resumed_run_ends_with_the_same_lora_bit_for_bit(base, run, tmp_path):
  train(_config(base, steps=2), tmp_path, show_progress=False)
  train(_config(base, steps=4), tmp_path, show_progress=False)
  assert _file(tmp_path).read_bytes() == _file(run).read_bytes()
  assert computed(tmp_path) == computed(run)


def test_the_step_takes_the_base_once(base):
  config = check(_config(base))
  pipeline = setup.load_pipeline(config, [])
  trained, frozen, reference = setup.split_params(config, pipeline)
  optimizer = make_optimizer(config.optimizer)
  step = make_step(setup.make_objective(config, pipeline), optimizer, ema_decay=0.9)
  state = initial_state(trained, optimizer, ema=True)
  examples = setup.load_examples(config)
  text, _ = pipelines.build(pipeline).tokenize(examples.captions[:4])
  batch = Batch(text, examples.ids[:4], pixels=examples.images[:4])
  inputs = (state, frozen, reference)
  lowered = compile_step(step, make_mesh(1), *inputs).lower(*inputs, batch)
  size = lambda tree: sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(tree))  # noqa: E731
  # Parameters, two moments and the EMA of the LoRAs; the step and two counters of optax.
  expected = size(pipeline.params) + 4 * size(trained) + size(batch)
  assert 1 <= size(lowered.in_avals) - expected <= 3


def test_an_export_writes_the_pipeline_and_the_lora_file_of_the_run(run, tmp_path):
  export = functools.partial("export --workdir {} --{} {}".format, run)
  assert main(export("out", tmp_path / "pipeline").split()) == 0
  assert main(export("lora", tmp_path / "lora.safetensors").split()) == 0
  assert (tmp_path / "lora.safetensors").read_bytes() == _file(run).read_bytes()
  exported, trained = (_flat(folder / "pipeline", "unet") for folder in (tmp_path, run))
  assert all(np.array_equal(exported[leaf], trained[leaf]) for leaf in trained)


def test_a_run_also_writes_the_file_of_kohya_s_format(base, run):
  params = interop.load_pipeline(base).params
  ours, kohya = (
    interop.load_lora(run / "lora" / name, params)
    for name in ("pytorch_lora_weights.safetensors", "kohya.safetensors")
  )
  assert ours.alphas == kohya.alphas
  jax.tree.map(np.testing.assert_array_equal, dict(ours.params), dict(kohya.params))


def test_an_export_writes_kohya_s_format_in_half_precision(run, tmp_path):
  file = tmp_path / "a.safetensors"
  command = f"export --workdir {run} --lora {file} --format kohya --dtype fp16"
  assert main(command.split()) == 0
  with (
    safetensors.safe_open(file, "np") as opened,
    safetensors.safe_open(run / "lora" / "kohya.safetensors", "np") as whole,
  ):
    assert set(opened.keys()) == set(whole.keys())
    for name in opened.keys():  # noqa: SIM118
      array = opened.get_tensor(name)
      assert name.startswith(("lora_unet_", "lora_te_"))
      assert array.dtype == (np.float32 if name.endswith(".alpha") else np.float16)
      np.testing.assert_array_equal(array, whole.get_tensor(name).astype(array.dtype))


@pytest.mark.parametrize(
  "options",
  [
    "--lora a.safetensors --variant fp16",
    "--lora a.safetensors --max-shard-size 1GB",
    "--out a --format kohya",
  ],
)
def test_an_option_of_the_other_output_is_refused(run, options, capsys):
  assert main(f"export --workdir {run} {options}".split()) == 2
  assert "has no effect here" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("rank", "alpha", "message"),
  [
    (2, 0.0, r"lora\.alpha must be positive beside a rank .*got 0\.0"),
    (0, 4.0, r"lora\.alpha must be 0 without a rank; .*got 4\.0"),
    (-1, 4.0, r"lora\.rank must be an integer from 0 to"),
  ],
)
def test_rank_and_alpha_that_do_not_go_together_are_refused(rank, alpha, message, base):
  config = _config(base)
  config.lora.rank, config.lora.alpha = rank, alpha
  with pytest.raises(ValueError, match=message):
    check(config)


def test_a_pattern_that_matches_nothing_stops_the_run_at_its_start(base, tmp_path):
  config = _config(base)
  config.lora.targets.unet = ("*.to_queue",)
  with pytest.raises(ValueError, match=r"'\*\.to_queue' matches no linear layer"):
    train(config, tmp_path / "run", show_progress=False)
  assert not (tmp_path / "run" / "run.json").exists()


def test_inspect_shows_the_factors_of_a_run_beside_its_frozen_networks(base, run, capsys):
  assert main(["inspect", str(run), "--json"]) == 0
  components = json.loads(capsys.readouterr().out)["components"]
  lora = interop.load_lora(_file(run), interop.load_pipeline(base).params)
  factors = trees.flatten(lora.params["unet"])
  assert components["unet LoRA"]["parameters"] == sum(leaf.size for leaf in factors.values())
  assert components["unet"]["notes"] == ["frozen: equal to the base pipeline"]
