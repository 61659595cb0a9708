"""The bytes of a pipeline that each of 16 processes reads from storage."""

import collections
import functools
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from dmpo_jax import models
from dmpo_jax.common.byte_ranges import ByteRanges
from dmpo_jax.errors import InputError
from dmpo_jax.interop import published, read_weights, state_dict, tensor_file
from dmpo_jax.models import trees
from dmpo_jax.parallel import sharding

PROCESSES, DEVICES = 16, 4  # of each process
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


class Device:
  """A device of one of several processes, of which no other is here."""

  platform = device_kind = "cpu"

  def __init__(self, number: int):
    self.id, self.process_index = number, number // DEVICES
    self.client = jax.devices()[0].client


DEVICE_LIST = [Device(i) for i in range(PROCESSES * DEVICES)]


def mesh_of(data: int, fsdp: int) -> Mesh:
  """A mesh over the devices of all processes."""
  devices = np.array(DEVICE_LIST).reshape(data, fsdp)
  return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


@pytest.fixture
def ranges(monkeypatch):
  """The ranges of bytes that were read, by file."""
  read, result = ByteRanges.read, collections.defaultdict(list)

  def counting(self, start, length):
    result[self].append((start, start + length))
    return read(self, start, length)

  monkeypatch.setattr(ByteRanges, "read", counting)
  return result


def read_as(process: int, folder, config, shardings):
  """The shards of a network that one process reads, as `read_weights` would in it."""
  abstract = models.abstract(config)
  names, targets = state_dict.torch_names(abstract), trees.flatten(shardings(abstract))
  leaves = trees.flatten(abstract)
  entries = read_weights._aligned(read_weights.open_folder(folder, config, None), names)
  shards = {}
  for name, path in names.items():
    shape = leaves[path].shape
    target = read_weights.row_sharding(path, shape, targets[path])
    local = {
      read_weights.bounds(index, shape)
      for device, index in target.devices_indices_map(shape).items()
      if device.process_index == process
    }
    shards[name] = path, read_weights.read_shards(entries[name], path, local, None)
  return shards


@pytest.mark.parametrize(("data", "fsdp"), [(4, 16), (8, 8), (64, 1)])
def test_sixteen_processes_read_each_byte_of_sdxl_once_per_host_that_needs_it(
  sdxl_folder, sdxl, ranges, monkeypatch, data, fsdp
):
  monkeypatch.setattr(sharding, "SMALLEST", 64)  # the network is tiny
  shardings = functools.partial(sharding.shardings, mesh_of(data, fsdp))
  for component in COMPONENTS:
    (file,) = (sdxl_folder / component).glob("*.safetensors")
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    abstract = models.abstract(sdxl.configs[component])
    leaves, targets = trees.flatten(abstract), trees.flatten(shardings(abstract))
    needed = 0  # by one process: its share of what is sharded, all of what is replicated
    for path, target in targets.items():
      shape = leaves[path].shape
      parts = math.prod(shape) // math.prod(target.shard_shape(shape))
      if state_dict.torch_shape(path, shape)[0] % parts:  # no whole rows: all of a small tensor
        parts = 1
      needed += 4 * math.prod(shape) * min(DEVICES, parts) // parts
    for process in (0, 7, 15):
      ranges.clear()
      read_as(process, sdxl_folder / component, sdxl.configs[component], shardings)
      (pieces,) = ranges.values()
      pieces = sorted(pieces)
      assert all(a[1] <= b[0] for a, b in itertools.pairwise(pieces)), "a byte twice"
      assert sum(end - start for start, end in pieces) == header + needed


def test_of_sdxl_in_its_size_each_of_64_devices_holds_whole_rows_of_the_file():
  mesh = mesh_of(1, 64)
  leaves = trees.flatten(models.abstract(published.SDXL_UNET))
  total = by_one = 0
  for path, leaf in leaves.items():
    target = NamedSharding(mesh, sharding.spec(leaf.shape, 64))
    shard = read_weights.row_sharding(path, leaf.shape, target).shard_shape(leaf.shape)
    torch = [state_dict.torch_shape(path, shape) for shape in (leaf.shape, shard)]
    assert torch[0][1:] == torch[1][1:], path
    total += math.prod(leaf.shape)
    by_one += math.prod(leaf.shape) if shard == leaf.shape else DEVICES * math.prod(shard)
  assert total / PROCESSES < by_one < 1.02 * total / PROCESSES


def test_together_the_processes_read_the_whole_of_a_sharded_network(sdxl_folder, sdxl, monkeypatch):
  monkeypatch.setattr(sharding, "SMALLEST", 64)
  shardings = functools.partial(sharding.shardings, mesh_of(4, 16))
  expected = trees.flatten(sdxl.params["unet"])
  filled = {path: np.full(leaf.shape, np.nan, np.float32) for path, leaf in expected.items()}
  for process in range(PROCESSES):
    for path, shards in read_as(
      process, sdxl_folder / "unet", sdxl.configs["unet"], shardings
    ).values():
      for bounds, shard in shards.items():
        filled[path][tuple(slice(*x) for x in bounds)] = shard
  for path, leaf in expected.items():
    np.testing.assert_array_equal(filled[path], leaf)


@pytest.mark.parametrize(
  ("shape", "spec", "expected"),
  [
    ((5120, 1280), ("fsdp", None), (None, "fsdp")),  # [in, out]: torch's rows are outputs
    ((1280, 5120), (None, "fsdp"), (None, "fsdp")),
    ((3, 3, 2560, 1280), (None, None, "fsdp", None), (None, None, None, "fsdp")),
    ((1280, 4), ("fsdp", None), ("fsdp", None)),  # 16 parts do not divide 4 rows
  ],
)
def test_a_kernel_is_read_by_rows_where_its_parts_divide_them(shape, spec, expected):
  target = NamedSharding(mesh_of(4, 16), PartitionSpec(*spec))
  rows = read_weights.row_sharding("layer.kernel", shape, target)
  assert tuple(rows.spec) == expected


def test_shards_of_columns_are_cut_from_rows_that_are_read_once(tmp_path, ranges):
  kernel = np.arange(48, dtype=np.float32).reshape(6, 8)  # torch's [out, in]
  save_file({"weight": kernel}, tmp_path / "a.safetensors")
  entry = tensor_file.open_file(tmp_path / "a.safetensors", advice="")[0]["weight"]
  ranges.clear()
  local = [((2 * i, 2 * i + 2), (0, 6)) for i in range(4)]  # [in, out]
  shards = read_weights.read_shards(entry, "kernel", local, None)
  assert [len(pieces) for pieces in ranges.values()] == [1]
  for bounds, shard in shards.items():
    np.testing.assert_array_equal(shard, kernel.T[slice(*bounds[0])])


def test_leaves_that_were_read_by_rows_are_moved_to_their_sharding():
  mesh = sharding.make_mesh(4, fsdp=4)
  array = np.arange(64, dtype=np.float32).reshape(8, 8)
  rows, columns = (
    NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "fsdp"), ("fsdp", None))
  )
  leaves = {"a": jax.device_put(array, rows), "b": jax.device_put(array, columns)}
  moved = read_weights._moved(leaves, {"a": columns, "b": columns})
  assert list(moved) == ["a"]
  assert moved["a"].sharding == columns
  np.testing.assert_array_equal(moved["a"], array)


@pytest.mark.parametrize(
  "dtype", ["float32", "float16", "float64", "int64", "int8", "uint8", "bool"]
)
def test_a_tensor_is_read_as_safetensors_reads_it(dtype, tmp_path):
  array = np.random.default_rng(0).integers(0, 2, (5, 3, 2)).astype(dtype)
  save_file({"b": array, "a": np.array(array[0, 0, 0]), "c": array[:0]}, tmp_path / "a.safetensors")
  entries = tensor_file.open_file(tmp_path / "a.safetensors", advice="")[0]
  for name, expected in load_file(tmp_path / "a.safetensors").items():
    np.testing.assert_array_equal(entries[name].read(None), expected, strict=True)
  part = entries["b"].read((slice(1, 4), slice(0, 3), slice(1, 2)))
  np.testing.assert_array_equal(part, array[1:4, :, 1:2], strict=True)


def _with_header(tmp_path, header: bytes, data: bytes):
  file = tmp_path / "a.safetensors"
  file.write_bytes(len(header).to_bytes(8, "little") + header + data)
  return file


@pytest.mark.parametrize(
  ("header", "data", "message"),
  [
    (b"", b"", "its header would have 0 of 8 bytes"),
    (b'{"a": 3}', b"", "its entry 'a' is 3"),
    (b'{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}', b"0000", "the dtype 'F31'"),
    (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"0000", "the shape or the"),
    (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"0000", "of 8 bytes has the"),
    (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"0" * 8, "begins at 4, the"),
    (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0" * 8, "its header describes"),
    (b"[1]     ", b"", "expected a JSON object"),
  ],
)
def test_a_damaged_header_is_refused(tmp_path, header, data, message):
  with pytest.raises(InputError, match=rf"a\.safetensors is a damaged.*{message}.*; get it again"):
    tensor_file.open_file(_with_header(tmp_path, header, data), advice="get it again")


def test_a_file_that_is_replaced_while_it_is_open_is_read_as_it_was(tmp_path):
  file, old = tmp_path / "a.safetensors", np.ones(3, np.float32)
  save_file({"a": old}, file)
  entry = tensor_file.open_file(file, advice="")[0]["a"]
  save_file({"a": 2 * old}, tmp_path / "new")
  (tmp_path / "new").replace(file)
  np.testing.assert_array_equal(entry.read(None), old)
