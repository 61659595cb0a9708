"""Sources that `inspect` opens: a pipeline, a component, a weights file or a run."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from dmpo_jax.commands.inspect import checkpoint as inspect_checkpoint
from dmpo_jax.common import paths
from dmpo_jax.common.files import is_file
from dmpo_jax.errors import InputError, short
from dmpo_jax.interop import files, hub, pipeline, read_weights, tensor_file, weight_names
from dmpo_jax.models import config_fields
from dmpo_jax.training import goodput

CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")


class Component(NamedTuple):
  """A component of a pipeline.

  Attributes:
    kind: Name of its class, or "" if no file has it.
    config: Content of its config file.
    tensors: Torch name -> object with shape, dtype, and `read(None)` for the values.
    size: Bytes on disk of the weights, or of all files where there are no weights.
    variants: Variants of the weights; None stands for weights without a variant.
    variant: Variant of these weights.
    others: Other files by name, such as vocabularies.
    notes: Sentences to show.
  """

  kind: str
  config: Mapping[str, Any]
  tensors: Mapping[str, Any]
  size: int
  variants: tuple[str | None, ...] = ()
  variant: str | None = None
  others: Mapping[str, paths.Path] = {}
  notes: tuple[str, ...] = ()


class Source(NamedTuple):
  """A pipeline, component, weights file or run.

  Attributes:
    path: Path or repository, as on the command line.
    kind: Kind of source, in words.
    facts: Facts about the whole, in words, to show.
    components: Components by name.
    metadata: Header of a single file.
  """

  path: str
  kind: str
  facts: Mapping[str, Any]
  components: Mapping[str, Component]
  metadata: Mapping[str, str] = {}


def open_source(
  location: str, *, variant: str | None, weights: str | None, revision: str | None = None
) -> Source:
  """Opens a source of any kind; of its weights only names, shapes and dtypes are read.

  Args:
    location: A pipeline folder, the name of a repository on the hub, the folder of one component, a
      safetensors file, the directory of a run, or one of its checkpoints.
    variant: Variant of the weights of a pipeline or component; None: weights without a variant, or
      else the first one.
    weights: Weights of a run: "ema", "last" or "reference"; None: the EMA where it has one.
    revision: Branch, tag or commit of a repository.

  Returns:
    `Source`.

  Raises:
    InputError: The location is none of these, or is damaged.
  """
  path = paths.parse(location)
  if revision is not None and hub.is_folder(location):
    raise InputError(
      f"revision is {revision!r}, and {location!r} is no repository of the hub, which alone has "
      "revisions"
    )
  if path.is_file():
    _check_no_effect(location, "a single file", variant=variant, weights=weights)
    return _file(location, path)
  if not path.is_dir() and hub.REPOSITORY.fullmatch(location):
    path = hub.locate(
      location, pipeline.INDEX, lambda _, names: _wanted(names, variant), revision=revision
    )
  if not path.is_dir():
    raise InputError(f"{location} is neither a file nor a folder, nor a repository's owner/name")
  run, step = inspect_checkpoint.run_of(path)
  if run is not None:
    _check_no_effect(location, "a run", variant=variant)
    return _run(location, run, step, weights or "ema")
  _check_no_effect(location, "no run", weights=weights)
  if (path / pipeline.INDEX).is_file():
    return _pipeline(location, path, variant)
  if any((path / name).is_file() for name in CONFIGS):
    component = _component(path, variant, "")
    return Source(location, "one component", {}, {path.resolve().name: component})
  single = sorted(path.glob(f"*{weight_names.SUFFIX}"))
  if len(single) == 1:
    _check_no_effect(location, "a single file", variant=variant)
    return _file(location, single[0])
  raise InputError(
    f"{location} is not a pipeline ({pipeline.INDEX}), component (config.json) or run (run.json), "
    f"and does not have exactly one {weight_names.SUFFIX} file: "
    f"{', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'}"
  )


def _check_no_effect(
  location: str, what: str, *, variant: str | None = None, weights: str | None = None
) -> None:
  """Raises InputError for an option that has no effect on a source of this kind."""
  for option, value in (("variant", variant), ("weights", weights)):
    if value is not None:
      raise InputError(f"{location} is {what}, on which the option {option} has no effect")


def _pipeline(location: str, path: paths.Path, variant: str | None) -> Source:
  index = files.read_json(path / pipeline.INDEX)
  components = {}
  for name, (_, kind) in pipeline.components_of(index).items():
    if not (path / name).is_dir():
      raise InputError(f"{path} has no {name}/, which its {pipeline.INDEX} names")
    components[name] = _component(path / name, variant, kind)
  if variant and not any(c.variant == variant for c in components.values()):
    variants = {v for c in components.values() for v in c.variants}
    listed = ", ".join("none" if v is None else v for v in sorted(variants, key=str))
    raise InputError(
      f"{location} has no weights of variant {variant!r}; it has: {listed or 'nothing'}"
    )
  absent = [k for k, v in index.items() if isinstance(v, list) and v and v[-1] is None]
  facts = {"class": index.get("_class_name", "unknown")}
  if absent:
    facts["without"] = ", ".join(absent)
  return Source(location, "pipeline", facts, components)


def _component(folder: paths.Path, variant: str | None, kind: str) -> Component:
  by_name = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
  config = next((files.read_json(by_name[name]) for name in CONFIGS if name in by_name), {})
  with files.located(folder):
    kind = next(iter(config_fields.class_names(config)), kind)
  stem = next((s for s in weight_names.STEMS if weight_names.variants(list(by_name), s)), None)
  if stem is None:
    pickled = [name for name in by_name if name.endswith(weight_names.PICKLES)]
    notes = (f"the weights are pickled and not read: {', '.join(pickled)}",) if pickled else ()
    others = {k: v for k, v in by_name.items() if k not in (*CONFIGS, *pickled)}
    return Component(kind, config, {}, _bytes(by_name.values()), others=others, notes=notes)
  variants = weight_names.variants(list(by_name), stem)
  chosen = variant if variant in variants else variants[0]
  if None in variants and variant not in variants:
    chosen = None
  weights = weight_names.find(list(by_name), stem, chosen)
  with files.located(folder):
    described = (
      {"_class_name": kind} if stem == weight_names.STEMS[0] else {"architectures": [kind]}
    )
    tensors = read_weights.open_folder(folder, described, chosen)
  size = _bytes(by_name[name] for name in weights if name.endswith(weight_names.SUFFIX))
  return Component(kind, config, tensors, size, tuple(variants), chosen)


def _file(location: str, path: paths.Path) -> Source:
  if path.suffix != weight_names.SUFFIX:
    pickled = path.suffix in weight_names.PICKLES
    what = "pickled, and unpickling can run any code" if pickled else "of another kind"
    raise InputError(f"{path} is {what}; only {weight_names.SUFFIX} files are read")
  with files.located(path.parent):
    tensors, metadata = tensor_file.open_file(path, advice="it may be cut short: get it again")
  size = path.stat().st_size
  return Source(location, "weights", {}, {path.stem: Component("", {}, tensors, size)}, metadata)


def _run(location: str, run: paths.Path, step: int | None, weights: str) -> Source:
  """Run with the trained components of a checkpoint and the others of the base pipeline."""
  from dmpo_jax.training.run_directory import run_config

  config = run_config(run).to_dict()
  checkpoint = inspect_checkpoint.open_checkpoint(run, step, weights=weights)
  components: dict[str, Component] = {}
  origin = config["pipeline"] or "new networks"
  if is_file(paths.parse(origin) / pipeline.INDEX):
    variant = config.get("variant") or None
    components |= _pipeline(origin, paths.parse(origin), variant).components
  elif config["pipeline"]:
    origin += " (no such folder; frozen components are not shown)"
  for name, fields in config["model"].items():
    if not isinstance(fields, Mapping):
      raise InputError(f"{run}: config.model.{name} is {short(fields)}, expected a section")
    base = components.get(name, Component("", {}, {}, 0))
    with files.located(f"{run}: config.model.{name}"):
      kind = next(iter(config_fields.class_names(fields)), base.kind)
    components[name] = base._replace(kind=kind, config={**base.config, **fields})
  lora, trained = config.get("lora") or {}, set()
  for name, tensors in checkpoint.components.items():
    base = components.get(name, Component("", {}, {}, 0))
    size = sum(tensor.size for tensor in tensors.values())
    if lora.get("rank"):
      fields = {"rank": lora["rank"], "alpha": lora["alpha"]}
      name, base = f"{name} LoRA", Component("LoRA", fields, {}, 0)
    components[name] = Component(base.kind, base.config, tensors, size)
    trained.add(name)
  for name, component in components.items():
    if name not in trained and component.tensors:
      components[name] = component._replace(notes=("frozen: equal to the base pipeline",))
  facts = {
    "step": f"{checkpoint.step} (checkpoints: {', '.join(map(str, checkpoint.steps))})",
    "weights": checkpoint.weights,
    "trained": ", ".join(config["trained"]),
    "loss": _settings(config["loss"]),
    "data": _settings(config["data"]),
    "base pipeline": origin,
  }
  if (record := goodput.read_or_warn(run)) is not None:
    facts["goodput"] = goodput.text(record)
  return Source(location, "checkpoint of a run", facts, components)


def _settings(section: Mapping[str, Any]) -> str:
  rest = ", ".join(f"{key} {value}" for key, value in section.items() if key != "name")
  return f"{section.get('name')}{f' ({rest})' if rest else ''}"


def _bytes(found: Collection[paths.Path]) -> int:
  return sum(path.stat().st_size for path in found)


def _wanted(names: Collection[str], variant: str | None) -> list[str]:
  """Files of a repository to download: configs, vocabularies, one set of weights a component."""
  wanted = [name for name in names if name.endswith((".json", ".txt")) and name.count("/") <= 1]
  for folder in {name.split("/")[0] for name in names if name.count("/") == 1}:
    below = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
    for stem in weight_names.STEMS:
      variants = weight_names.variants(below, stem)
      if variants:
        chosen = variant if variant in variants else None if None in variants else variants[0]
        wanted += [f"{folder}/{name}" for name in weight_names.find(below, stem, chosen)]
  return wanted
