"""LoRA files that do not fit, and LoRAs that cannot be written."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop
from dmpo_jax.errors import InputError
from tests.interop.lora_case import WRITERS, Case


@pytest.fixture(scope="module")
def sd():
  return Case(False)


def rewritten(sd, tmp_path, change, metadata=None):
  """Our file with its entries changed."""
  interop.save_lora(tmp_path / "a.safetensors", sd.lora, sd.base)
  state = load_file(tmp_path / "a.safetensors")
  change(state)
  save_file(state, tmp_path / "a.safetensors", metadata=metadata)
  return tmp_path / "a.safetensors"


Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def test_everything_that_does_not_fit_is_listed(sd, tmp_path):
  def change(state):
    state["unet.elsewhere.to_q.lora_A.weight"] = np.ones((3, 8), np.float32)
    state[f"{Q}.dora_scale"] = np.ones(8, np.float32)
    del state["unet.conv_in.lora_B.weight"]
    k = Q.replace("to_q", "to_k")
    state[f"{k}.lora_B.weight"] = np.ones((9, 3), np.float32)

  with pytest.raises(InputError) as error:
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)
  message = str(error.value)
  assert "unet.elsewhere.to_q.lora_A.weight: the base has no such" in message
  assert f"{Q}.dora_scale: an entry of DoRA" in message
  assert "unet.conv_in: needs both factors" in message
  assert "to_k: made for [8, 9], the base's is [8, 8]" in message
  assert len(message.splitlines()) == 5


@pytest.mark.parametrize(
  ("shape", "problem"),
  [
    ((3, 8, 3, 3), r"made for \[3, 3, 8, 8\]"),
    ((4, 8), "expected"),
    ((3, 9), r"made for \[9, 8\]"),
    ((3,), "expected"),
    ((0, 8), "expected"),
  ],
)
def test_factors_that_do_not_belong_together_are_refused(sd, tmp_path, shape, problem):
  def change(state):
    state[f"{Q}.lora_A.weight"] = np.ones(shape, np.float32)

  with pytest.raises(InputError, match=problem):
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)


def test_a_factor_under_two_spellings_is_refused(sd, tmp_path):
  def change(state):
    state[f"{Q}.lora.down.weight"] = 2 * state[f"{Q}.lora_A.weight"]

  with pytest.raises(InputError, match="twice"):
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)


@pytest.mark.parametrize(
  ("fields", "problem"),
  [
    ({"lora_alpha": 4, "r": 3, "use_dora": True}, "use_dora"),
    ({"lora_alpha": 4, "r": 3, "a_later_method": 1}, "a_later_method"),
    ({"lora_alpha": 4, "r": 3, "peft_type": "LOHA"}, "LOHA"),
    ({"lora_alpha": 4, "r": 3, "init_lora_weights": "pissa_niter_16"}, "changes the base"),
    ({"lora_alpha": 4, "r": 5}, "the header says rank 5, the factors have 3"),
    ({"lora_alpha": "x"}, "lora_alpha is 'x', expected a number"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_alpha": True}, "lora_alpha is True"),
    ({"r": 2.5}, "r is 2.5"),
    ({"r": "9" * 5000}, r"r is '9+ \.\.\. 9+', expected"),
    ({"lora_alpha": 4, "alpha_pattern": ["to_q"]}, "alpha_pattern is"),
    ({"lora_alpha": 4, "alpha_pattern": {"to_q": []}}, "alpha_pattern of 'to_q'"),
    ({"lora_alpha": 4, "rank_pattern": {"to_q": 4}}, "rank 4, the factors have 3"),
  ],
)
def test_a_header_of_another_method_or_rank_is_refused(sd, tmp_path, fields, problem):
  header = json.dumps({f"unet.{name}": value for name, value in fields.items()})
  file = rewritten(sd, tmp_path, lambda state: None, {"lora_adapter_metadata": header})
  with pytest.raises(InputError, match=problem):
    interop.load_lora(file, sd.base)


@pytest.mark.parametrize("header", ["{", "[1]", "[" * 100_000])
def test_a_header_that_is_no_object_is_refused(sd, tmp_path, header):
  file = rewritten(sd, tmp_path, lambda state: None, {"lora_adapter_metadata": header})
  with pytest.raises(InputError, match=r"valid JSON|JSON object|nested"):
    interop.load_lora(file, sd.base)


@pytest.mark.parametrize(
  "pattern",
  ["([a-z_.0-9]+)+!", "(", "a{1,99999999999}", "(?P<x>a)", "x" * 600, "\\1", "[a-z]", "+"],
)
def test_a_pattern_that_is_another_expression_is_refused_by_name(sd, tmp_path, pattern):
  header = json.dumps({"unet.lora_alpha": 3, "unet.r": 3, "unet.alpha_pattern": {pattern: 2}})
  file = rewritten(sd, tmp_path, lambda state: None, {"lora_adapter_metadata": header})
  with pytest.raises(InputError, match="alpha_pattern: the pattern"):
    interop.load_lora(file, sd.base)


def test_a_long_value_of_the_header_is_told_once_and_shortened(sd, tmp_path):
  header = json.dumps({"unet.lora_alpha": "9" * 5000})
  file = rewritten(sd, tmp_path, lambda state: None, {"lora_adapter_metadata": header})
  with pytest.raises(InputError) as error:
    interop.load_lora(file, sd.base)
  assert len(str(error.value)) < 600
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("entry", "method"),
  [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_w1_a", "LoHa"),
    ("lokr_w1", "LoKr"),
    ("oft_blocks", "OFT"),
    ("lora_mid.weight", "Tucker"),
    ("lora_embedding_A", "embeddings"),
    ("lora_B.bias", "biases"),
    ("diff_b", "full differences"),
  ],
)
def test_another_method_is_refused_by_name(sd, tmp_path, entry, method):
  def change(state):
    state[f"{Q}.{entry}"] = np.ones((8, 8), np.float32)

  with pytest.raises(InputError, match=method):
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)


def test_many_entries_of_another_method_are_one_list(sd, tmp_path):
  def change(state):
    for name in [name for name in state if name.endswith(".lora_A.weight")]:
      state[name.replace(".lora_A.weight", ".dora_scale")] = np.ones(8, np.float32)

  with pytest.raises(InputError, match="more: an entry of DoRA") as error:
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)
  assert len(str(error.value).splitlines()) == 5


@pytest.mark.parametrize(
  ("alpha", "problem"), [([3, 4], "2 values"), ([], "0 values"), (np.nan, "nan"), (np.inf, "inf")]
)
def test_an_alpha_that_is_no_number_is_refused(sd, tmp_path, alpha, problem):
  def change(state):
    state[f"{Q}.alpha"] = np.asarray(alpha, np.float32)

  with pytest.raises(InputError, match=f"alpha .*{problem}"):
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)


def test_factors_that_are_not_finite_are_refused(sd, tmp_path):
  def change(state):
    state[f"{Q}.lora_B.weight"][0, 0] = np.nan

  with pytest.raises(InputError, match="to_q: has values that are not finite"):
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64, torch.int8])
def test_factors_of_another_dtype_are_refused(sd, tmp_path, dtype):
  file = rewritten(sd, tmp_path, lambda state: None)
  state = {k: v.to(dtype) for k, v in safetensors.torch.load_file(file).items()}
  safetensors.torch.save_file(state, file)
  with pytest.raises(InputError, match="float32 or float16 or bfloat16"):
    interop.load_lora(file, sd.base)


def test_control_characters_of_an_entry_are_escaped(sd, tmp_path):
  def change(state):
    state["unet.\x1b]0;owned\x07.lora_A.weight"] = np.ones((3, 8), np.float32)

  with pytest.raises(InputError) as error:
    interop.load_lora(rewritten(sd, tmp_path, change), sd.base)
  assert "\\x1b]0;owned\\x07" in str(error.value)


def test_alpha_in_the_header_and_another_as_an_entry_are_refused(sd, tmp_path):
  header = json.dumps({"unet.lora_alpha": 4})

  def change(state):
    state[f"{Q}.alpha"] = np.asarray(5, np.float32)

  file = rewritten(sd, tmp_path, change, {"lora_adapter_metadata": header})
  with pytest.raises(InputError, match="alpha is 4 in the header and 5 as an entry"):
    interop.load_lora(file, sd.base)


def test_a_lora_for_sdxl_is_refused_by_sd(sd, tmp_path):
  case = Case(True)
  interop.save_lora(tmp_path / "a.safetensors", case.lora, case.base)
  with pytest.raises(InputError, match=r"text_encoder_2\.text_model"):
    interop.load_lora(tmp_path / "a.safetensors", sd.base)


def test_a_file_cut_short_is_refused(sd, tmp_path):
  file = rewritten(sd, tmp_path, lambda state: None)
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(InputError, match="damaged"):
    interop.load_lora(file, sd.base)


@pytest.mark.parametrize(
  ("name", "problem"), [("gone.safetensors", "no file"), ("a.bin", "pickled")]
)
def test_a_missing_or_pickled_file_is_refused(sd, tmp_path, name, problem):
  (tmp_path / "a.bin").write_bytes(b"")
  with pytest.raises(InputError, match=problem):
    interop.load_lora(tmp_path / name, sd.base)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (lambda x: x._replace(params={"vae": x.params["unet"]}), "'vae'"),
    (lambda x: x._replace(alphas={}), "alphas does not have"),
    (lambda x: x._replace(params={}), "names no component"),
    (lambda x: x._replace(alphas={**x.alphas, "unet": {"conv_in": 1}}), "these differ"),
    (lambda x: x._replace(params={"unet": x.params["text_encoder"]}), "another network"),
    (lambda x: x._replace(params=jax.tree.map(np.float64, x.params)), "float64"),
    (lambda x: x._replace(alphas=dict.fromkeys(x.params, float("nan"))), "alpha is nan"),
    (lambda x: x._replace(params=jax.tree.map(lambda a: a * np.inf, x.params)), "not finite"),
  ],
)
def test_a_lora_that_does_not_fit_is_not_written(sd, tmp_path, write, change, problem):
  with pytest.raises(InputError, match=problem):
    write(tmp_path / "a.safetensors", change(sd.lora), sd.base)
  assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(sd, tmp_path):
  with pytest.raises(InputError, match=r"\*.safetensors"):
    interop.save_lora(tmp_path / "lora.bin", sd.lora, sd.base)


def test_a_file_is_replaced_whole_or_not_at_all(sd, tmp_path, monkeypatch):
  file = tmp_path / "a.safetensors"
  interop.save_lora(file, sd.lora, sd.base)
  before = file.read_bytes()

  def refuse(*_):
    raise OSError("no space left on device")

  monkeypatch.setattr("pathlib.Path.replace", refuse)
  with pytest.raises(OSError, match="no space left"):
    interop.save_lora(file, sd.lora._replace(alphas=dict.fromkeys(sd.base, 1)), sd.base)
  assert file.read_bytes() == before
  assert list(tmp_path.iterdir()) == [file]
