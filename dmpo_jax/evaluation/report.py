"""The report of a run: one HTML file with its pictures inside, made from a plain dict."""

import base64
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import plots
from dmpo_jax.evaluation.scores import Interval
from dmpo_jax.evaluation.stylesheet import CSS

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
    "label_noise",
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
  "curves": ("step", "winner_error", "loser_error", "loss", "accuracy", "logit"),
  "export": ("path", "files", "torch_check"),
}
COMPARED = ("ink_gain", "win_rate", "accuracy_change")


def render(results: Mapping) -> str:
  """The report as one HTML page that needs no other file and no network.

  It says in words what the numbers say: an aligned model that does not write heavier digits beyond
  its 95% intervals, or whose digits are named right less often, or that varies less, is marked so.

  Args:
    results: What the run measured. An Interval is any (value, low, high). `measure` gives the
      fields of a model from `ink` to `diversity`.

      title, created (ISO date), machine: str. versions: {name: str}. seconds: {phase: float}.
      data: train_images, test_images, pairs: int. temperature: float, of the labels' rule.
        label_noise: float, share of pairs in which the lighter image was preferred.
        classifier_accuracy: Interval or float. classifier_test_images: int. real_ink: Interval.
        Optional: real_ink_values [float], real_diversity (as a model's, on as many images per
        caption), classifier_heavier_accuracy (Interval), pairs_png (`plots.pairs`).
      sampling: {name: value}, shown as given ("steps", "guidance", "seeds per caption", ...).
      models: one dict each, the reference first (name "reference"):
        name, label: str. hyperparameters: {name: value}. ink, digit_accuracy: Interval.
        ink_values: [float], one per (caption, seed).
        ink_gain, win_rate, accuracy_change: Interval against the reference, paired by caption and
          seed; None for the reference.
        diversity: {"pairwise": Interval, "vendi": float}. grid_png: bytes (`plots.grid`).
        curves: None or {"step", "winner_error", "loser_error", "loss", "accuracy", "logit"}, lists
          of one length; the errors are policy minus reference, e_w - r_w and e_l - r_l.
        train_seconds: float. pairs_per_second: float or None.
      export: path: str. files: [str]. torch_check: None or {name: value}, with
        "max_abs_difference" and "diffusers_version".
      Optional: command: str, what makes the report again.

  Returns:
    HTML; equal for equal results.

  Raises:
    InputError: A field is missing or is not what it should be; the message says which.
  """
  results = _checked(results)
  reference, *aligned = results["models"]
  colours = {
    model["name"]: (plots.LIGHT.models[i % 6], plots.DARK.models[i % 6])
    for i, model in enumerate(results["models"])
  }
  body = [
    _header(results, reference, aligned),
    _section("The same captions and seeds", _sheets(reference, aligned)),
    _section("The numbers", _table(results, colours) + _comparisons(results["models"])),
    _section("How the ink is spread", _ink(results)),
    _section("What training did to the errors", _training(aligned)),
    _section("Where the preferences come from", _preferences(results["data"])),
    _section("What the numbers mean", _meaning(results, aligned)),
    _section("Settings, time and export", _settings(results)),
    _section("Make it again", _again(results)),
  ]
  variables = "".join(
    f".m{i}{{--model:{light}}}@media(prefers-color-scheme:dark){{.m{i}{{--model:{dark}}}}}"
    for i, (light, dark) in enumerate(colours.values())
  )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{_text(results['title'])}</title>\n<style>{CSS}{variables}</style>\n</head>\n"
    f"<body><main>\n{''.join(body)}</main></body>\n</html>\n"
  )


def verdict(model: Mapping, reference: Mapping) -> tuple[str, str, list[str]]:
  """What a model's numbers say against the reference, beyond their 95% intervals.

  Args:
    model: An aligned model, as `render` takes it.
    reference: The reference.

  Returns:
    kind: "good" (heavier and the digits stay right), "warn" (heavier, but the digits suffer) or
      "bad" (not heavier).
    summary: A few words.
    remarks: Sentences on what got worse or is not shown; empty if there is nothing to say.
  """
  gain, rate, change = (Interval(*model[key]) for key in COMPARED)
  heavier = rate.low > 0.5 and gain.low > 0
  wrong = change.high < 0
  remarks = []
  if not heavier:
    how = "lighter than" if rate.high < 0.5 and gain.high < 0 else "not shown to be heavier than"
    remarks.append(
      f"Its digits are {how} the reference's: win rate {_share(rate.value)} "
      f"({_between(rate, _share)}), ink {_signed(gain.value)} ({_between(gain, _signed)})."
    )
  if wrong:
    remarks.append(
      f"The digit asked for is recognised less often than in the reference: "
      f"{_share(reference['digit_accuracy'][0])} before, {_share(model['digit_accuracy'][0])} now "
      f"({_points(change.value)} points, {_between(change, _points)})."
    )
  before, after = (Interval(*m["diversity"]["pairwise"]) for m in (reference, model))
  if after.high < before.low:
    remarks.append(
      f"Its samples of one caption differ less from each other: distance {after.value:.3f} "
      f"against {before.value:.3f}, the intervals apart."
    )
  if not heavier:
    kind, summary = "bad", "Did not learn the preference"
    if wrong:
      summary += ", and digits get lost"
  elif wrong:
    kind, summary = "warn", "Heavier strokes, but digits get lost"
  else:
    kind, summary = "good", "Heavier strokes, same digits"
  return kind, summary, remarks


# ---- checking what was given


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
  for key in COMPARED:
    if model["name"] != "reference":
      _interval(model[key], f"{where}[{key!r}]")
    elif model[key] is not None:
      raise InputError(f"{where}[{key!r}] must be None: the reference is compared with nothing")
  if not (isinstance(model["grid_png"], bytes) and model["grid_png"].startswith(b"\x89PNG")):
    raise InputError(f"{where}['grid_png'] must be the bytes of a PNG file (plots.grid makes them)")
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


# ---- words and numbers


def _text(value: object) -> str:
  return html.escape(str(value))


def _share(x: float) -> str:
  return f"{x:.0%}" if x in (0, 1) else f"{x:.1%}"


def _signed(x: float) -> str:
  return f"{x:+.3f}".replace("-", "−")


def _points(x: float) -> str:
  return f"{100 * x:+.1f}".replace("-", "−")


def _ends(interval: Sequence[float], form: Callable[[float], str]) -> str:
  return f"{form(interval[1])} to {form(interval[2])}"


def _between(interval: Sequence[float], form: Callable[[float], str]) -> str:
  return f"95% interval {_ends(interval, form)}"


def _names(models: Iterable[Mapping]) -> str:
  labels = [model["label"] for model in models]
  return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _value(value: object) -> str:
  if isinstance(value, bool) or not isinstance(value, float):
    return _text(value)
  return _text(f"{value:.4g}")


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest} s"


# ---- pieces of HTML


def _section(title: str, content: str) -> str:
  return f"<section>\n<h2>{title}</h2>\n{content}</section>\n" if content else ""


def _picture(png: bytes, alt: str, kind: str = "") -> str:
  return f'<img class="{kind}" alt="{_text(alt)}" src="{_uri(png)}">'


def _plot(draw: Callable[[plots.Theme], bytes], alt: str) -> str:
  """A plot in the colours of a light and of a dark page; the reader's setting chooses."""
  return (
    f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(draw(plots.DARK))}">'
    f'<img alt="{_text(alt)}" src="{_uri(draw(plots.LIGHT))}"></picture>'
  )


def _uri(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def _figure(title: str, content: str, caption: str) -> str:
  return f"<figure><h3>{_text(title)}</h3>{content}<figcaption>{caption}</figcaption></figure>\n"


def _pairs_table(rows: Mapping[str, object], kind: str = "left") -> str:
  cells = "".join(f"<tr><th>{_text(k)}</th><td>{_value(v)}</td></tr>" for k, v in rows.items())
  return f'<div class="scroll"><table class="{kind}">{cells}</table></div>'


# ---- sections


def headline(aligned: Sequence[Mapping], reference: Mapping) -> str:
  """One or more sentences that say which models learned the preference and at what cost.

  Args:
    aligned: The aligned models, as `render` takes them.
    reference: The reference.

  Returns:
    Plain text.
  """
  if not aligned:
    return "Only the reference was sampled; nothing was aligned."
  groups = {"good": [], "warn": [], "bad": []}
  for model in aligned:
    groups[verdict(model, reference)[0]].append(model)
  said = []
  for kind, models in groups.items():
    if not models:
      continue
    one = len(models) == 1
    if kind == "good":
      said.append(
        f"{_names(models)} learned the preference: heavier strokes, and the digits stay right."
      )
    elif kind == "warn":
      said.append(f"{_names(models)} {'writes' if one else 'write'} heavier, but digits get lost.")
    else:
      said.append(f"{_names(models)} did not learn to write heavier than the reference.")
  return " ".join(said)


def _header(results: Mapping, reference: Mapping, aligned: Sequence[Mapping]) -> str:
  parts = [
    f'<p class="eyebrow">{_text(results["title"])}</p>\n'
    f"<h1>{_text(headline(aligned, reference))}</h1>\n"
  ]
  if aligned:
    parts.append(f'<p class="lead">{_text(_in_numbers(aligned[0], reference))}</p>\n')
  parts.append(
    f'<p class="faint">{_text(results["created"])} · {_text(results["machine"])} · '
    f"every number on this page was computed in this run "
    f"({_duration(sum(results['seconds'].values()))})</p>\n"
  )
  parts.append('<div class="cards">\n')
  for number, model in enumerate(aligned, start=1):
    kind, summary, remarks = verdict(model, reference)
    mark = {"good": "✓", "warn": "!", "bad": "✗"}[kind]
    gain, rate, right = (Interval(*model[k]) for k in ("ink_gain", "win_rate", "digit_accuracy"))
    rows = [
      ("ink gained", gain, _signed),
      ("win rate", rate, _share),
      ("digit right", right, _share),
    ]
    figures = "".join(
      f"<dt>{name}</dt><dd><b>{form(x.value)}</b><small>{_ends(x, form)}</small></dd>"
      for name, x, form in rows
    )
    parts.append(
      f'<div class="card m{number}"><h3>{_text(model["label"])}</h3>'
      f'<span class="badge {kind}">{mark} {summary}</span><dl class="figures">{figures}</dl>'
      + "".join(f'<p class="remark">{_text(remark)}</p>' for remark in remarks)
      + "</div>\n"
    )
  return "".join(parts) + "</div>\n"


def _in_numbers(model: Mapping, reference: Mapping) -> str:
  gain, rate, change = (Interval(*model[key]) for key in COMPARED)
  count = len(model["ink_values"])
  often = f"{_share(rate.value)} of {count} comparisons ({_between(rate, _share)})"
  return (
    f"From the same captions and seeds, {model['label']}'s digits have a mean ink of "
    f"{model['ink'][0]:.3f} where the reference's have {reference['ink'][0]:.3f} "
    f"({_signed(gain.value)}, {_between(gain, _signed)}). They are the heavier ones in "
    f"{f'all {count} comparisons' if rate.low == 1 else often}. The digit asked for is "
    f"recognised in {_share(model['digit_accuracy'][0])} of its samples, against "
    f"{_share(reference['digit_accuracy'][0])} in the reference "
    f"({_points(change.value)} points, {_between(change, _points)})."
  )


def _sheets(reference: Mapping, aligned: Sequence[Mapping]) -> str:
  # A wide page shows the reference once and all models beside it; on a narrow one, where two fit
  # side by side, it stands again beside each.
  sheets = [_sheet(reference)]
  for number, model in enumerate(aligned):
    sheets += [_sheet(reference, "again")] * (number > 0) + [_sheet(model)]
  return (
    "<p>Each row is a caption, each column a seed: the same place on two sheets began from the "
    "same noise. Dark is ink. They are the first seeds of each caption; none was picked.</p>\n"
    f'<div class="sheets">\n{"".join(sheets)}</div>\n'
  )


def _sheet(model: Mapping, kind: str = "") -> str:
  words = f"mean ink {model['ink'][0]:.3f}"
  if model["win_rate"] is not None:
    words += f", win rate {_share(model['win_rate'][0])}"
  picture = _picture(model["grid_png"], f"samples of {model['label']}", "sheet")
  return (
    f'<figure class="{kind}"><h3>{_text(model["label"])}</h3>{picture}'
    f"<figcaption>{words}</figcaption></figure>\n"
  )


def _table(results: Mapping, colours: Mapping) -> str:
  def cell(interval: Sequence[float] | None, form: Callable[[float], str]) -> str:
    if interval is None:
      return "<td>·</td>"
    return f"<td>{form(interval[0])}<small>{_ends(interval, form)}</small></td>"

  number = "{:.3f}".format
  heads = ("mean ink", "ink gained", "win rate", "digit right", "distance", "Vendi")
  rows = ["<tr><th></th>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
  data = results["data"]
  diversity = data.get("real_diversity")
  right = data["classifier_accuracy"]
  right = cell(right, _share) if isinstance(right, Sequence) else f"<td>{_share(right)}</td>"
  rows.append(
    f"<tr><th>real digits</th>{cell(data['real_ink'], number)}<td>·</td><td>·</td>{right}"
    + cell(diversity and diversity["pairwise"], number)
    + f"<td>{'·' if diversity is None else format(diversity['vendi'], '.2f')}</td></tr>"
  )
  for place, model in enumerate(results["models"]):
    rows.append(
      f'<tr><th><span class="dot m{place}"></span>{_text(model["label"])}</th>'
      + cell(model["ink"], number)
      + cell(model["ink_gain"], _signed)
      + cell(model["win_rate"], _share)
      + cell(model["digit_accuracy"], _share)
      + cell(model["diversity"]["pairwise"], number)
      + f"<td>{model['diversity']['vendi']:.2f}</td></tr>"
    )
  return (
    f'<div class="scroll"><table><thead>{rows[0]}</thead>{"".join(rows[1:])}</table></div>\n'
    '<p class="faint">Below each number: its 95% bootstrap interval.</p>\n'
  )


def _comparisons(models: Sequence[Mapping]) -> str:
  reference, *aligned = models
  if not aligned:
    return ""

  def draw(shown, pick, **settings):
    def of(theme: plots.Theme) -> bytes:
      places = [models.index(model) for model in shown]
      return plots.intervals(
        [model["label"] for model in shown],
        [Interval(*pick(model)) for model in shown],
        [theme.models[place % 6] for place in places],
        theme=theme,
        **settings,
      )

    return of

  shares = {"form": _share, "shares": True}
  right, apart = reference["digit_accuracy"][0], reference["diversity"]["pairwise"][0]
  gained = draw(aligned, lambda m: m["ink_gain"], baseline=0.0, form=_signed)
  won = draw(aligned, lambda m: m["win_rate"], baseline=0.5, **shares)
  named = draw(models, lambda m: m["digit_accuracy"], baseline=right, **shares)
  spread = draw(models, lambda m: m["diversity"]["pairwise"], baseline=apart)
  panels = [
    ("Ink gained", gained, "Paired by caption and seed; 0 is no change."),
    ("Win rate", won, "How often it is heavier than the reference; 50% is no change."),
    ("Digit right", named, "How often the digit asked for is seen; the line is the reference."),
    ("Distance", spread, "Between samples of one caption; the line is the reference."),
  ]
  figures = "".join(_figure(title, _plot(of, title), note) for title, of, note in panels)
  return f'<div class="row two">\n{figures}</div>\n'


def _ink(results: Mapping) -> str:
  data, models = results["data"], results["models"]
  real = {"real digits": data["real_ink_values"]} if data.get("real_ink_values") else {}
  levels = real | {model["label"]: model["ink_values"] for model in models}

  def of(theme: plots.Theme) -> bytes:
    colours = [theme.faint] * len(real) + [theme.models[i % 6] for i in range(len(models))]
    rows = {name: (x, colour) for (name, x), colour in zip(levels.items(), colours, strict=True)}
    return plots.histograms(rows, theme=theme, behind=models[0]["ink_values"])

  rows = "".join(
    f"<tr><th>{_text(name)}</th>"
    + "".join(f"<td>{q:.3f}</td>" for q in np.quantile(x, [0.05, 0.5, 0.95]))
    + "</tr>"
    for name, x in levels.items()
  )
  figure = _figure(
    "Ink of each sample",
    _plot(of, "histograms of ink"),
    "0 is blank paper, 1 is ink all over. Grey outline: the reference. Line: the mean.",
  )
  return (
    f'<div class="row two">\n{figure}<div><p>A mean can move because every digit gets a little '
    "heavier or because a few get very heavy. One in twenty samples lies below the first of these "
    'numbers, half below the second, one in twenty above the third.</p><div class="scroll"><table>'
    f"<thead><tr><th></th><th>5%</th><th>median</th><th>95%</th></tr></thead>{rows}</table></div>"
    "</div></div>\n"
  )


def _training(aligned: Sequence[Mapping]) -> str:
  trained = [(i, model) for i, model in enumerate(aligned, start=1) if model["curves"]]
  if not trained:
    return ""
  errors = [m["curves"][key] for _, m in trained for key in ("winner_error", "loser_error")]
  limits = plots.curve_limits(errors, 0.0)

  def of_errors(curves: Mapping) -> Callable[[plots.Theme], bytes]:
    def of(theme: plots.Theme) -> bytes:
      lines = {
        "preferred": (curves["step"], curves["winner_error"], theme.winner),
        "rejected": (curves["step"], curves["loser_error"], theme.loser),
      }
      return plots.curves(lines, theme=theme, width=3.6, limits=limits, baseline=0.0)

    return of

  def across(key: str, **settings) -> Callable[[plots.Theme], bytes]:
    def of(theme: plots.Theme) -> bytes:
      lines = {
        m["label"]: (m["curves"]["step"], m["curves"][key], theme.models[i % 6]) for i, m in trained
      }
      return plots.curves(lines, theme=theme, **settings)

    return of

  figures = [
    _figure(
      f"{model['label']}: change of error",
      _plot(of_errors(model["curves"]), f"errors of {model['label']} over training"),
      _errors_in_words(model),
    )
    for _, model in trained
  ]
  shared = [
    _figure(
      "Implicit accuracy",
      _plot(across("accuracy", baseline=0.5, shares=True), "implicit accuracy over training"),
      "Share of training pairs that the model, against the reference, ranks as their labels do.",
    ),
    _figure(
      "Logit",
      _plot(across("logit", baseline=0.0), "logit over training"),
      "How strongly it prefers the preferred image, on average; 0 is the reference.",
    ),
  ]
  return (
    "<p>A model prefers an image if it denoises it better than the reference does. So the error on "
    "preferred images should end below the error on rejected ones; where both rise above zero, the "
    "gap was bought by denoising both worse.</p>\n"
    f'<div class="row">\n{"".join(figures)}</div>\n'
    f'<div class="row two">\n{"".join(shared)}</div>\n'
    '<p class="faint">Change of error: mean squared error of the policy minus that of the '
    "reference on the same noise and timesteps, on one scale for all models. Strong lines are "
    "moving averages; what was measured is faint behind.</p>\n"
  )


def _errors_in_words(model: Mapping) -> str:
  ends = [
    float(plots.smoothed(model["curves"][key])[-1]) for key in ("winner_error", "loser_error")
  ]
  words = f"At the end: preferred {ends[0]:+.2g}, rejected {ends[1]:+.2g}"
  if ends[0] > 0 and ends[1] > 0:
    words += "; both above the reference"
  return words.replace("-", "−") + "."


def _preferences(data: Mapping) -> str:
  text = (
    f"<p>{data['pairs']:,} pairs of real digits, both images of a pair showing the same digit. A "
    "declared rule, not a person, prefers the heavier stroke, with noise: "
    "P(a preferred over b) = σ((ink of a − ink of b) / "
    f"{_value(float(data['temperature']))}), where ink is the mean grey level from 0 to 1. In "
    f"<b>{data['label_noise']:.1%}</b> of the pairs the draw preferred the lighter image: labels "
    "that an objective has to see through.</p>\n"
  )
  if not data.get("pairs_png"):
    return text
  key = '<span class="key" style="color:{}"></span>'
  return text + (
    f'<div class="row"><figure>{_picture(data["pairs_png"], "preference pairs", "sheet")}'
    "<figcaption>Pairs of the data set, the preferred image first and framed: "
    f"{key.format(plots.LIGHT.winner)} it is the heavier one, {key.format(plots.LIGHT.loser)} it "
    "is the lighter one. Below each image its ink.</figcaption></figure></div>\n"
  )


def _meaning(results: Mapping, aligned: Sequence[Mapping]) -> str:
  data, count = results["data"], len(results["models"][0]["ink_values"])
  accuracy = data["classifier_accuracy"]
  accuracy = accuracy[0] if isinstance(accuracy, Sequence) else accuracy
  judge = (
    "A support vector machine fitted on the real training digits looks at each sample. On "
    f"{data['classifier_test_images']} real digits that it never saw it is right in "
    f"{_share(accuracy)}: some of what it calls wrong may be its own error."
  )
  if data.get("classifier_heavier_accuracy"):
    judge += (
      f" On the same digits with thickened strokes it is right in "
      f"{_share(data['classifier_heavier_accuracy'][0])}: the nearer that is, the less stroke "
      "weight alone misleads it."
    )
  entries = [
    (
      "Mean ink",
      "The mean grey level of a picture: 0 is blank paper, 1 is ink all over. It is what "
      "the rule behind the labels looks at, so it is what alignment should raise.",
    ),
    (
      "Ink gained and win rate",
      f"Each of the {count} samples is compared with the reference's "
      "sample of the same caption and seed: by how much its ink differs, and whether it is heavier "
      "(a tie counts one half).",
    ),
    ("Digit right", judge),
    (
      "Distance and Vendi",
      "Both look at the samples of one caption, then average over captions. "
      "Distance is the root mean square difference of two samples in grey levels; Vendi is the "
      "effective number of different samples, with the cosine of pixels as similarity. If they "
      "fall together, the model repeats itself; thicker strokes overlap more and lower Vendi a "
      "little by themselves.",
    ),
    (
      "95% intervals",
      "Percentile bootstrap over the samples, for this one trained model: how much "
      "the number would move with other seeds for sampling. Another training run can differ by "
      "more.",
    ),
  ]
  flat = [m["label"] for m in aligned if m["win_rate"][1] == m["win_rate"][2]]
  flat += [
    m["label"] for m in results["models"] if m["digit_accuracy"][1] == m["digit_accuracy"][2]
  ]
  if flat:
    entries.append(
      (
        "An interval without width",
        "Where every sample agrees, the bootstrap has nothing to vary. "
        f"With {count} samples the true rate may still be about {_share(3 / count)} away.",
      )
    )
  return (
    '<dl class="meaning">'
    + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in entries)
    + "</dl>\n"
  )


def _settings(results: Mapping) -> str:
  models, export = results["models"], results["export"]
  keys = list(dict.fromkeys(key for model in models for key in model["hyperparameters"]))
  head = "".join(f"<th>{_text(model['label'])}</th>" for model in models)
  rows = [
    f"<tr><th>{_text(key)}</th>"
    + "".join(f"<td>{_value(m['hyperparameters'].get(key, '·'))}</td>" for m in models)
    + "</tr>"
    for key in keys
  ]
  rows.append(
    "<tr><th>training time</th>"
    + "".join(f"<td>{_duration(m['train_seconds'])}</td>" for m in models)
    + "</tr>"
  )
  speeds = [m["pairs_per_second"] for m in models]
  rows.append(
    "<tr><th>pairs per second</th>"
    + "".join(f"<td>{'·' if s is None else f'{s:.1f}'}</td>" for s in speeds)
    + "</tr>"
  )
  check = export["torch_check"]
  if check is None:
    checked = "PyTorch was not installed: the exported model was not loaded back."
  else:
    checked = "Loaded back with diffusers and PyTorch: " + ", ".join(
      f"{key.replace('_', ' ')} {_value(value)}" for key, value in check.items()
    )
  files = "".join(f"{_text(name)}\n" for name in export["files"])
  small = [
    ("Sampling", _pairs_table(results["sampling"])),
    ("Time", _pairs_table({k: _duration(v) for k, v in results["seconds"].items()})),
    ("Versions", _pairs_table(results["versions"])),
  ]
  data = {
    "images to train on": results["data"]["train_images"],
    "images held out": results["data"]["test_images"],
    "preference pairs": results["data"]["pairs"],
    "temperature of the rule": results["data"]["temperature"],
  }
  small.insert(0, ("Data", _pairs_table(data)))
  columns = "".join(f"<div><h3>{title}</h3>{table}</div>" for title, table in small)
  return (
    f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>{"".join(rows)}</table>'
    f'</div>\n<div class="row four">{columns}</div>\n'
    f"<h3>Export in diffusers' format</h3><p>{_text(export['path'])}. {_text(checked)}</p>\n"
    f"<pre>{files}</pre>\n"
  )


def _again(results: Mapping) -> str:
  command = results.get("command", "dmpo-jax quickstart")
  return (
    f"<pre>{_text(command)}</pre>\n<p>Interrupted, the same command continues where it was. With "
    "the same versions on the same kind of machine it gives the same numbers; elsewhere rounding "
    "differs, and so do the numbers.</p>\n"
  )
