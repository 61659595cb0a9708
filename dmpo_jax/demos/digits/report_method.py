"""Sections of the report on data, measures and settings."""

from collections.abc import Mapping, Sequence

from dmpo_jax.evaluation import html, plots


def preferences(data: Mapping) -> str:
  """The labelling rule and examples of its pairs."""
  text = (
    f"<p>{data['pairs']:,} pairs of real digits; both images of a pair show the same digit. A "
    "rule, not a person, prefers the heavier stroke, with noise: "
    "P(a preferred over b) = σ((ink of a − ink of b) / "
    f"{html.value(float(data['temperature']))}), where ink is the mean grey level from 0 to 1. In "
    f"<b>{data['label_flip_rate']:.1%}</b> of the pairs the label prefers the lighter image.</p>\n"
  )
  if not data.get("pairs_png"):
    return text
  key = '<span class="key" style="color:{}"></span>'
  return text + (
    f'<div class="row"><figure>{html.picture(data["pairs_png"], "preference pairs", "sheet")}'
    "<figcaption>Pairs of the data set, the preferred image first and framed: "
    f"{key.format(plots.LIGHT.preferred)} it is the heavier one, "
    f"{key.format(plots.LIGHT.rejected)} it is the lighter one. Below each image is its ink."
    "</figcaption></figure></div>\n"
  )


def meaning(results: Mapping, aligned: Sequence[Mapping]) -> str:
  """Explanations of the scores."""
  data, count = results["data"], len(results["models"][0]["ink_values"])
  accuracy = data["classifier_accuracy"]
  accuracy = accuracy[0] if isinstance(accuracy, Sequence) else accuracy
  classifier = (
    "A support vector machine fitted on the real training digits classifies each sample. On "
    f"{data['classifier_test_images']} held-out real digits it is right in "
    f"{html.percent(accuracy)}: some of the digits that count as wrong may be its own errors."
  )
  if data.get("classifier_heavier_accuracy"):
    classifier += (
      f" On the same digits with thickened strokes it is right in "
      f"{html.percent(data['classifier_heavier_accuracy'][0])}: the smaller the difference, the "
      "less stroke weight alone misleads it."
    )
  entries = [
    (
      "Mean ink",
      "The mean grey level of an image: 0 is blank paper, 1 is ink all over. The rule behind the "
      "labels prefers more of it, so alignment should raise it.",
    ),
    (
      "Ink gained and win rate",
      f"Each of the {count} samples is compared with the reference's "
      "sample of the same caption and seed: by how much its ink differs, and whether it is heavier "
      "(a tie counts one half).",
    ),
    ("Digit right", classifier),
    (
      "Distance and Vendi",
      "Both compare the samples of one caption, then average over captions. "
      "Distance is the root mean square difference of two samples in grey levels; Vendi is the "
      "effective number of different samples, with the cosine of pixels as similarity. If they "
      "fall together, the model repeats itself; thicker strokes overlap more and lower Vendi a "
      "little.",
    ),
    (
      "95% intervals",
      "Percentile bootstrap over the samples of this one trained model: how much "
      "the number would change with other sampling seeds. Another training run can differ by "
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
        "Where all samples agree, the bootstrap gives an interval without width. "
        f"With {count} samples the true rate may still be about {html.percent(3 / count)} away.",
      )
    )
  return (
    '<dl class="meaning">'
    + "".join(f"<dt>{html.escaped(k)}</dt><dd>{html.escaped(v)}</dd>" for k, v in entries)
    + "</dl>\n"
  )


def settings(results: Mapping) -> str:
  """Hyperparameters, times, versions and exported files."""
  models, export = results["models"], results["export"]
  keys = list(dict.fromkeys(key for model in models for key in model["hyperparameters"]))
  head = "".join(f"<th>{html.escaped(model['label'])}</th>" for model in models)
  rows = [
    f"<tr><th>{html.escaped(key)}</th>"
    + "".join(f"<td>{html.value(m['hyperparameters'].get(key, '·'))}</td>" for m in models)
    + "</tr>"
    for key in keys
  ]
  rows.append(
    "<tr><th>training time</th>"
    + "".join(f"<td>{html.duration(m['train_seconds'])}</td>" for m in models)
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
      f"{key.replace('_', ' ')} {html.value(value)}" for key, value in check.items()
    )
  files = "".join(f"{html.escaped(name)}\n" for name in export["files"])
  small = [
    ("Sampling", html.key_value_table(results["sampling"])),
    ("Time", html.key_value_table({k: html.duration(v) for k, v in results["seconds"].items()})),
    ("Versions", html.key_value_table(results["versions"])),
  ]
  data = {
    "images to train on": results["data"]["train_images"],
    "images held out": results["data"]["test_images"],
    "preference pairs": results["data"]["pairs"],
    "temperature of the rule": results["data"]["temperature"],
  }
  small.insert(0, ("Data", html.key_value_table(data)))
  columns = "".join(f"<div><h3>{title}</h3>{table}</div>" for title, table in small)
  return (
    f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>{"".join(rows)}</table>'
    f'</div>\n<div class="row four">{columns}</div>\n'
    f"<h3>Export in diffusers' format</h3>"
    f"<p>{html.escaped(export['path'])}. {html.escaped(checked)}</p>\n"
    f"<pre>{files}</pre>\n"
  )


def again(results: Mapping) -> str:
  """Command that makes the report again."""
  command = results.get("command", "dmpo-jax quickstart")
  return (
    f"<pre>{html.escaped(command)}</pre>\n<p>Interrupted, the same command resumes. With "
    "the same versions on the same kind of machine it gives the same numbers; elsewhere rounding "
    "differs, and so do the numbers.</p>\n"
  )
