"""What lies at a path: a pipeline, a network, a file of weights or a run; opened, not yet read."""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import safetensors

from dmpo_jax.commands.inspect import checkpoint as inspect_checkpoint
from dmpo_jax.errors import InputError
from dmpo_jax.interop import files, hub, pipeline, read_weights, weight_names

CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")


class Component(NamedTuple):
  """A part of a pipeline.

  Attributes:
    kind: Its class, or "" where nothing says it.
    config: The content of its config file.
    tensors: Torch name -> something with a shape and a dtype, and `read(None)` for the numbers.
    size: Bytes on disk: of the weights, or of all files where there are none.
    variants: The variants of which there are weights; None stands for those without one.
    variant: The one whose weights these are.
    others: Its other files, by name: vocabularies and the like.
    notes: What else should be known.
  """

  kind: str
  config: Mapping[str, Any]
  tensors: Mapping[str, Any]
  size: int
  variants: tuple[str | None, ...] = ()
  variant: str | None = None
  others: Mapping[str, pathlib.Path] = {}
  notes: tuple[str, ...] = ()


class Source(NamedTuple):
  """What was found.

  Attributes:
    path: Where, as it was given.
    kind: What it is, in words.
    facts: What is known about the whole, in words, to be shown.
    components: By name.
    metadata: The header of a single file.
  """

  path: str
  kind: str
  facts: Mapping[str, Any]
  components: Mapping[str, Component]
  metadata: Mapping[str, str] = {}


def open_source(given: str, *, variant: str | None, average: bool) -> Source:
  """Finds out what lies at a path, and opens it.

  Args:
    given: A pipeline folder, the name of a repository on the hub, the folder of one component, a
      safetensors file, the directory of a run, or one of its checkpoints.
    variant: Which weights of a pipeline or component; None: those without one, or else the first.
    average: Of a run, whether to take the moving average where it keeps one.

  Returns:
    A `Source`; of weights, only names, shapes and dtypes have been read.

  Raises:
    InputError: It is nothing of this kind, or damaged.
  """
  path = pathlib.Path(given)
  if path.is_file():
    return _file(given, path)
  if not path.is_dir() and hub.REPOSITORY.fullmatch(given):
    path = hub.locate(
      given, pipeline.INDEX, lambda _, names: _wanted(names, variant), revision=None
    )
  if not path.is_dir():
    raise InputError(f"{given} is neither a file nor a folder, nor a repository's owner/name")
  run, step = inspect_checkpoint.run_of(path)
  if run is not None:
    return _run(given, run, step, average)
  if (path / pipeline.INDEX).is_file():
    return _pipeline(given, path, variant)
  if any((path / name).is_file() for name in CONFIGS):
    component = _component(path, variant, "")
    return Source(given, "one component", {}, {path.resolve().name: component})
  single = sorted(path.glob(f"*{weight_names.SUFFIX}"))
  if len(single) == 1:
    return _file(given, single[0])
  raise InputError(
    f"{given} is no pipeline ({pipeline.INDEX}), no component (config.json), no run (run.json) and "
    f"does not hold exactly one {weight_names.SUFFIX} file; it holds "
    f"{', '.join(sorted(os.listdir(path))[:8]) or 'nothing'}"
  )


def _pipeline(given: str, path: pathlib.Path, variant: str | None) -> Source:
  index = files.read_json(path / pipeline.INDEX)
  components = {}
  for name, (_, kind) in pipeline.components_of(index).items():
    if not (path / name).is_dir():
      raise InputError(f"{path} has no {name}/, which its {pipeline.INDEX} names")
    components[name] = _component(path / name, variant, kind)
  if variant and not any(c.variant == variant for c in components.values()):
    found = {v for c in components.values() for v in c.variants}
    listed = ", ".join("none" if v is None else v for v in sorted(found, key=str))
    raise InputError(
      f"{given} has no weights of variant {variant!r}; it has: {listed or 'nothing'}"
    )
  absent = [k for k, v in index.items() if isinstance(v, list) and v and v[-1] is None]
  facts = {"class": index.get("_class_name", "not said")}
  if absent:
    facts["without"] = ", ".join(absent)
  return Source(given, "pipeline", facts, components)


def _component(folder: pathlib.Path, variant: str | None, kind: str) -> Component:
  there = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
  config = next((files.read_json(there[name]) for name in CONFIGS if name in there), {})
  kind = config.get("_class_name") or next(iter(config.get("architectures") or []), None) or kind
  stem = next((s for s in weight_names.STEMS if weight_names.variants(list(there), s)), None)
  if stem is None:
    pickled = [name for name in there if name.endswith(weight_names.PICKLES)]
    notes = (f"the weights are pickled and not read: {', '.join(pickled)}",) if pickled else ()
    others = {k: v for k, v in there.items() if k not in (*CONFIGS, *pickled)}
    return Component(kind, config, {}, _bytes(there.values()), others=others, notes=notes)
  variants = weight_names.variants(list(there), stem)
  chosen = variant if variant in variants else variants[0]
  if None in variants and variant not in variants:
    chosen = None
  found = weight_names.find(list(there), stem, chosen)
  with files.located(folder):
    described = (
      {"_class_name": kind} if stem == weight_names.STEMS[0] else {"architectures": [kind]}
    )
    tensors = read_weights.open_folder(folder, described, chosen)
  size = _bytes(there[name] for name in found if name.endswith(weight_names.SUFFIX))
  return Component(kind, config, tensors, size, tuple(variants), chosen)


def _file(given: str, path: pathlib.Path) -> Source:
  if path.suffix != weight_names.SUFFIX:
    what = (
      "pickled, and unpickling can run any code"
      if path.suffix in weight_names.PICKLES
      else ("no such file")
    )
    raise InputError(f"{path} is {what}; only {weight_names.SUFFIX} files are read")
  with files.located(path.parent):
    tensors = read_weights.open_file(path)
  with safetensors.safe_open(path, framework="numpy") as opened:
    metadata = opened.metadata() or {}
  size = path.stat().st_size
  return Source(given, "weights", {}, {path.stem: Component("", {}, tensors, size)}, metadata)


def _run(given: str, run: pathlib.Path, step: int | None, average: bool) -> Source:
  """The trained components from a checkpoint, the others from the pipeline it started from."""
  from dmpo_jax.training.run_directory import read_run

  config = read_run(run)["config"]
  checkpoint = inspect_checkpoint.open_checkpoint(run, step, average=average)
  components: dict[str, Component] = {}
  origin = config["pipeline"] or "new networks"
  if (pathlib.Path(origin) / pipeline.INDEX).is_file():
    components |= _pipeline(origin, pathlib.Path(origin), None).components
  elif config["pipeline"]:
    origin += " (no folder here; its frozen parts are not shown)"
  for name, fields in config["model"].items():
    known = components.get(name, Component("", {}, {}, 0))
    kind = fields.get("_class_name") or next(iter(fields.get("architectures") or []), known.kind)
    components[name] = known._replace(kind=kind, config={**known.config, **fields})
  lora, trained = config.get("lora") or {}, set()
  for name, tensors in checkpoint.components.items():
    known = components.get(name, Component("", {}, {}, 0))
    size = sum(tensor.size for tensor in tensors.values())
    if lora.get("rank"):
      fields = {"rank": lora["rank"], "alpha": lora["alpha"]}
      name, known = f"{name} LoRA", Component("LoRA", fields, {}, 0)
    components[name] = Component(known.kind, known.config, tensors, size)
    trained.add(name)
  for name, component in components.items():
    if name not in trained and component.tensors:
      components[name] = component._replace(notes=("frozen: as in the starting pipeline",))
  facts = {
    "step": f"{checkpoint.step} (checkpoints: {', '.join(map(str, checkpoint.steps))})",
    "parameters": checkpoint.weights,
    "trained": ", ".join(config["trained"]),
    "objective": _settings(config["loss"]),
    "data": _settings(config["data"]),
    "started from": origin,
  }
  return Source(given, "checkpoint of a run", facts, components)


def _settings(section: Mapping[str, Any]) -> str:
  rest = ", ".join(f"{key} {value}" for key, value in section.items() if key != "name")
  return f"{section.get('name')}{f' ({rest})' if rest else ''}"


def _bytes(found: Collection[pathlib.Path]) -> int:
  return sum(file.stat().st_size for file in found)


def _wanted(names: Collection[str], variant: str | None) -> list[str]:
  """Of a repository: configs, vocabularies, and one set of weights of each component."""
  wanted = [name for name in names if name.endswith((".json", ".txt")) and name.count("/") <= 1]
  for folder in {name.split("/")[0] for name in names if name.count("/") == 1}:
    below = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
    for stem in weight_names.STEMS:
      variants = weight_names.variants(below, stem)
      if variants:
        chosen = variant if variant in variants else None if None in variants else variants[0]
        wanted += [f"{folder}/{name}" for name in weight_names.find(below, stem, chosen)]
  return wanted
