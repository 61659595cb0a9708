"""HTML report of an evaluation: one page that needs no other file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.evaluation import comparison, example_pictures, html, plots
from dmpo_jax.evaluation.comparison import Measured
from dmpo_jax.evaluation.statistics import Interval
from dmpo_jax.evaluation.units import Units

SHOWN = 8  # images of each kind and candidate
KINDS = {
  "best": "Largest gain",
  "worst": "Largest loss",
  "random": "Random prompts",
}
LISTED = 20  # prompts that are longer than the context


def render(
  result: Mapping[str, Any],
  measured: Measured,
  units: Units,
  files: Mapping[str, Sequence[paths.Path]],
  sources: Sequence[paths.Path] | None = None,
) -> str:
  """The report.

  Args:
    result: Content of evaluation.json, see `evaluate.evaluate`.
    measured: The scores.
    units: Prompts and seeds.
    files: Model -> file of each image.
    sources: Of edits, file of the source image of each; None for others.

  Returns:
    HTML; the same for the same evaluation.

  Raises:
    InputError: An image cannot be read, or matplotlib is not installed.
  """
  models = list(measured.models)
  colours = [(plots.LIGHT.models[i % 6], plots.DARK.models[i % 6]) for i in range(len(models))]
  body = [
    _header(result, models),
    html.section("Images side by side", _examples(measured, units, files, sources)),
    html.section("Scores", _scores(result["scores"], models) + _plots(result["scores"], models)),
    html.section("How the scores are spread", _histograms(measured)),
    html.section("Categories", _categories(result, models)),
    html.section("Diversity of the images of a prompt", _diversity(result["diversity"], models)),
    html.section("Agreement of the scorers", _agreement(result["agreement"])),
    html.section("Prompts and settings", _settings(result, models)),
    html.section("How to read the numbers", _meaning(result)),
  ]
  return html.page(f"Evaluation: {', '.join(models)}", "".join(body), colours)


def _header(result: Mapping[str, Any], models: Sequence[str]) -> str:
  """Headline and a card for each candidate."""
  primary, (reference, *candidates) = result["scorers"][0], models
  scores, prompts = result["scores"], result["prompts"]
  title = "Scores of one model" if not candidates else _headline(scores, primary, candidates)
  pieces = [
    f'<p class="eyebrow">Evaluation {"against" if candidates else "of"} '
    f"{html.escaped(reference)} under "
    f"{html.escaped(', '.join(result['scorers']))}</p>\n<h1>{html.escaped(title)}</h1>\n"
    f'<p class="faint">{_counted(prompts)}, {prompts["images"]} images of each model; the '
    "same prompts, seeds and noise for all. Below each number: its 95% interval, which resamples "
    "prompts.</p>\n"
    '<div class="cards">\n'
  ]
  diversity = result["diversity"]
  for number, model in enumerate(candidates, 1):
    rows = []
    for scorer in result["scorers"]:
      entry = scores[scorer][model]
      rows.append((f"{scorer}: win rate", entry["win_rate"], html.percent))
      rows.append(("change", entry["difference"], _signed(scores[scorer])))
    if diversity and (kept := diversity["models"][model]["distance_ratio"]):
      rows.append(("diversity kept", kept, html.percent))
    figures = "".join(
      f"<dt>{html.escaped(name)}</dt><dd><b>{form(x[0])}</b><small>{html.ends(x, form)}</small>"
      "</dd>"
      for name, x, form in rows
    )
    kind, words = _verdict(scores[primary][model])
    pieces.append(
      f'<div class="card m{number}"><h3>{html.escaped(model)}</h3>'
      f'<span class="badge {kind}">{words} {html.escaped(primary)}</span>'
      f'<dl class="figures">{figures}</dl></div>\n'
    )
  return "".join(pieces) + "</div>\n"


def _counted(prompts: Mapping[str, Any]) -> str:
  """Number of prompts in words; of edits, a source image with an instruction is one."""
  if "sources" not in prompts:
    return f"{prompts['count']} prompts"
  return f"{prompts['count']} edits of {prompts['sources']} source images"


def _verdict(entry: Mapping[str, Any]) -> tuple[str, str]:
  """Class of a badge and words for a candidate, from the interval of its win rate."""
  rate = Interval(*entry["win_rate"])
  if rate.low > 0.5:
    return "good", "better under"
  return ("bad", "worse under") if rate.high < 0.5 else ("warn", "no difference shown under")


def _headline(scores: Mapping[str, Any], scorer: str, candidates: Sequence[str]) -> str:
  """Win rates under a scorer in words."""
  rates = [f"{m} wins {html.percent(scores[scorer][m]['win_rate'][0])}" for m in candidates]
  return f"Under {scorer} {', '.join(rates[:4])}{', ...' if len(rates) > 4 else ''}"


def _examples(
  measured: Measured,
  units: Units,
  files: Mapping[str, Sequence[paths.Path]],
  sources: Sequence[paths.Path] | None,
) -> str:
  """Images of the reference and of each candidate, chosen by `comparison.examples`."""
  reference, *candidates = measured.models
  if not candidates:
    return ""
  scorer, scores = next(iter(measured.scores.items()))
  form = _number([scores[reference]])
  order = f"Left {html.escaped(reference)}, right the candidate"
  if sources is not None:
    order = f"Left the source image, then {html.escaped(reference)}, right the candidate"
  pieces = [
    f"<p>{order}, from the same noise. The images are "
    f"chosen by the change of {html.escaped(scorer)}: the largest gains and the largest losses, "
    "at most one image of a prompt, and the first image of prompts in a random order that is the "
    "same for all candidates.</p>\n"
  ]
  for number, model in enumerate(candidates, 1):
    chosen = comparison.examples(scores[model], scores[reference], measured.groups, count=SHOWN)
    for kind, rows in chosen.items():
      items = []
      for row in rows:
        before, after = scores[reference][row], scores[model][row]
        shown = [] if sources is None else [sources[row]]
        shown += [files[reference][row], files[model][row]]
        pair = example_pictures.side_by_side(shown)
        text = html.escaped(example_pictures.shortened(units.prompts[row]))
        items.append(
          f"<figure>{html.picture_of(pair, f'{reference} and {model}: {units.prompts[row]}')}"
          f"<figcaption>{text}<br>seed {units.seeds[row]}: {form(before)} → {form(after)}"
          "</figcaption></figure>\n"
        )
      pieces.append(
        f'<h3 class="m{number}"><span class="dot"></span>{html.escaped(model)}: {KINDS[kind]}</h3>'
        f'<div class="sheets">\n{"".join(items)}</div>\n'
      )
  return "".join(pieces)


def _scores(scores: Mapping[str, Any], models: Sequence[str]) -> str:
  """Table of all scorers and models."""
  return "".join(
    f"<h3>{html.escaped(scorer)}</h3>{_table(entries, models)}"
    for scorer, entries in scores.items()
  ) + (
    '<p class="faint">Below each number: its 95% interval, which resamples prompts. Change and win '
    "rate compare images of the same prompt and noise; a tie counts one half.</p>\n"
  )


def _table(entries: Mapping[str, Any], models: Sequence[str]) -> str:
  form, change = _number([[entries[m]["mean"][0]] for m in models]), _signed(entries)
  rows = "".join(
    f'<tr><th><span class="dot m{i}"></span>{html.escaped(model)}</th>'
    + html.cell(entries[model]["mean"], form)
    + html.cell(entries[model]["difference"], change)
    + html.cell(entries[model]["win_rate"], html.percent)
    + "</tr>"
    for i, model in enumerate(models)
  )
  return html.table(("", "mean", "change", "win rate"), rows)


def _plots(scores: Mapping[str, Any], models: Sequence[str]) -> str:
  """Plots of win rates and changes."""
  figures = []
  for scorer, entries in scores.items() if len(models) > 1 else ():
    for title, key, settings in (
      ("win rate", "win_rate", {"baseline": 0.5, "form": html.percent, "fractions": True}),
      ("change", "difference", {"baseline": 0.0, "form": _signed(entries)}),
    ):
      values = {model: entries[model][key] for model in models[1:]}
      plot = _intervals(values, [models.index(model) for model in values], **settings)
      name = f"{scorer}: {title}"
      note = "50% is no change." if key == "win_rate" else "0 is no change."
      figures.append(html.figure(name, html.plot(plot, name), note))
  return f'<div class="row two">\n{"".join(figures)}</div>\n' if figures else ""


def _intervals(values: Mapping[str, Any], places: Sequence[int], **settings) -> Callable:
  """Draws intervals in the colours of the models at these places."""

  def draw(theme: plots.Theme) -> bytes:
    return plots.intervals(
      list(values),
      [Interval(*value) for value in values.values()],
      [theme.models[place % 6] for place in places],
      theme=theme,
      **settings,
    )

  return draw


def _histograms(measured: Measured) -> str:
  figures = []
  for scorer, scores in measured.scores.items():

    def draw(theme: plots.Theme, scores=scores) -> bytes:
      rows = {m: (x, theme.models[i % 6]) for i, (m, x) in enumerate(scores.items())}
      return plots.histograms(rows, theme=theme, behind=scores[measured.models[0]])

    title = f"{scorer} of each image"
    note = f"Grey outline: {html.escaped(measured.models[0])}. Line: the mean."
    figures.append(html.figure(title, html.plot(draw, title), note))
  return f'<div class="row two">\n{"".join(figures)}</div>\n'


def _categories(result: Mapping[str, Any], models: Sequence[str]) -> str:
  """Win rates of each category under all scorers; a plot under the first."""
  categories, (reference, *candidates) = result["categories"], models
  if not categories or not candidates:
    return ""
  pieces = []
  for model in candidates:
    rows = ""
    for name, entry in categories.items():
      cells = "".join(
        html.cell(entry["scores"][s][model]["difference"], _signed(result["scores"][s]))
        + html.cell(entry["scores"][s][model]["win_rate"], html.percent)
        for s in result["scorers"]
      )
      if entry["diversity"]:
        cells += html.cell(entry["diversity"]["models"][model]["distance_ratio"], html.percent)
      rows += f"<tr><th>{html.escaped(name)}</th><td>{entry['prompts']}</td>{cells}</tr>"
    heads = ["", "prompts"]
    for scorer in result["scorers"]:
      heads += [f"{scorer}: change", "win rate"]
    heads += ["diversity kept"] if result["diversity"] else []
    scorer = result["scorers"][0]
    rates = {name: e["scores"][scorer][model]["win_rate"] for name, e in categories.items()}
    places = [models.index(model)] * len(rates)
    plot = _intervals(rates, places, baseline=0.5, form=html.percent, fractions=True)
    title = f"{model}: win rate under {scorer}"
    figure = html.figure(title, html.plot(plot, title), "50% is no change.")
    pieces.append(
      f"<h3>{html.escaped(model)} against {html.escaped(reference)}</h3>{html.table(heads, rows)}"
      f'<div class="row two">{figure}</div>\n'
    )
  return "".join(pieces)


def _diversity(diversity: Mapping[str, Any] | None, models: Sequence[str]) -> str:
  if diversity is None:
    return "<p>A prompt has one image; sample two or more of each to measure diversity.</p>\n"
  rows = ""
  for i, model in enumerate(models):
    entry = diversity["models"][model]
    rows += (
      f'<tr><th><span class="dot m{i}"></span>{html.escaped(model)}</th>'
      + html.cell(entry["vendi"], "{:.3f}".format)
      + html.cell(entry["vendi_ratio"], html.percent)
      + html.cell(entry["distance"], "{:.4f}".format)
      + html.cell(entry["distance_ratio"], html.percent)
      + "</tr>"
    )
  if diversity["space"] == "pixels":
    where = (
      "in <b>pixel space</b>, because no scorer has image features: brightness and position count "
      "as much as content. The distance is the root mean square difference of pixels in [0, 1]"
    )
  else:
    where = (
      f"between the image features of <b>{html.escaped(diversity['space'])}</b>. The distance is "
      "1 - cosine"
    )
  return (
    f"<p>Measured among the images of each prompt, {where}. Vendi is the effective number of "
    "different images of a prompt.</p>\n"
    + html.table(("", "Vendi", "of the reference's", "distance", "of the reference's"), rows)
  )


def _agreement(agreement: Sequence[Mapping[str, Any]]) -> str:
  if not agreement:
    return ""
  rows = ""
  for entry in agreement:
    numbers = "".join(
      f"<td>{'·' if entry[key] is None else f'{entry[key]:.2f}'}</td>"
      for key in ("rank_correlation", "difference_rank_correlation")
    )
    pair = html.escaped(" and ".join(entry["scorers"]))
    rows += f"<tr><th>{pair}</th>{numbers}{html.cell(entry['sign_agreement'], html.percent)}</tr>"
  return html.table(("", "ranks of scores", "ranks of changes", "same sign"), rows) + (
    '<p class="faint">Spearman\'s rank correlation over the images of all models, and of the '
    "candidates' changes; and how often both scorers prefer the same of two images (50%: as often "
    "as by chance).</p>\n"
  )


def _settings(result: Mapping[str, Any], models: Sequence[str]) -> str:
  prompts = result["prompts"]
  facts: dict[str, object] = {
    "prompts": prompts["count"],
    "images of each model": prompts["images"],
  }
  facts |= {key: prompts[key] for key in ("file", "repeated") if prompts.get(key) is not None}
  for model in models:
    if (long := prompts["longer_than_context"][model]) is not None:
      facts[f"longer than {model}'s context"] = len(long)
  hidden = ("dmpo_jax", "jax")
  settings = result["settings"][models[0]] or {}
  facts |= {k: v for k, v in settings.items() if v is not None and k not in hidden}
  facts |= {f"{entry['name']} ({entry['kind']})": entry["path"] for entry in result["models"]}
  facts["dmpo_jax"] = result["dmpo_jax"]
  long = prompts["longer_than_context"][models[0]] or []
  listed = "".join(
    f"<li>{html.escaped(place)}: {html.escaped(text)}</li>" for place, text in long[:LISTED]
  )
  cut = (
    f"<p>Prompts that are longer than the text encoder's context, which were cut: </p><ul>{listed}"
    f"</ul>{'<p>and more.</p>' if len(long) > LISTED else ''}\n"
    if long
    else ""
  )
  return html.key_value_table(facts) + cut


def _meaning(result: Mapping[str, Any]) -> str:
  return (
    '<dl class="meaning"><dt>Interval</dt><dd>95%, percentile bootstrap of 10,000 resamples. '
    "Prompts are resampled, each with the mean of its images: several images of one prompt are not "
    "independent. The intervals answer for other prompts of the same kind, not for other training "
    "runs.</dd><dt>Win rate</dt><dd>Fraction of images that score higher than the reference's "
    "image of the same prompt and noise; a tie counts one half.</dd><dt>Many comparisons</dt><dd>"
    "Of twenty independent comparisons without a difference, one lies outside its 95% interval: "
    "read single categories with care.</dd></dl>\n"
  )


def _number(values: Sequence[Sequence[float]]) -> Callable[[float], str]:
  """Format with enough decimals for numbers of this size."""
  size = max((float(np.abs(x).max()) for x in values if len(x)), default=1.0)
  decimals = 3 if size < 10 else 2 if size < 100 else 1
  return f"{{:.{decimals}f}}".format


def _signed(entries: Mapping[str, Any]) -> Callable[[float], str]:
  """Format of changes with a sign and enough decimals for the largest one."""
  sizes = [abs(e["difference"][0]) for e in entries.values() if e["difference"]]
  size = max(sizes, default=1.0)
  decimals = 3 if size >= 0.05 or size == 0 else 4 if size >= 0.005 else 5
  return lambda x: f"{x:+.{decimals}f}".replace("-", "−")
