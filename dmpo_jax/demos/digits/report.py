"""HTML report of the quickstart, made from a plain dict."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dmpo_jax.demos.digits import report_method, report_results, report_text
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import html, plots

REQUIRED = {
  "": (
    "title",
    "created",
    "machine",
    "versions",
    "seconds",
    "data",
    "sampling",
    "models",
    "export",
  ),
  "data": (
    "train_images",
    "test_images",
    "pairs",
    "temperature",
    "label_flip_rate",
    "classifier_accuracy",
    "classifier_test_images",
    "real_ink",
  ),
  "model": (
    "name",
    "label",
    "hyperparameters",
    "ink",
    "ink_values",
    "ink_gain",
    "win_rate",
    "digit_accuracy",
    "accuracy_change",
    "diversity",
    "grid_png",
    "curves",
    "train_seconds",
    "pairs_per_second",
  ),
  "diversity": ("pairwise", "vendi"),
  "curves": ("step", "preferred_error", "rejected_error", "loss", "accuracy", "logit"),
  "export": ("path", "files", "torch_check"),
}


def render(results: Mapping) -> str:
  """Report as one HTML page that needs no other file and no network.

  An aligned model is marked if its digits are not heavier beyond the 95% intervals, if they are
  recognised less often, or if they vary less.

  Args:
    results: Measurements. An Interval is any (value, low, high). `measure` gives the fields of a
      model from `ink` to `diversity`.

      title, created (ISO date), machine: str. versions: {name: str}. seconds: {phase: float}.
      data: train_images, test_images, pairs: int. temperature: float, of the labelling rule.
        label_flip_rate: float, fraction of pairs in which the lighter image is preferred.
        classifier_accuracy: Interval or float. classifier_test_images: int. real_ink: Interval.
        Optional: real_ink_values [float], real_diversity (like a model's, of as many images per
        caption), classifier_heavier_accuracy (Interval), pairs_png (`image_grids.pairs`).
      sampling: {name: value}, shown unchanged ("steps", "guidance", "seeds per caption", ...).
      models: one dict each, the reference first (name "reference"):
        name, label: str. hyperparameters: {name: value}. ink, digit_accuracy: Interval.
        ink_values: [float], one per (caption, seed).
        ink_gain, win_rate, accuracy_change: Interval against the reference, paired by caption and
          seed; None for the reference.
        diversity: {"pairwise": Interval, "vendi": float}. grid_png: bytes (`image_grids.grid`).
        curves: None or {"step", "preferred_error", "rejected_error", "loss", "accuracy", "logit"},
          lists of one length; the errors are policy minus reference, e_w - r_w and e_l - r_l.
        train_seconds: float. pairs_per_second: float or None.
      export: path: str. files: [str]. torch_check: None or {name: value}, with
        "max_abs_difference" and "diffusers_version".
      Optional: command: str, which makes the report again.

  Returns:
    HTML; the same for the same results.

  Raises:
    InputError: A field is missing or has the wrong type; the message names it.
  """
  results = _checked(results)
  reference, *aligned = results["models"]
  colours = {
    model["name"]: (plots.LIGHT.models[i % 6], plots.DARK.models[i % 6])
    for i, model in enumerate(results["models"])
  }
  body = [
    report_results.header(results, reference, aligned),
    html.section("The same captions and seeds", report_results.sheets(reference, aligned)),
    html.section(
      "The numbers",
      report_results.table(results, colours) + report_results.comparisons(results["models"]),
    ),
    html.section("How the ink is spread", report_results.ink(results)),
    html.section("What training did to the errors", report_results.training(aligned)),
    html.section("Where the preferences come from", report_method.preferences(results["data"])),
    html.section("What the numbers mean", report_method.meaning(results, aligned)),
    html.section("Settings, time and export", report_method.settings(results)),
    html.section("Make it again", report_method.again(results)),
  ]
  return html.page(results["title"], "".join(body), list(colours.values()))


def _checked(results: Mapping) -> dict:
  _has(results, "results", REQUIRED[""])
  _has(results["data"], "results['data']", REQUIRED["data"])
  _has(results["export"], "results['export']", REQUIRED["export"])
  _interval(results["data"]["real_ink"], "results['data']['real_ink']")
  models = results["models"]
  names = [model.get("name") for model in models if isinstance(model, Mapping)]
  if len(names) != len(models) or not names or names[0] != "reference":
    raise InputError(f"results['models'] must begin with the model named 'reference', got {names}")
  if len(set(names)) != len(names):
    raise InputError(f"results['models'] must have different names, got {names}")
  for model in models:
    _check_model(model, f"results['models'][{model['name']!r}]")
  return dict(results)


def _check_model(model: Mapping, where: str) -> None:
  _has(model, where, REQUIRED["model"])
  _has(model["diversity"], f"{where}['diversity']", REQUIRED["diversity"])
  for key in ("ink", "digit_accuracy"):
    _interval(model[key], f"{where}[{key!r}]")
  _interval(model["diversity"]["pairwise"], f"{where}['diversity']['pairwise']")
  for key in report_text.COMPARED:
    if model["name"] != "reference":
      _interval(model[key], f"{where}[{key!r}]")
    elif model[key] is not None:
      raise InputError(f"{where}[{key!r}] must be None: the reference has no comparison")
  if not (isinstance(model["grid_png"], bytes) and model["grid_png"].startswith(b"\x89PNG")):
    raise InputError(
      f"{where}['grid_png'] must be the bytes of a PNG file (image_grids.grid makes them)"
    )
  if not len(model["ink_values"]):
    raise InputError(f"{where}['ink_values'] is empty; it holds the ink of every sample")
  if model["curves"] is None:
    return
  _has(model["curves"], f"{where}['curves']", REQUIRED["curves"])
  lengths = {key: len(model["curves"][key]) for key in REQUIRED["curves"]}
  if len(set(lengths.values())) != 1 or not lengths["step"]:
    raise InputError(f"{where}['curves'] must be lists of one length >= 1, got lengths {lengths}")
  for key in REQUIRED["curves"]:
    if not np.isfinite(np.asarray(model["curves"][key], np.float64)).all():
      raise InputError(f"{where}['curves'][{key!r}] holds NaN or infinity")


def _has(part: object, where: str, keys: Sequence[str]) -> None:
  if not isinstance(part, Mapping):
    raise InputError(f"{where} must be a dict with {', '.join(keys)}; got {type(part).__name__}")
  missing = [key for key in keys if key not in part]
  if missing:
    raise InputError(f"{where} lacks {', '.join(missing)}; it needs {', '.join(keys)}")


def _interval(value: object, where: str) -> None:
  is_three = isinstance(value, Sequence) and len(value) == 3 and not isinstance(value, str)
  if not (is_three and all(math.isfinite(x) for x in value) and value[1] <= value[2]):
    raise InputError(f"{where} must be an Interval (value, low, high), finite, got {value!r}")
