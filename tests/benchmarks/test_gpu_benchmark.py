"""The GPU benchmark: its limits, its kinds of kernels, and a run at tiny size on a CPU."""

import json
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
import gpu_kernels
import gpu_setting


def run(code, compiling=20.0, measuring=20.0):
  return gpu.measure([sys.executable, "-c", code], dict(os.environ), compiling, measuring)


def test_a_variant_is_a_side_with_options():
  assert gpu.variant("ours:remat=none,batch_size=16") == (
    "ours",
    {"remat": "none", "batch_size": "16"},
  )
  assert gpu.variant("torch") == ("torch", {})


@pytest.mark.parametrize("text", ["theirs", "ours:remat", "ours:=1", "torch:pairs="])
def test_a_malformed_variant_is_refused(text):
  with pytest.raises(gpu.argparse.ArgumentTypeError):
    gpu.variant(text)


def test_what_a_child_wrote_before_it_was_ended_is_kept():
  code = 'print(\'{"compile_seconds": 1, "pairs": 2}\', flush=True); import time; time.sleep(60)'
  result = run(code, measuring=0.5)
  assert result == {
    "compile_seconds": 1,
    "pairs": 2,
    "error": "not finished within 0.5 s of measuring",
  }


def test_a_child_that_does_not_compile_in_time_is_ended():
  result = run("import time; time.sleep(60)", compiling=0.5)
  assert result == {"error": "not finished within 0.5 s of compiling"}


def test_the_last_line_of_a_child_that_fails_is_the_error():
  result = run("raise ValueError('the card is on fire')")
  assert result == {"error": "ended with status 1: ValueError: the card is on fire"}


def test_flags_of_xla_reach_the_child_and_are_no_options_of_the_step(tmp_path):
  flags = gpu.environment({"xla_gpu_autotune_level": "0", "remat": "none"}, tmp_path)["XLA_FLAGS"]
  assert flags.split()[-1] == "--xla_gpu_autotune_level=0"
  assert "remat" not in flags


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_NNT", "matrix product"),
    ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_nhwckrsc_nhwc", "convolution"),
    ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16", "convolution, weight gradient"),
    ("sm90_xmma_dgrad_implicit_gemm_bf16", "convolution, input gradient"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention forward"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention backward"),
    ("input_reduce_fusion_12", "reduction"),
    ("input_transpose_fusion_3", "transpose or copy"),
    ("loop_add_fusion_77", "elementwise"),
    ("input_concatenate_fusion", "concatenation"),
    ("triton_softmax_4", "other fusion"),
    ("void some_library_kernel<float>", "other"),
  ],
)
def test_a_kernel_belongs_to_its_kind(name, kind):
  assert gpu_kernels.kind(name) == kind


def test_the_table_of_kernels_adds_up():
  kernels = [gpu_kernels.Kernel("nvjet_a", 3e-3, 4), gpu_kernels.Kernel("loop_b", 1e-3, 2)]
  lines = gpu_kernels.table(kernels, steps=2)
  assert lines[2] == "| matrix product | 1.50 | 75% | `nvjet_a` 1.50 |"
  assert lines[-1] == "| all | 2.00 | | |"


def test_pairs_of_sd15_have_the_flops_of_the_plan():
  """The UNet's 804 GFLOP an image: forward, backward, reference forward, for two images."""
  assert gpu_setting.pair_flops("sd15") == pytest.approx(2 * 4 * 804e9, rel=0.01)


def test_a_config_key_that_is_not_there_is_refused():
  with pytest.raises(ValueError, match="no key 'rmat'"):
    gpu_setting.config("tiny", {"rmat": "none"})


@pytest.mark.slow
def test_all_sides_run_at_tiny_size_on_a_cpu(tmp_path, capsys):
  rows = tmp_path / "rows.jsonl"
  variants = ["ours", "ours:layout=ohwi,remat=none", "torch", "salesforce"]
  limits = ["--seconds=0.1", "--compile-seconds=300", "--run-seconds=120"]
  where = ["--model=tiny", f"--cache={tmp_path}", f"--rows={rows}"]
  gpu.main([*where, "--profile", *limits, "--variants", *variants])
  results = [json.loads(line) for line in rows.read_text().splitlines()]
  assert [r["variant"] for r in results] == variants
  assert not any("error" in r for r in results)
  assert all(len(r["seconds"]) >= 3 and min(r["seconds"]) > 0 for r in results)
  # Policy and reference are equal at the first step, here and in torch.
  assert [r["loss"] for r in results] == pytest.approx([0.693147] * 4, abs=1e-5)
  assert [r["twice_alike"] for r in results] == [True, True, None, None]
  assert "| convolution |" in capsys.readouterr().out
