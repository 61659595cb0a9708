"""Pieces of HTML reports that need no other file, and how their numbers are written."""

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence

from dmpo_jax.evaluation import plots
from dmpo_jax.evaluation.stylesheet import CSS


def page(title: str, body: str, colours: Sequence[tuple[str, str]] = ()) -> str:
  """A whole page, for light and dark settings of the browser.

  Args:
    title: Title of the page, plain text.
    body: HTML.
    colours: Colours of the models on a light and on a dark page; the class m0, m1, ... of an
      element sets them for what is in it.

  Returns:
    HTML.
  """
  variables = "".join(
    f".m{i}{{--model:{light}}}@media(prefers-color-scheme:dark){{.m{i}{{--model:{dark}}}}}"
    for i, (light, dark) in enumerate(colours)
  )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escaped(title)}</title>\n<style>{CSS}{variables}</style>\n</head>\n"
    f"<body><main>\n{body}</main></body>\n</html>\n"
  )


def section(title: str, content: str) -> str:
  """Section with a heading; empty content gives no section."""
  return f"<section>\n<h2>{title}</h2>\n{content}</section>\n" if content else ""


def picture(png: bytes, alt: str, kind: str = "") -> str:
  """Image tag with the PNG inside."""
  return f'<img class="{kind}" alt="{escaped(alt)}" src="{_uri(png)}">'


def plot(draw: Callable[[plots.Theme], bytes], alt: str) -> str:
  """Plot in the colours of a light and of a dark page; the browser's setting chooses."""
  return (
    f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(draw(plots.DARK))}">'
    f'<img alt="{escaped(alt)}" src="{_uri(draw(plots.LIGHT))}"></picture>'
  )


def picture_of(content: tuple[str, bytes], alt: str) -> str:
  """Image tag with a picture inside, given as MIME type and bytes."""
  kind, image = content
  return f'<img loading="lazy" alt="{escaped(alt)}" src="{_uri(image, kind)}">'


def table(heads: Sequence[str], rows: str) -> str:
  """Table of HTML rows below their heads."""
  head = "".join(f"<th>{escaped(text)}</th>" for text in heads)
  return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{rows}</table></div>\n'


def cell(interval: Sequence[float] | None, form: Callable[[float], str]) -> str:
  """Table cell with an estimate and its interval below; a dot for None."""
  if interval is None:
    return "<td>·</td>"
  return f"<td>{form(interval[0])}<small>{ends(interval, form)}</small></td>"


def _uri(image: bytes, kind: str = "image/png") -> str:
  return f"data:{kind};base64," + base64.b64encode(image).decode()


def figure(title: str, content: str, caption: str) -> str:
  """Figure with a heading and a caption."""
  return f"<figure><h3>{escaped(title)}</h3>{content}<figcaption>{caption}</figcaption></figure>\n"


def key_value_table(rows: Mapping[str, object], kind: str = "left") -> str:
  """Table of two columns."""
  cells = "".join(f"<tr><th>{escaped(k)}</th><td>{value(v)}</td></tr>" for k, v in rows.items())
  return f'<div class="scroll"><table class="{kind}">{cells}</table></div>'


def escaped(value: object) -> str:
  """Text with HTML's special characters escaped."""
  return html.escape(str(value))


def percent(x: float) -> str:
  """Fraction as a percentage with one decimal, 0% and 100% without."""
  return f"{x:.0%}" if x in (0, 1) else f"{x:.1%}"


def signed(x: float) -> str:
  """Number with its sign and three decimals."""
  return f"{x:+.3f}".replace("-", "−")


def points(x: float) -> str:
  """Difference of fractions in percentage points, with its sign."""
  return f"{100 * x:+.1f}".replace("-", "−")


def ends(interval: Sequence[float], form: Callable[[float], str]) -> str:
  """Ends of an interval (value, low, high)."""
  return f"{form(interval[1])} to {form(interval[2])}"


def with_interval(interval: Sequence[float], form: Callable[[float], str]) -> str:
  """Ends of an interval with the words for it."""
  return f"95% interval {ends(interval, form)}"


def name_list(models: Iterable[Mapping]) -> str:
  """Labels of models as an enumeration."""
  labels = [model["label"] for model in models]
  return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def value(x: object) -> str:
  """Value of any type, floats with four digits, as HTML."""
  if isinstance(x, bool) or not isinstance(x, float):
    return escaped(x)
  return escaped(f"{x:.4g}")


def duration(seconds: float) -> str:
  """Seconds, from a minute on with minutes."""
  if seconds < 60:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest} s"
