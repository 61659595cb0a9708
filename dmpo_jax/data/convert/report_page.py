"""The report of a conversion as an HTML page: counts, histograms, example pairs, skipped rows."""

import base64
import io
from html import escape

from dmpo_jax.data import images
from dmpo_jax.data.convert.report import DROPPED
from dmpo_jax.data.pairs import Pair

THUMBNAIL = 320  # pixels; twice the size on the page, for screens of high density
MAX_CAPTION = 240  # characters of an example's caption
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}
h1{margin-bottom:0}h2{margin:2.2rem 0 .6rem;font-size:1.25rem}h3{margin:0 0 .3rem;font-size:1rem}
.lead{font-size:1.15rem;margin-top:.3rem}.note{color:#666;font-size:.9rem;margin:.2rem 0 .8rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1.2rem 2.5rem}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:1.4rem}
table{border-collapse:collapse}td,th{padding:.1rem .9rem .1rem 0;text-align:left;vertical-align:top}
th{font-weight:600;border-bottom:1px solid #ccc}.n{text-align:right;white-space:nowrap}
td.n{font-variant-numeric:tabular-nums}tr.zero{color:#999}
.bar{background:#4a7bb5;height:.75em;display:inline-block;border-radius:1px}
.wide{overflow-wrap:anywhere}figure{margin:0}figure>div{display:flex;gap:8px}
.image{flex:1;min-width:0;text-align:center;font-size:12px;color:#666}
.image img{display:block;width:100%;height:160px;object-fit:contain;background:#f0f0f0;
box-sizing:border-box;border:3px solid transparent}section{margin-bottom:1.2rem}
.preferred{color:#1d7430;font-weight:600}
.preferred img{border-color:#2c8a3d}
figcaption{font-size:13px;overflow-wrap:anywhere;margin-top:.3rem}
figcaption small{color:#666}
"""


def page(report: dict, examples: list[tuple[str, Pair]], bad_rows: list[dict]) -> str:
  """The report as a self-contained HTML page.

  Args:
    report: From `report.summary`.
    examples: From `report.examples`.
    bad_rows: The first skipped rows.

  Returns:
    HTML.
  """
  read, found, source = report["read"], report["found"], escape(report["source"])
  skipped = found["undecodable"] + found["bad_rows"]
  splits = ((n, s["pairs"], s["prompts"]) for n, s in report["splits"].items())
  dropped = ((DROPPED[n], c) for n, c in report["dropped"].items())
  reencoded = report["reencoded_images"].items()
  lines = [
    "<!doctype html><html lang='en'><meta charset='utf-8'>",
    "<meta name='viewport' content='width=device-width'>",
    f"<title>Conversion of {source}</title><style>{STYLE}</style>",
    f"<h1>Preference pairs from {source}</h1>",
    f"<p class=lead>{report['kept']:,} of {read['pairs']:,} pairs are kept, "
    f"from {read['rows']:,} rows{f', of which {skipped:,} were skipped' if skipped else ''}.</p>",
    "<div class=cards>",
    "<div>",
    _card("Kept", ("split", "pairs", "prompts"), splits, "A prompt is in one split only."),
    _card("Re-encoded as RGB", ("reason", "images"), reencoded, "Other images keep their bytes."),
    "</div>",
    _card("Found", ("", ""), _named(found), "Before pairs were dropped."),
    _card("Dropped", ("", ""), dropped, "With the option of each reason."),
    "</div><h2>Pairs that are kept</h2><div class=cards>",
    _bars("P(image_0 is preferred)", report["labels"]),
    _bars("Sizes of images, height x width", report["sizes"]),
    _bars("Tokens of captions", report["caption_tokens"]),
    "</div><h2>Examples</h2>",
    f"<p class=note>{len(examples)} pairs, chosen by the hash of their ids.</p>",
    "<div class=pairs>",
    *(_figure(split, pair) for split, pair in examples),
    "</div>",
  ]
  if bad_rows:
    rows = ((b["file"], b["row"], b["reason"]) for b in bad_rows)
    note = (
      f"The first {len(bad_rows)} of {skipped + found['repeated_ids']}; bad_rows.jsonl has all."
    )
    lines += ["<h2>Skipped rows</h2>", _table(("file", "row", "reason"), rows, note)]
  lines += ["<h2>Options</h2>", _table(("", ""), _named(report["options"]), "")]
  text = "\n".join(lines) + "</html>\n"
  return text.encode("utf-8", "backslashreplace").decode()


def _named(values: dict):
  return ((name.replace("_", " "), value) for name, value in values.items())


def _card(title: str, head: tuple[str, ...], rows, note: str) -> str:
  return f"<section><h3>{title}</h3>{_table(head, rows, note)}</section>"


def _table(head: tuple[str, ...], rows, note: str) -> str:
  """A table, with numbers aligned to the right and rows of zeros in grey."""
  lines = []
  for row in rows:
    style = " class=zero" if isinstance(row[1], int) and row[1] == 0 else ""
    cells = (
      f"<td class=n>{value:,}" if isinstance(value, int) else f"<td class=wide>{escape(str(value))}"
      for value in row
    )
    lines.append(f"<tr{style}>{''.join(cells)}")
  names = "".join(
    f"<th{' class=n' if n in ('pairs', 'prompts', 'images') else ''}>{n}" for n in head
  )
  body = f"<tr>{names}{''.join(lines)}" if any(head) else "".join(lines)
  return f"<p class=note>{note}</p><table>{body if lines else '<tr><td>none'}</table>"


def _bars(title: str, values: dict[str, int]) -> str:
  most, total = max([1, *values.values()]), max(1, sum(values.values()))
  rows = (
    f"<tr{'' if n else ' class=zero'}><td>{escape(name)}<td class=n>{n:,}<td class=n>"
    f"{f'{n / total:.1%}' if n else ''}<td>"
    + (f"<span class=bar style='width:{max(1, 110 * n / most):.0f}px'></span>" if n else "")
    for name, n in values.items()
  )
  return f"<section><h3>{title}</h3><table>{''.join(rows)}</table></section>"


def _figure(split: str, pair: Pair) -> str:
  figures = []
  for encoded, size, p, model in (
    (pair.image_0, pair.size_0, pair.p0, pair.model_0),
    (pair.image_1, pair.size_1, 1 - pair.p0, pair.model_1),
  ):
    image = images.decode(encoded)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "PNG" if max(size) <= THUMBNAIL else "JPEG", quality=85)
    kind = "png" if max(size) <= THUMBNAIL else "jpeg"
    data = base64.b64encode(out.getvalue()).decode()
    figures.append(
      f"<div class='image{' preferred' if p > 0.5 else ''}'>"
      f"<img alt='' src='data:image/{kind};base64,{data}'>"
      f"{f'P = {p:.3g}' if p != 0.5 else 'tie'} &middot; {size[0]}x{size[1]}"
      f"{f'<br>{escape(model[:60])}' if model else ''}</div>"
    )
  prompt = pair.prompt[:MAX_CAPTION] + ("..." if len(pair.prompt) > MAX_CAPTION else "")
  return (
    f"<figure><div>{''.join(figures)}</div><figcaption>{escape(prompt)}<br><small>"
    f"{escape(split)}, weight {pair.weight:.3g}, id {escape(pair.id[:80])}</small>"
    "</figcaption></figure>"
  )
