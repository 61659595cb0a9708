"""Files of torch.save, read without torch and without running their code."""

import collections
import io
import os
import pickle
import shlex
import sys
import zipfile

import numpy as np
import pytest
import torch

from dmpo_jax.errors import InputError
from dmpo_jax.interop.torch_file import read_torch_file

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]


def arrays(file):
  return {name: tensor.read(None) for name, tensor in read_torch_file(file).items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_those_of_torch(dtype, tmp_path):
  tensor = (torch.arange(12).reshape(3, 4) % 5).to(dtype)
  torch.save({"a": tensor}, tmp_path / "x.pt")
  read = read_torch_file(tmp_path / "x.pt")["a"]
  assert (read.shape, read.dtype) == ((3, 4), str(dtype).removeprefix("torch."))
  np.testing.assert_array_equal(np.asarray(read.read(None), np.float64), tensor.double().numpy())


def test_views_transposes_and_shared_storages_are_read_as_torch_shows_them(tmp_path):
  base = torch.randn(6, 5)
  state = {"t": base.T, "rows": base[1:4], "one": base[2, 3], "step": base[::2, 1::3]}
  torch.save(state, tmp_path / "x.pt")
  for name, array in arrays(tmp_path / "x.pt").items():
    np.testing.assert_array_equal(array, state[name].numpy())


def test_a_slice_is_that_of_the_tensor(tmp_path):
  tensor = torch.randn(6, 5)
  torch.save({"a": tensor.T}, tmp_path / "x.pt")
  read = read_torch_file(tmp_path / "x.pt")["a"].read((slice(1, 3), slice(0, 4)))
  np.testing.assert_array_equal(read, tensor.T[1:3, :4].numpy())


@pytest.mark.parametrize("protocol", [2, 4])
def test_modules_wrappers_and_prefixes_are_those_of_training_programs(tmp_path, protocol):
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
  expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
  state = collections.OrderedDict((f"module.{n}", t) for n, t in module.state_dict().items())
  content = {"epoch": 3, "name": "x", "lr": 0.1, "state_dict": state, "scaler": None}
  for name, value in {"plain": module.state_dict(), "wrapped": content}.items():
    torch.save(value, tmp_path / name, pickle_protocol=protocol)
    actual = arrays(tmp_path / name)
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[n], expected[n]) for n in expected)


def test_parameters_are_tensors(tmp_path):
  torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt")
  np.testing.assert_array_equal(arrays(tmp_path / "x.pt")["a"], [1, 1])


class Evil:
  """Runs a command when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize(
  ("function", "argument", "name"),
  [
    (os.system, "touch ran", "posix.system"),
    (eval, "1", "__builtin__.eval"),
    (getattr, "a", "__builtin__.getattr"),
  ],
)
def test_a_function_in_the_pickle_is_refused_by_name_and_not_called(
  function, argument, name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  torch.save({"a": torch.ones(2), "b": Evil(function, argument)}, "x.pt")
  with pytest.raises(InputError, match=f"x.pt needs '{name}'.*may run code"):
    read_torch_file(tmp_path / "x.pt")
  assert not (tmp_path / "ran").exists()


def archive(file, description, storages=()):
  """A file of torch.save with a pickle of one's own."""
  with zipfile.ZipFile(file, "w") as stream:
    stream.writestr("x/data.pkl", description)
    for key, content in enumerate(storages):
      stream.writestr(f"x/data/{key}", content)
  return file


@pytest.mark.parametrize(
  ("description", "name"),
  [
    (b"\x80\x02cos\nsystem\n(S'touch ran'\ntR.", "'os.system'"),
    (b"(ios\nsystem\n.", "INST"),
    (b"(cos\nsystem\nS'a'\no.", "'os.system'"),
    (b"\x80\x02ctorch\nSize\n)\x81.", "NEWOBJ"),
    (b"\x80\x02\x82\x01.", "EXT1"),
    (b"P1\n.", "PERSID"),
    (pickle.dumps({"a": {1, 2}}, 4), "EMPTY_SET"),
    (pickle.dumps({"a": b"b"}, 4), "SHORT_BINBYTES"),
  ],
)
def test_an_operation_outside_of_the_list_is_refused_by_name(description, name, tmp_path):
  with pytest.raises(InputError, match=f"needs (the pickle operation )?{name}"):
    read_torch_file(archive(tmp_path / "x.pt", description))


STORAGE = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(("
STORAGE += (
  b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK%ctQ"
)


@pytest.mark.parametrize(
  ("count", "rest", "content", "message"),
  [
    (4, b"K\x00K\x05\x85K\x01\x85tRs.", bytes(16), r"shape \[5\] ends beyond its storage"),
    (4, b"K\x03K\x02\x85K\x01\x85tRs.", bytes(16), r"shape \[2\] ends beyond"),
    (4, b"K\x00K\x04\x85K\x01\x85tRs.", bytes(12), "has 12 bytes, expected 16"),
    (4, b"J\xff\xff\xff\xffK\x04\x85K\x01\x85tRs.", bytes(16), "negative or fractional"),
    (4, b"K\x00K\x04\x85)tRs.", bytes(16), "without storage"),
    (4, b"K\x00K\x04\x85K\x01\x85tR", bytes(16), "damaged torch file"),
  ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(count, rest, content, message, tmp_path):
  file = archive(tmp_path / "x.pt", STORAGE % count + rest, [content])
  with pytest.raises(InputError, match=message):
    read_torch_file(file)


@pytest.mark.parametrize("kept", [0, 1, 60, 200, 700, -1])
def test_a_file_that_is_cut_short_is_one_line(kept, tmp_path):
  stream = io.BytesIO()
  torch.save({"a": torch.randn(30)}, stream)
  (tmp_path / "x.pt").write_bytes(stream.getvalue()[:kept])
  with pytest.raises(InputError, match=r"x\.pt is a damaged torch file|missing") as error:
    read_torch_file(tmp_path / "x.pt")
  assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match=r"absent\.pt is missing"):
    read_torch_file(tmp_path / "absent.pt")


def convert(message, monkeypatch):
  """Runs the command in an error message."""
  python, _, code, *arguments = shlex.split(str(message).split("\n  ")[1])
  assert python == "python"
  monkeypatch.setattr(sys, "argv", ["-c", *arguments])
  exec(code, {})


def test_the_former_format_is_refused_with_a_command_that_converts_it(tmp_path, monkeypatch):
  file, tensor = tmp_path / "x y.pt", torch.randn(3)
  torch.save({"a": tensor}, file, _use_new_zipfile_serialization=False)
  with pytest.raises(InputError, match=r"pickle of torch before 1\.6") as error:
    read_torch_file(file)
  convert(error.value, monkeypatch)
  np.testing.assert_array_equal(arrays(tmp_path / "x y_converted.pt")["a"], tensor.numpy())


def test_a_torchscript_program_is_refused_with_a_command_that_converts_it(tmp_path, monkeypatch):
  module = torch.nn.Linear(2, 3)
  torch.jit.trace(module, torch.ones(1, 2)).save(str(tmp_path / "x.pt"))
  with pytest.raises(InputError, match="TorchScript program, as OpenAI's") as error:
    read_torch_file(tmp_path / "x.pt")
  convert(error.value, monkeypatch)
  weight = arrays(tmp_path / "x_converted.pt")["weight"]
  np.testing.assert_array_equal(weight, module.weight.detach().numpy())


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {"a": 3}, {3: torch.ones(2)}])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
  torch.save(content, tmp_path / "x.pt")
  with pytest.raises(InputError, match="expected a state dict"):
    read_torch_file(tmp_path / "x.pt")
