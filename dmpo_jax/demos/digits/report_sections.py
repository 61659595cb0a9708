"""The sections of the report, from its results to HTML."""

import base64
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dmpo_jax.demos.digits import report_text as words
from dmpo_jax.evaluation import plots
from dmpo_jax.evaluation.statistics import Interval


def section(title: str, content: str) -> str:
  return f"<section>\n<h2>{title}</h2>\n{content}</section>\n" if content else ""


def _picture(png: bytes, alt: str, kind: str = "") -> str:
  return f'<img class="{kind}" alt="{words.escaped(alt)}" src="{_uri(png)}">'


def _plot(draw: Callable[[plots.Theme], bytes], alt: str) -> str:
  """A plot in the colours of a light and of a dark page; the reader's setting chooses."""
  return (
    f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(draw(plots.DARK))}">'
    f'<img alt="{words.escaped(alt)}" src="{_uri(draw(plots.LIGHT))}"></picture>'
  )


def _uri(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def _figure(title: str, content: str, caption: str) -> str:
  return (
    f"<figure><h3>{words.escaped(title)}</h3>{content}<figcaption>{caption}</figcaption></figure>\n"
  )


def _pairs_table(rows: Mapping[str, object], kind: str = "left") -> str:
  cells = "".join(
    f"<tr><th>{words.escaped(k)}</th><td>{words.shown(v)}</td></tr>" for k, v in rows.items()
  )
  return f'<div class="scroll"><table class="{kind}">{cells}</table></div>'


# ---- sections


def header(results: Mapping, reference: Mapping, aligned: Sequence[Mapping]) -> str:
  parts = [
    f'<p class="eyebrow">{words.escaped(results["title"])}</p>\n'
    f"<h1>{words.escaped(words.headline(aligned, reference))}</h1>\n"
  ]
  if aligned:
    parts.append(f'<p class="lead">{words.escaped(_in_numbers(aligned[0], reference))}</p>\n')
  parts.append(
    f'<p class="faint">{words.escaped(results["created"])} · {words.escaped(results["machine"])} · '
    f"every number on this page was computed in this run "
    f"({words.duration(sum(results['seconds'].values()))})</p>\n"
  )
  parts.append('<div class="cards">\n')
  for number, model in enumerate(aligned, start=1):
    kind, summary, remarks = words.verdict(model, reference)
    mark = {"good": "✓", "warn": "!", "bad": "✗"}[kind]
    gain, rate, right = (Interval(*model[k]) for k in ("ink_gain", "win_rate", "digit_accuracy"))
    rows = [
      ("ink gained", gain, words.signed),
      ("win rate", rate, words.share),
      ("digit right", right, words.share),
    ]
    figures = "".join(
      f"<dt>{name}</dt><dd><b>{form(x.value)}</b><small>{words.ends(x, form)}</small></dd>"
      for name, x, form in rows
    )
    parts.append(
      f'<div class="card m{number}"><h3>{words.escaped(model["label"])}</h3>'
      f'<span class="badge {kind}">{mark} {summary}</span><dl class="figures">{figures}</dl>'
      + "".join(f'<p class="remark">{words.escaped(remark)}</p>' for remark in remarks)
      + "</div>\n"
    )
  return "".join(parts) + "</div>\n"


def _in_numbers(model: Mapping, reference: Mapping) -> str:
  gain, rate, change = (Interval(*model[key]) for key in words.COMPARED)
  count = len(model["ink_values"])
  often = f"{words.share(rate.value)} of {count} comparisons ({words.between(rate, words.share)})"
  return (
    f"From the same captions and seeds, {model['label']}'s digits have a mean ink of "
    f"{model['ink'][0]:.3f} where the reference's have {reference['ink'][0]:.3f} "
    f"({words.signed(gain.value)}, {words.between(gain, words.signed)}). They are the heavier "
    "ones in "
    f"{f'all {count} comparisons' if rate.low == 1 else often}. The digit asked for is "
    f"recognised in {words.share(model['digit_accuracy'][0])} of its samples, against "
    f"{words.share(reference['digit_accuracy'][0])} in the reference "
    f"({words.points(change.value)} points, {words.between(change, words.points)})."
  )


def sheets(reference: Mapping, aligned: Sequence[Mapping]) -> str:
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
  caption = f"mean ink {model['ink'][0]:.3f}"
  if model["win_rate"] is not None:
    caption += f", win rate {words.share(model['win_rate'][0])}"
  picture = _picture(model["grid_png"], f"samples of {model['label']}", "sheet")
  return (
    f'<figure class="{kind}"><h3>{words.escaped(model["label"])}</h3>{picture}'
    f"<figcaption>{caption}</figcaption></figure>\n"
  )


def table(results: Mapping, colours: Mapping) -> str:
  def cell(interval: Sequence[float] | None, form: Callable[[float], str]) -> str:
    if interval is None:
      return "<td>·</td>"
    return f"<td>{form(interval[0])}<small>{words.ends(interval, form)}</small></td>"

  number = "{:.3f}".format
  heads = ("mean ink", "ink gained", "win rate", "digit right", "distance", "Vendi")
  rows = ["<tr><th></th>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
  data = results["data"]
  diversity = data.get("real_diversity")
  right = data["classifier_accuracy"]
  right = (
    cell(right, words.share) if isinstance(right, Sequence) else f"<td>{words.share(right)}</td>"
  )
  rows.append(
    f"<tr><th>real digits</th>{cell(data['real_ink'], number)}<td>·</td><td>·</td>{right}"
    + cell(diversity and diversity["pairwise"], number)
    + f"<td>{'·' if diversity is None else format(diversity['vendi'], '.2f')}</td></tr>"
  )
  for place, model in enumerate(results["models"]):
    rows.append(
      f'<tr><th><span class="dot m{place}"></span>{words.escaped(model["label"])}</th>'
      + cell(model["ink"], number)
      + cell(model["ink_gain"], words.signed)
      + cell(model["win_rate"], words.share)
      + cell(model["digit_accuracy"], words.share)
      + cell(model["diversity"]["pairwise"], number)
      + f"<td>{model['diversity']['vendi']:.2f}</td></tr>"
    )
  return (
    f'<div class="scroll"><table><thead>{rows[0]}</thead>{"".join(rows[1:])}</table></div>\n'
    '<p class="faint">Below each number: its 95% bootstrap interval.</p>\n'
  )


def comparisons(models: Sequence[Mapping]) -> str:
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

  shares = {"form": words.share, "shares": True}
  right, apart = reference["digit_accuracy"][0], reference["diversity"]["pairwise"][0]
  gained = draw(aligned, lambda m: m["ink_gain"], baseline=0.0, form=words.signed)
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


def ink(results: Mapping) -> str:
  data, models = results["data"], results["models"]
  real = {"real digits": data["real_ink_values"]} if data.get("real_ink_values") else {}
  levels = real | {model["label"]: model["ink_values"] for model in models}

  def of(theme: plots.Theme) -> bytes:
    colours = [theme.faint] * len(real) + [theme.models[i % 6] for i in range(len(models))]
    rows = {name: (x, colour) for (name, x), colour in zip(levels.items(), colours, strict=True)}
    return plots.histograms(rows, theme=theme, behind=models[0]["ink_values"])

  rows = "".join(
    f"<tr><th>{words.escaped(name)}</th>"
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


def training(aligned: Sequence[Mapping]) -> str:
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
  said = f"At the end: preferred {ends[0]:+.2g}, rejected {ends[1]:+.2g}"
  if ends[0] > 0 and ends[1] > 0:
    said += "; both above the reference"
  return said.replace("-", "−") + "."


def preferences(data: Mapping) -> str:
  text = (
    f"<p>{data['pairs']:,} pairs of real digits, both images of a pair showing the same digit. A "
    "declared rule, not a person, prefers the heavier stroke, with noise: "
    "P(a preferred over b) = σ((ink of a − ink of b) / "
    f"{words.shown(float(data['temperature']))}), where ink is the mean grey level from 0 to 1. In "
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


def meaning(results: Mapping, aligned: Sequence[Mapping]) -> str:
  data, count = results["data"], len(results["models"][0]["ink_values"])
  accuracy = data["classifier_accuracy"]
  accuracy = accuracy[0] if isinstance(accuracy, Sequence) else accuracy
  judge = (
    "A support vector machine fitted on the real training digits looks at each sample. On "
    f"{data['classifier_test_images']} real digits that it never saw it is right in "
    f"{words.share(accuracy)}: some of what it calls wrong may be its own error."
  )
  if data.get("classifier_heavier_accuracy"):
    judge += (
      f" On the same digits with thickened strokes it is right in "
      f"{words.share(data['classifier_heavier_accuracy'][0])}: the nearer that is, the less stroke "
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
        f"With {count} samples the true rate may still be about {words.share(3 / count)} away.",
      )
    )
  return (
    '<dl class="meaning">'
    + "".join(f"<dt>{words.escaped(k)}</dt><dd>{words.escaped(v)}</dd>" for k, v in entries)
    + "</dl>\n"
  )


def settings(results: Mapping) -> str:
  models, export = results["models"], results["export"]
  keys = list(dict.fromkeys(key for model in models for key in model["hyperparameters"]))
  head = "".join(f"<th>{words.escaped(model['label'])}</th>" for model in models)
  rows = [
    f"<tr><th>{words.escaped(key)}</th>"
    + "".join(f"<td>{words.shown(m['hyperparameters'].get(key, '·'))}</td>" for m in models)
    + "</tr>"
    for key in keys
  ]
  rows.append(
    "<tr><th>training time</th>"
    + "".join(f"<td>{words.duration(m['train_seconds'])}</td>" for m in models)
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
      f"{key.replace('_', ' ')} {words.shown(value)}" for key, value in check.items()
    )
  files = "".join(f"{words.escaped(name)}\n" for name in export["files"])
  small = [
    ("Sampling", _pairs_table(results["sampling"])),
    ("Time", _pairs_table({k: words.duration(v) for k, v in results["seconds"].items()})),
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
    f"<h3>Export in diffusers' format</h3>"
    f"<p>{words.escaped(export['path'])}. {words.escaped(checked)}</p>\n"
    f"<pre>{files}</pre>\n"
  )


def again(results: Mapping) -> str:
  command = results.get("command", "dmpo-jax quickstart")
  return (
    f"<pre>{words.escaped(command)}</pre>\n<p>Interrupted, the same command continues where it "
    "was. With "
    "the same versions on the same kind of machine it gives the same numbers; elsewhere rounding "
    "differs, and so do the numbers.</p>\n"
  )
