"""Held-out evaluation, sample grids and profile of whole runs, which they leave unchanged."""

import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dmpo_jax import interop, losses, pipelines, sampling
from dmpo_jax.common.ranges import Interval
from dmpo_jax.errors import InputError
from dmpo_jax.parallel import sharding
from dmpo_jax.training import config_ranges
from dmpo_jax.training.batch import Batch
from dmpo_jax.training.monitor import held_out_errors
from dmpo_jax.training.monitor.metrics import read
from dmpo_jax.training.objective import Objective
from dmpo_jax.training.run import train
from tests.training.rows import computed
from tests.training.tiny import pairs_config

PROMPTS = ("the digit seven", "the digit one")


def monitored_config(pipeline):
  """The config of the run `finished`, six steps, monitored every second step."""
  config = pairs_config(pipeline)
  config.held_out.every, config.held_out.split = 2, "test"
  config.held_out.pairs, config.held_out.bins = 8, 2
  config.samples.every, config.samples.prompts = 2, PROMPTS
  config.samples.seeds, config.samples.steps = 2, 2
  config.profile.start, config.profile.steps = 1, 1
  config.evaluation.every, config.evaluation.steps = 2, 2
  prompts = pathlib.Path(pipeline).parent / "prompts.txt"
  prompts.write_text("\n".join(PROMPTS) + "\n")
  config.evaluation.prompts, config.evaluation.scorers = str(prompts), ("brightness",)
  return config


@pytest.fixture(scope="module")
def monitored(pipeline, tmp_path_factory):
  """Work directory of a monitored run."""
  workdir = tmp_path_factory.mktemp("monitored")
  train(monitored_config(pipeline), workdir, show_progress=False)
  return workdir


@pytest.fixture(scope="module")
def resumed(monitored, pipeline, tmp_path_factory):
  """Work directory of the same run, killed after step 4 and resumed."""
  workdir = shutil.copytree(monitored, tmp_path_factory.mktemp("resumed") / "run")
  shutil.rmtree(workdir / "checkpoints" / "6")
  (workdir / "summary.json").unlink()
  config = monitored_config(pipeline)
  config.profile.steps = 0
  assert train(config, workdir, show_progress=False).resumed_at == 4
  return workdir


def test_monitoring_does_not_change_a_bit_of_a_run(monitored, resumed, finished):
  file = "pipeline/unet/diffusion_pytorch_model.safetensors"
  for workdir in (monitored, resumed):
    assert computed(workdir) == computed(finished)
    assert (workdir / file).read_bytes() == (finished / file).read_bytes()


def test_records_have_the_throughput_and_the_first_of_each_start_the_time_to_its_first_step(
  resumed,
):
  rows = read(resumed)
  assert all(r["examples_per_second"] * r["seconds_per_step"] == pytest.approx(4) for r in rows)
  assert all(row["tflops_per_device"] > 0 and 0 <= row["data_stall_fraction"] <= 1 for row in rows)
  assert ["seconds_to_first_step" in row for row in rows] == [True, *[False] * 3, True, False]
  assert not any("mfu" in row for row in rows)  # the peak of a CPU is not known


def test_the_evaluation_starts_at_equal_networks_and_changes_with_the_policy(monitored):
  rows = read(monitored, "held_out")
  assert [row["step"] for row in rows] == [0, 2, 4, 6]
  first = rows[0]
  assert first["preferred_change"] == first["rejected_change"] == first["margin"] == 0
  assert first["accuracy"] == 0.5
  assert first["gradient_factor"] == pytest.approx(1.148780, abs=1e-5)
  assert len({row["preferred_reference"] for row in rows}) == 1
  assert len({row["preferred"] for row in rows}) == 4
  assert [(part["from"], part["to"]) for part in first["bins"]] == [(0, 499), (500, 999)]


def test_a_resumed_run_writes_the_same_evaluations_and_samples(monitored, resumed):
  assert read(resumed, "held_out") == read(monitored, "held_out")
  for step in (0, 2, 4, 6):
    name = f"samples/step_{step:06d}.png"
    assert (resumed / name).read_bytes() == (monitored / name).read_bytes()


def test_the_first_grid_is_sampled_from_the_initial_pipeline_and_the_noise_stays(
  monitored, pipeline
):
  loaded = interop.load_pipeline(pipeline)
  functions = pipelines.build(loaded)
  sampler = pipelines.make_sampler(functions, functions.make_solver(2), guidance=2.0)
  prompts = [prompt for prompt in PROMPTS for _ in range(2)]
  seeds = np.array([0, 1, 0, 1], np.uint32)
  inputs, _ = pipelines.sampling_inputs(functions, prompts, seeds)
  images = np.asarray(sampling.to_uint8(sampler(loaded.params, inputs)))[..., 0]  # [4, 8, 8]
  expected = np.block([[images[0], images[1]], [images[2], images[3]]])
  first, second = (
    np.asarray(Image.open(monitored / "samples" / f"step_{step:06d}.png")).astype(int)
    for step in (0, 2)
  )
  assert np.abs(first - expected).max() <= 1
  assert 0 < np.abs(second - first).mean() < 16
  assert (monitored / "samples" / "prompts.txt").read_text().splitlines() == list(PROMPTS)


def test_samples_of_the_initial_pipeline_that_are_not_finite_stop_the_run(
  pipeline, tmp_path, monkeypatch
):
  anything = Interval(0, math.inf)  # a scale that no config may have
  monkeypatch.setitem(config_ranges.RANGES, "samples.guidance", anything)
  config = monitored_config(pipeline)
  config.samples.guidance = 3e38
  message = "4 of the samples at step 0 are not finite, the first of the prompt 'the digit seven'"
  with pytest.raises(InputError, match=message):
    train(config, tmp_path, show_progress=False)


def test_evaluations_and_grids_are_in_tensorboard_and_the_evaluation_has_a_figure(monitored):
  events = EventAccumulator(str(monitored / "tensorboard"), size_guidance={"images": 0}).Reload()
  changes = {event.step: event.value for event in events.Scalars("held_out/preferred_change")}
  assert changes == pytest.approx(
    {row["step"]: row["preferred_change"] for row in read(monitored, "held_out")}, rel=1e-6
  )
  assert events.Scalars("held_out_t500-999/accuracy")[0].value == 0.5
  assert [event.step for event in events.Images("samples")] == [0, 2, 4, 6]
  assert Image.open(monitored / "held_out.png").size == (1650, 726)


def test_samples_are_scored_against_those_of_the_initial_pipeline(monitored):
  first, *later = read(monitored, "evaluation")
  assert [row["step"] for row in later] == [2, 4, 6]
  assert (first["brightness/change"], first["brightness/win_rate"]) == (0, 0.5)
  for row in later:
    moved = row["brightness/mean"] - first["brightness/mean"]
    assert row["brightness/change"] == pytest.approx(moved, abs=1e-6)
    assert row["brightness/change_low"] <= row["brightness/change"] <= row["brightness/change_high"]
  assert later[0]["brightness/change"] != 0
  events = EventAccumulator(str(monitored / "tensorboard")).Reload()
  assert events.Scalars("evaluation/diversity/distance_ratio")[0].value == 1


def test_a_resumed_run_writes_the_same_scores(monitored, resumed):
  assert read(resumed, "evaluation") == read(monitored, "evaluation")


def test_an_evaluation_without_a_prompt_file_is_refused(pipeline, tmp_path):
  config = monitored_config(pipeline)
  config.evaluation.prompts = str(tmp_path / "none.txt")
  with pytest.raises(InputError, match=r"config.evaluation.prompts: .*none.txt is missing"):
    train(config, tmp_path / "run", show_progress=False)
  assert not (tmp_path / "run" / "run.json").exists()


def test_the_profiler_writes_a_trace(monitored):
  assert list((monitored / "profile").rglob("*.xplane.pb"))


def test_records_of_another_evaluation_are_not_mixed(monitored, pipeline):
  config = monitored_config(pipeline)
  config.num_steps, config.held_out.bins = 8, 3
  with pytest.raises(InputError, match=r"(?s)held_out-\* is of other.*bins: 2 there, 3 here"):
    train(config, monitored, show_progress=False)


def _refused(pipeline, tmp_path, match: str, **held_out_keys) -> None:
  config = monitored_config(pipeline)
  config.held_out.update(held_out_keys)
  with pytest.raises(InputError, match=match):
    train(config, tmp_path / "run", show_progress=False)
  assert not (tmp_path / "run" / "run.json").exists()


def test_training_examples_are_refused_as_held_out_examples(pipeline, tmp_path):
  _refused(pipeline, tmp_path, "that the run trains on", split="train")


def test_more_held_out_pairs_than_the_split_has_are_refused(pipeline, tmp_path):
  _refused(pipeline, tmp_path, "there are 16 held-out", pairs=20)


def test_held_out_pairs_that_are_no_multiple_of_the_batch_size_are_refused(pipeline, tmp_path):
  _refused(pipeline, tmp_path, r"pairs 10 is no multiple of config\.batch_size 4", pairs=10)


@pytest.fixture(scope="module")
def measure(pipeline):
  """`(devices, example ids, scale, bins=4)` -> held-out errors [bins, examples, 2].

  The network predicts scale times the timestep, so that its errors reveal the timesteps.
  """
  functions = pipelines.build(interop.load_pipeline(pipeline))

  def denoise(params, x, t, conditioning):
    del conditioning
    return jnp.broadcast_to(params["unet"] * t[:, None, None, None].astype(jnp.float32), x.shape)

  functions = functions._replace(denoise=denoise, encode_text=lambda params, text: {})
  objective = Objective(
    pipeline=functions,
    loss=losses.sft,
    timestep_sampler=functions.process.timestep_sampler({"name": "uniform"}),
    caption_dropout=0.5,
    seed=0,
    null_text={"input_ids": jnp.zeros(1, jnp.int32)},
    label_flip_rate=1.0,
  )

  def run(devices: int, ids: np.ndarray, scale: float, bins: int = 4) -> np.ndarray:
    mesh = sharding.make_mesh(devices)
    batch = Batch(
      text={"input_ids": jnp.zeros((len(ids), 1), jnp.int32)},
      example_id=jnp.asarray(ids, jnp.uint32),
      pixels=jnp.zeros((len(ids), 2, 8, 8, 1)),
    )
    compute = held_out_errors.make_errors(objective, mesh, bins)
    with jax.set_mesh(mesh):
      sharded = jax.device_put(batch, sharding.batch(mesh))
      trained = jax.device_put({"unet": jnp.float32(scale)}, sharding.replicated(mesh))
      errors, weights = held_out_errors.measure(compute, trained, {}, [sharded])
    assert (weights == 1).all()
    return errors

  return run


def test_each_example_has_one_timestep_in_each_bin_and_noise_of_its_own(measure):
  ids = np.arange(8)
  noise = measure(1, ids, 0.0)  # mean eps²
  timesteps = np.sqrt(measure(1, ids, 1e4)) / 1e4
  for i, ts in enumerate(timesteps[..., 0]):
    assert ((ts > 250 * i - 0.5) & (ts < 250 * (i + 1))).all()
  np.testing.assert_array_equal(noise[..., 0], noise[..., 1])
  assert len(np.unique(noise[..., 0])) == 4 * 8
  assert noise.mean() == pytest.approx(1, abs=0.1)


def test_errors_depend_on_example_ids_and_neither_on_their_order_nor_on_the_devices(measure):
  ids = np.arange(8)
  expected = measure(1, ids, 1.0)
  np.testing.assert_allclose(measure(4, ids[::-1], 1.0)[:, ::-1], expected, rtol=1e-6)
