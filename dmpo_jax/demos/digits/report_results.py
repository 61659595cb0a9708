"""Sections of the report with its results."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dmpo_jax.demos.digits import report_text
from dmpo_jax.evaluation import html, plots
from dmpo_jax.evaluation.statistics import Interval


def header(results: Mapping, reference: Mapping, aligned: Sequence[Mapping]) -> str:
  """Title, headline and one card per aligned model."""
  pieces = [
    f'<p class="eyebrow">{html.escaped(results["title"])}</p>\n'
    f"<h1>{html.escaped(report_text.headline(aligned, reference))}</h1>\n"
  ]
  if aligned:
    pieces.append(f'<p class="lead">{html.escaped(_in_numbers(aligned[0], reference))}</p>\n')
  pieces.append(
    f'<p class="faint">{html.escaped(results["created"])} · {html.escaped(results["machine"])} · '
    f"every number on this page was computed in this run "
    f"({html.duration(sum(results['seconds'].values()))})</p>\n"
  )
  pieces.append('<div class="cards">\n')
  for number, model in enumerate(aligned, start=1):
    kind, summary, notes = report_text.assessment(model, reference)
    mark = {"good": "✓", "warn": "!", "bad": "✗"}[kind]
    gain, rate, right = (Interval(*model[k]) for k in ("ink_gain", "win_rate", "digit_accuracy"))
    rows = [
      ("ink gained", gain, html.signed),
      ("win rate", rate, html.percent),
      ("digit right", right, html.percent),
    ]
    figures = "".join(
      f"<dt>{name}</dt><dd><b>{form(x.value)}</b><small>{html.ends(x, form)}</small></dd>"
      for name, x, form in rows
    )
    pieces.append(
      f'<div class="card m{number}"><h3>{html.escaped(model["label"])}</h3>'
      f'<span class="badge {kind}">{mark} {summary}</span><dl class="figures">{figures}</dl>'
      + "".join(f'<p class="remark">{html.escaped(note)}</p>' for note in notes)
      + "</div>\n"
    )
  return "".join(pieces) + "</div>\n"


def _in_numbers(model: Mapping, reference: Mapping) -> str:
  """Sentences with the main numbers of a model."""
  gain, rate, change = (Interval(*model[key]) for key in report_text.COMPARED)
  count = len(model["ink_values"])
  often = (
    f"{html.percent(rate.value)} of {count} comparisons ({html.with_interval(rate, html.percent)})"
  )
  return (
    f"From the same captions and seeds, {model['label']}'s digits have a mean ink of "
    f"{model['ink'][0]:.3f} where the reference's have {reference['ink'][0]:.3f} "
    f"({html.signed(gain.value)}, {html.with_interval(gain, html.signed)}). They are the heavier "
    "ones in "
    f"{f'all {count} comparisons' if rate.low == 1 else often}. The digit asked for is "
    f"recognised in {html.percent(model['digit_accuracy'][0])} of its samples, against "
    f"{html.percent(reference['digit_accuracy'][0])} in the reference "
    f"({html.points(change.value)} points, {html.with_interval(change, html.points)})."
  )


def sheets(reference: Mapping, aligned: Sequence[Mapping]) -> str:
  """Sample grids of the reference and the aligned models."""
  # A wide page shows the reference once; a narrow one, where two sheets fit side by side, repeats
  # it beside each model.
  sheets = [_sheet(reference)]
  for number, model in enumerate(aligned):
    sheets += [_sheet(reference, "again")] * (number > 0) + [_sheet(model)]
  return (
    "<p>Each row is a caption, each column a seed: the same position on two sheets has the same "
    "initial noise. Dark is ink. The seeds are the first of each caption; none was picked.</p>\n"
    f'<div class="sheets">\n{"".join(sheets)}</div>\n'
  )


def _sheet(model: Mapping, kind: str = "") -> str:
  """Sample grid of one model."""
  caption = f"mean ink {model['ink'][0]:.3f}"
  if model["win_rate"] is not None:
    caption += f", win rate {html.percent(model['win_rate'][0])}"
  picture = html.picture(model["grid_png"], f"samples of {model['label']}", "sheet")
  return (
    f'<figure class="{kind}"><h3>{html.escaped(model["label"])}</h3>{picture}'
    f"<figcaption>{caption}</figcaption></figure>\n"
  )


def table(results: Mapping, colours: Mapping) -> str:
  """Table of all scores with intervals."""

  number = "{:.3f}".format
  heads = ("mean ink", "ink gained", "win rate", "digit right", "distance", "Vendi")
  rows = ["<tr><th></th>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
  data = results["data"]
  diversity = data.get("real_diversity")
  right = data["classifier_accuracy"]
  right = (
    html.cell(right, html.percent)
    if isinstance(right, Sequence)
    else f"<td>{html.percent(right)}</td>"
  )
  rows.append(
    f"<tr><th>real digits</th>{html.cell(data['real_ink'], number)}<td>·</td><td>·</td>{right}"
    + html.cell(diversity and diversity["pairwise"], number)
    + f"<td>{'·' if diversity is None else format(diversity['vendi'], '.2f')}</td></tr>"
  )
  for place, model in enumerate(results["models"]):
    rows.append(
      f'<tr><th><span class="dot m{place}"></span>{html.escaped(model["label"])}</th>'
      + html.cell(model["ink"], number)
      + html.cell(model["ink_gain"], html.signed)
      + html.cell(model["win_rate"], html.percent)
      + html.cell(model["digit_accuracy"], html.percent)
      + html.cell(model["diversity"]["pairwise"], number)
      + f"<td>{model['diversity']['vendi']:.2f}</td></tr>"
    )
  return (
    f'<div class="scroll"><table><thead>{rows[0]}</thead>{"".join(rows[1:])}</table></div>\n'
    '<p class="faint">Below each number: its 95% bootstrap interval.</p>\n'
  )


def comparisons(models: Sequence[Mapping]) -> str:
  """Plots of the scores with intervals."""
  reference, *aligned = models
  if not aligned:
    return ""

  def plot(rows, pick, **settings):
    def of(theme: plots.Theme) -> bytes:
      colours = [models.index(model) % 6 for model in rows]
      return plots.intervals(
        [model["label"] for model in rows],
        [Interval(*pick(model)) for model in rows],
        [theme.models[colour] for colour in colours],
        theme=theme,
        **settings,
      )

    return of

  shares = {"form": html.percent, "fractions": True}
  right, apart = reference["digit_accuracy"][0], reference["diversity"]["pairwise"][0]
  gained = plot(aligned, lambda m: m["ink_gain"], baseline=0.0, form=html.signed)
  won = plot(aligned, lambda m: m["win_rate"], baseline=0.5, **shares)
  named = plot(models, lambda m: m["digit_accuracy"], baseline=right, **shares)
  spread = plot(models, lambda m: m["diversity"]["pairwise"], baseline=apart)
  panels = [
    ("Ink gained", gained, "Paired by caption and seed; 0 is no change."),
    ("Win rate", won, "How often it is heavier than the reference; 50% is no change."),
    (
      "Digit right",
      named,
      "How often the digit asked for is recognised; the line is the reference.",
    ),
    ("Distance", spread, "Between samples of one caption; the line is the reference."),
  ]
  figures = "".join(html.figure(title, html.plot(of, title), note) for title, of, note in panels)
  return f'<div class="row two">\n{figures}</div>\n'


def ink(results: Mapping) -> str:
  """Histograms and quantiles of ink."""
  data, models = results["data"], results["models"]
  real = {"real digits": data["real_ink_values"]} if data.get("real_ink_values") else {}
  levels = real | {model["label"]: model["ink_values"] for model in models}

  def of(theme: plots.Theme) -> bytes:
    colours = [theme.faint] * len(real) + [theme.models[i % 6] for i in range(len(models))]
    rows = {name: (x, colour) for (name, x), colour in zip(levels.items(), colours, strict=True)}
    return plots.histograms(rows, theme=theme, behind=models[0]["ink_values"])

  rows = "".join(
    f"<tr><th>{html.escaped(name)}</th>"
    + "".join(f"<td>{q:.3f}</td>" for q in np.quantile(x, [0.05, 0.5, 0.95]))
    + "</tr>"
    for name, x in levels.items()
  )
  figure = html.figure(
    "Ink of each sample",
    html.plot(of, "histograms of ink"),
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
  """Curves of errors, accuracy and logit over training."""
  trained = [(i, model) for i, model in enumerate(aligned, start=1) if model["curves"]]
  if not trained:
    return ""
  errors = [m["curves"][key] for _, m in trained for key in ("preferred_error", "rejected_error")]
  limits = plots.curve_limits(errors, 0.0)

  def of_errors(curves: Mapping) -> Callable[[plots.Theme], bytes]:
    def of(theme: plots.Theme) -> bytes:
      lines = {
        "preferred": (curves["step"], curves["preferred_error"], theme.preferred),
        "rejected": (curves["step"], curves["rejected_error"], theme.rejected),
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
    html.figure(
      f"{model['label']}: change of error",
      html.plot(of_errors(model["curves"]), f"errors of {model['label']} over training"),
      _errors_in_words(model),
    )
    for _, model in trained
  ]
  shared = [
    html.figure(
      "Implicit accuracy",
      html.plot(
        across("accuracy", baseline=0.5, fractions=True), "implicit accuracy over training"
      ),
      "Share of training pairs that the model, against the reference, ranks as their labels do.",
    ),
    html.figure(
      "Logit",
      html.plot(across("logit", baseline=0.0), "logit over training"),
      "Mean preference for the preferred image; 0 is the reference.",
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
    "moving averages; the measured values are faint behind.</p>\n"
  )


def _errors_in_words(model: Mapping) -> str:
  """Sentence on the errors at the end of training."""
  ends = [
    float(plots.smoothed(model["curves"][key])[-1]) for key in ("preferred_error", "rejected_error")
  ]
  text = f"At the end: preferred {ends[0]:+.2g}, rejected {ends[1]:+.2g}"
  if ends[0] > 0 and ends[1] > 0:
    text += "; both above the reference"
  return text.replace("-", "−") + "."
