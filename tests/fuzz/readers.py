"""Every reader of files, with valid files of its kind.

A builder takes an empty folder, writes valid files into it, and returns a `Reader`.
"""

import contextlib
import functools
import json
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop, pipelines
from dmpo_jax.common import files
from dmpo_jax.data import captions, images, prompt_sets
from dmpo_jax.demos.digits import samples as quickstart_samples_file
from dmpo_jax.errors import InputError
from dmpo_jax.sampling import image_folder
from dmpo_jax.training import results, run_directory, stop
from dmpo_jax.training.checkpoint import Checkpoints
from dmpo_jax.training.config import default
from dmpo_jax.training.config_file import load_config
from dmpo_jax.training.monitor import alarms
from dmpo_jax.training.monitor import metrics as metrics_file
from tests.commands.conftest import make_run
from tests.data import sets
from tests.demos.emoji import font as emoji_font
from tests.fuzz.data_readers import DATA_READERS
from tests.fuzz.harness import Reader, command
from tests.interop import tiny
from tests.interop.lora_case import Case
from tests.training.tiny import smallest_config

HEADER = {
  "unet.r": 3,
  "unet.lora_alpha": 4,
  "unet.rank_pattern": {"down_blocks.0.*to_q": 3},
  "unet.alpha_pattern": {"conv_in": 2, r"\d\.conv1": 1.5},
  "unet.use_rslora": False,
  "unet.target_modules": ["to_q"],
  "text_encoder.r": 3,
  "text_encoder.lora_alpha": 3,
}


@functools.cache
def _case() -> Case:
  return Case(False)


def lora(root: pathlib.Path) -> Reader:
  """A LoRA with peft's names and a header."""
  case = _case()
  interop.save_lora(root / "a.safetensors", case.lora, case.base)
  state = load_file(root / "a.safetensors")
  save_file(state, root / "a.safetensors", {"lora_adapter_metadata": json.dumps(HEADER)})
  read = lambda folder: interop.load_lora(folder / "a.safetensors", case.base)  # noqa: E731
  return Reader(root, {"a.safetensors": "safetensors"}, read)


def kohya_lora(root: pathlib.Path) -> Reader:
  """A LoRA with kohya's names."""
  case = _case()
  interop.save_kohya_lora(root / "a.safetensors", case.lora, case.base)
  read = lambda folder: interop.load_lora(folder, case.base)  # noqa: E731
  return Reader(root, {"a.safetensors": "safetensors"}, read)


def peft_lora(root: pathlib.Path) -> Reader:
  """A folder of peft."""
  case = _case()
  interop.save_lora(root / "adapter_model.safetensors", case.lora, case.base)
  state = {
    f"base_model.model.{name.removeprefix('unet.')}": array
    for name, array in load_file(root / "adapter_model.safetensors").items()
    if name.startswith("unet.")
  }
  save_file(state, root / "adapter_model.safetensors")
  fields = {name.removeprefix("unet."): value for name, value in HEADER.items() if "unet." in name}
  (root / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **fields}))
  read = lambda folder: interop.load_lora(folder, case.base)  # noqa: E731
  return Reader(root, {"adapter_config.json": "json"}, read)


def inspect_lora(root: pathlib.Path) -> Reader:
  """`dmpo-jax inspect` of a LoRA."""
  reader = lora(root)
  return Reader(root, reader.files, lambda folder: command("inspect", folder / "a.safetensors"))


def _pipeline(root: pathlib.Path, files: dict[str, str]) -> Reader:
  tiny.write_tiny_pixels(root)

  def read(folder):
    pipelines.build(pipelines.load(folder)).tokenize(["a red fox"])

  return Reader(root, files, read)


def model_index(root: pathlib.Path) -> Reader:
  """A pipeline's list of components."""
  return _pipeline(root, {"model_index.json": "json"})


def network_configs(root: pathlib.Path) -> Reader:
  """Configs of a UNet and a text encoder."""
  return _pipeline(root, dict.fromkeys(("unet/config.json", "text_encoder/config.json"), "json"))


def scheduler_config(root: pathlib.Path) -> Reader:
  """A scheduler's config."""
  return _pipeline(root, {"scheduler/scheduler_config.json": "json"})


def tokenizer_files(root: pathlib.Path) -> Reader:
  """A tokenizer's files."""
  reader = _pipeline(root, {})
  kinds = {".json": "json", ".txt": "text"}
  files = {
    str(path.relative_to(root)): kinds[path.suffix]
    for path in sorted((root / "tokenizer").iterdir())
    if path.suffix in kinds
  }
  return Reader(root, files, reader.read)


def weights(root: pathlib.Path) -> Reader:
  """Weights of a network."""
  file = "text_encoder/model.safetensors"
  return _pipeline(root, {file: "safetensors"})


def shard_index(root: pathlib.Path) -> Reader:
  """Weights in shards with an index."""
  source = root.parent / f"{root.name}-one"
  tiny.write_tiny_pixels(source)
  interop.save_pipeline(root, interop.load_pipeline(source), max_shard_size=20_000)
  index = "unet/diffusion_pytorch_model.safetensors.index.json"
  return Reader(root, {index: "json"}, interop.load_pipeline)


def inspect_pipeline(root: pathlib.Path) -> Reader:
  """`dmpo-jax inspect` of a pipeline."""
  tiny.write_tiny_pixels(root)
  names = ("model_index.json", "unet/config.json", "text_encoder/config.json")
  names += ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")
  files = dict.fromkeys(names, "json") | {"unet/diffusion_pytorch_model.safetensors": "safetensors"}
  return Reader(root, files, lambda folder: command("inspect", folder))


def image(root: pathlib.Path) -> Reader:
  """Images of every format."""
  kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
  for number, kind in enumerate(kinds):
    (root / kind).write_bytes(sets.encoded(number, kind=kind))

  def read(folder):
    for kind in kinds:
      try:
        picture = images.read((folder / kind).read_bytes())
      except images.UndecodableError as error:
        raise InputError(str(error)) from error
      assert images.decode(picture.encoded).size == picture.size[::-1]

  return Reader(root, dict.fromkeys(kinds, "binary"), read)


def _table(root: pathlib.Path, name: str, kind: str, content: str | None = None) -> Reader:
  """`dmpo-jax data convert custom` of a table."""
  for i in range(2):
    sets.save(root / f"{i}.png", i)
  if content is not None:
    (root / name).write_text(content)

  def read(folder):
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
      source = "pickapic" if name.endswith("parquet") else "custom"
      table = folder if source == "pickapic" else folder / name
      command("data", "convert", source, table, "--out", f"{out}/out", "--workers", "1")

  return Reader(root, {name: kind}, read)


ROW = {"prompt": "é x", "label_0": 1, "image_0": "0.png", "image_1": "1.png", "weight": 0.5}


def csv_table(root: pathlib.Path) -> Reader:
  """A CSV table."""
  lines = ["prompt,image_0,image_1,label_0", '"é ""x""",0.png,1.png,1', "b,1.png,0.png,0"]
  return _table(root, "pairs.csv", "text", "\n".join(lines) + "\n")


def json_table(root: pathlib.Path) -> Reader:
  """A JSON table."""
  return _table(root, "pairs.json", "json", json.dumps([ROW, ROW | {"prompt": "b"}]))


def json_lines_table(root: pathlib.Path) -> Reader:
  """A table of JSON lines."""
  lines = [json.dumps(ROW), json.dumps(ROW | {"prompt": "b"})]
  return _table(root, "pairs.jsonl", "jsonl", "\n".join(lines) + "\n")


def parquet_table(root: pathlib.Path) -> Reader:
  """A parquet table."""
  sets.pickapic(root / "train-0.parquet", [sets.pickapic_row(i) for i in range(4)], group=2)
  return _table(root, "train-0.parquet", "binary")


def samples(root: pathlib.Path) -> Reader:
  """`dmpo-jax data judge` of a folder of samples."""
  shots = []
  for number in range(4):
    sets.save(root / f"{number}.png", number)
    shots.append({"file": f"{number}.png", "prompt": f"p{number // 2}", "seed": number % 2})
  (root / "manifest.json").write_text(json.dumps({"pipeline": "p", "images": shots}))
  read = lambda folder: command(  # noqa: E731
    "data", "judge", folder, "--score", "colourfulness", "--temperature", "1"
  )
  return Reader(root, {"manifest.json": "json", "0.png": "binary"}, read)


def run_record(root: pathlib.Path) -> Reader:
  """The record of a run, as `dmpo-jax export` reads it."""
  record = {"format": run_directory.FORMAT, "config": smallest_config().to_dict()}
  (root / "run.json").write_text(json.dumps(record))
  return Reader(root, {"run.json": "json"}, run_directory.run_config)


def summary(root: pathlib.Path) -> Reader:
  """The summary of a finished run, and its results."""
  (root / "pipeline").mkdir()
  (root / "pipeline" / "model_index.json").write_text("{}")
  result = results.Result(root / "pipeline", 5, 0, 1.0, 0.5, 2.0, 0)
  results.write_summary(root, result)
  read = lambda folder: results.read_summary(folder, 5)  # noqa: E731
  return Reader(root, {"summary.json": "json", "pipeline/model_index.json": "binary"}, read)


def stopped_run(root: pathlib.Path) -> Reader:
  """A run that an alarm has ended: its record, and the state of its alarms in a checkpoint."""
  config = default()
  watch = alarms.Alarms(config.health, is_first=False)
  watch.after_step(1, {"gradient_norm": 0.5})
  stop.write_stop(root, stop.stop_record(config, alarms.AlarmStop("drifts", 1, "by 60%")))
  (root / "state.json").write_text(json.dumps(watch.state()))

  def read(folder):
    if (record := stop.read_stop(folder, config)) is not None:
      str(stop.stopped_error(record, 1, folder))
    state = files.read_json(folder / "state.json")
    alarms.Alarms(config.health, is_first=False).restore(state)

  return Reader(root, {stop.STOP_FILE: "json", "state.json": "json"}, read)


def inspect_run(root: pathlib.Path) -> Reader:
  """`dmpo-jax inspect` of a run whose record is damaged."""
  tiny.write_tiny_pixels(root / "start")
  (root / "run").mkdir()
  make_run(root / "start", root / "run", steps=(1,), ema=True)
  read = lambda folder: command("inspect", folder / "run")  # noqa: E731
  return Reader(root, {"run/run.json": "json"}, read)


def checkpoint(root: pathlib.Path) -> Reader:
  """A checkpoint, whose checksums find other numbers."""
  state = {"kernel": jnp.arange(400, dtype=jnp.float32).reshape(20, 20), "step": jnp.ones(())}
  with contextlib.closing(Checkpoints(root, keep=None)) as checkpoints:
    checkpoints.save(1, state, {"next": 1})

  def read(folder):
    with contextlib.closing(Checkpoints(folder, keep=None, read_only=True)) as checkpoints:
      if checkpoints.latest() is None:
        raise InputError("no checkpoint")
      restored, _ = checkpoints.restore(checkpoints.latest(), state)
    np.testing.assert_array_equal(restored["kernel"], state["kernel"])

  paths = sorted(path for path in root.rglob("*") if path.is_file())
  return Reader(root, {str(path.relative_to(root)): "binary" for path in paths}, read)


def torch_file(root: pathlib.Path) -> Reader:
  """A state dict that torch.save wrote."""
  import torch

  torch.save({"state_dict": torch.nn.Linear(3, 2).state_dict(), "epoch": 1}, root / "a.pt")
  read = lambda folder: [t.read(None) for t in interop.open_tensors(folder / "a.pt").values()]  # noqa: E731
  return Reader(root, {"a.pt": "binary"}, read)


def metrics(root: pathlib.Path) -> Reader:
  """The metrics of a run that is resumed."""
  rows = [{"step": step, "loss": 0.5, "note": "x"} for step in range(1, 6)]
  (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

  def read(folder):
    metrics_file.MetricsWriter(folder, step=3).close()
    metrics_file.read(folder)

  return Reader(root, {"metrics.jsonl": "jsonl"}, read)


def prompts(root: pathlib.Path) -> Reader:
  """A file of prompts."""
  (root / "prompts.txt").write_text("a red fox\nthe digit é\n")
  read = lambda folder: prompt_sets.lines(folder / "prompts.txt")  # noqa: E731
  return Reader(root, {"prompts.txt": "text"}, read)


def sample_folder(root: pathlib.Path) -> Reader:
  """A folder of samples that is resumed."""
  settings = {"pipeline": "p", "seeds": [0, 1]}
  names = [image_folder.image_name(0, seed) for seed in (0, 1)]
  for seed, name in enumerate(names):
    sets.save(root / name, seed)
  (root / image_folder.MANIFEST).write_text(json.dumps(settings))
  read = lambda folder: image_folder.open_folder(  # noqa: E731
    folder, settings, names, shape=(12, 16, 3)
  )
  return Reader(root, {image_folder.MANIFEST: "json", names[0]: "binary"}, read)


def quickstart_samples(root: pathlib.Path) -> Reader:
  """Samples of the quickstart."""
  pixels = np.zeros((2, 8, 8, 1), np.float32)
  np.savez_compressed(root / "samples.npz", images=pixels, content="x")
  read = lambda folder: quickstart_samples_file._read(  # noqa: E731
    folder / "samples.npz", "x", pixels.shape
  )
  return Reader(root, {"samples.npz": "binary"}, read)


def emoji_sources(root: pathlib.Path) -> Reader:
  """`dmpo-jax data emoji` with a font and Unicode's list of emoji."""
  font, names = (path.name for path in emoji_font.write(root))

  def read(folder):
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
      paths = ("--font", folder / font, "--names", folder / names)
      command("data", "emoji", "--out", f"{out}/out", "--size", "16", *paths)

  return Reader(root, {font: "binary", names: "text"}, read)


def caption_tokenizer(root: pathlib.Path) -> Reader:
  """The tokenizer with which `data convert` counts tokens."""
  tiny.make_tokenizer().save_pretrained(root)

  def read(folder):
    captions.tokenizer.cache_clear()
    captions.tokens("a red fox", str(folder))

  kinds = {".json": "json", ".txt": "text"}
  files = {path.name: kinds[path.suffix] for path in root.iterdir() if path.suffix in kinds}
  return Reader(root, files, read)


CONFIG = '''"""A config."""

from dmpo_jax.training.config import default


def get_config():
  config = default()
  config.loss.name = "dmpo"
  config.optimizer.learning_rate = 1e-4
  return config
'''


def config_file(root: pathlib.Path) -> Reader:
  """A config file, which is a program."""
  (root / "c.py").write_text(CONFIG)
  read = lambda folder: load_config(str(folder / "c.py"), ())  # noqa: E731
  return Reader(root, {"c.py": "text"}, read)


READERS = {
  builder.__name__: builder
  for builder in (
    lora,
    kohya_lora,
    peft_lora,
    inspect_lora,
    model_index,
    network_configs,
    scheduler_config,
    tokenizer_files,
    weights,
    shard_index,
    inspect_pipeline,
    image,
    csv_table,
    json_table,
    json_lines_table,
    parquet_table,
    *DATA_READERS,
    samples,
    sample_folder,
    prompts,
    quickstart_samples,
    emoji_sources,
    caption_tokenizer,
    run_record,
    summary,
    stopped_run,
    inspect_run,
    checkpoint,
    metrics,
    torch_file,
    config_file,
  )
}
