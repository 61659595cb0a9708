"""The train step benchmark: both sides take the same step, and the ratio is correct."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import dpo_setting
import interleaved
import train_step
from dpo_ours import OurSide
from dpo_torch import TorchSide


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
  """Metrics of the first steps of both sides, at a size that compiles in seconds."""
  size = dpo_setting.latent_size(3, 4, (8,), 1, tokens=6, context=8)
  size.model["unet"].update(norm_num_groups=4, attention_head_dim=2)
  size.model["text_encoder"].update(num_hidden_layers=1, num_attention_heads=2)
  folder = tmp_path_factory.mktemp("setting")
  dpo_setting.write(size, folder)
  sides = (
    OurSide(size, folder),
    TorchSide(size, folder, {"compile": False, "channels_last": False, "device": "cpu"}),
  )
  for side in sides:
    side.prepare()
  return [side.check() for side in sides]


@pytest.mark.slow
def test_both_sides_have_the_same_losses(checks):
  ours, theirs = ([row["loss"] for row in rows] for rows in checks)
  assert len(ours) == dpo_setting.CHECKED_STEPS
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
def test_the_policy_of_the_checked_steps_is_not_the_reference(checks):
  """At policy = reference every loss is log 2, and a swapped network would not show."""
  assert abs(checks[0][0]["loss"] - np.log(2)) > 1e-3


@pytest.mark.slow
def test_both_sides_change_parameters_and_ema_alike(checks):
  for name in ("change", "ema_change"):
    np.testing.assert_allclose(checks[0][-1][name], checks[1][-1][name], rtol=1e-3)


def test_the_largest_difference_of_each_number_is_reported():
  ours = [{"loss": 1.0, "only_ours": 5.0}, {"loss": 2.2, "only_ours": 5.0, "change": 3.0}]
  theirs = [{"loss": 1.0}, {"loss": 2.0, "change": 4.0}]
  assert train_step.disagreement(ours, theirs) == pytest.approx({"loss": 0.1, "change": 0.25})


def test_the_ratio_is_that_of_the_medians_and_lies_in_its_interval():
  rng = np.random.default_rng(0)
  theirs = rng.lognormal(sigma=0.1, size=101)
  result = train_step.ratio(list(0.8 * rng.permutation(theirs)), list(theirs))
  assert result["ratio"] == pytest.approx(0.8)
  assert result["ratio_95"][0] < 0.8 < result["ratio_95"][1]


def test_an_error_in_a_side_reaches_the_caller_with_its_message(tmp_path):
  worker = interleaved.Worker("jax", "dpo_ours.OurSide", dpo_setting.SIZES["digits"](), tmp_path)
  try:
    with pytest.raises(RuntimeError, match=str(tmp_path)):
      worker("start")
  finally:
    worker.close()


def test_a_malformed_layout_is_refused():
  assert train_step.layout("fsdp=2,microbatches=4") == {"fsdp": 2, "microbatches": 4}
  for wrong in ("tensor=2", "fsdp=0"):
    with pytest.raises(ValueError, match=wrong):
      train_step.layout(wrong)


def test_a_pair_of_sd15_has_the_flops_of_eight_forward_passes():
  flops = train_step.flops_of(dpo_setting.sd15())
  assert flops == pytest.approx(8 * 0.803e12, rel=0.01)  # and the text encoder
