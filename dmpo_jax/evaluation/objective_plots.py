"""Value and slope of losses against the logit of a pair, as numbers and as a plot."""

import io
import math
import os
import textwrap
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmpo_jax import losses
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.optional import import_optional
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.plots import LIGHT, Theme

# Symbols of hyperparameters in titles; the others have their own names.
SYMBOLS = {"beta": "β", "alpha": "α", "mu": "µ"}


class Response(NamedTuple):
  """A loss along the logits z = -beta/2 Δ of one pair.

  Attributes:
    logit: float64 `[N]`.
    value: float64 `[N]`, the loss.
    preferred: float64 `[N]`, d loss/dz through e_w alone, -2/beta ∂loss/∂e_w. Where it is negative,
      descent lowers e_w.
    rejected: float64 `[N]`, d loss/dz through e_l alone, 2/beta ∂loss/∂e_l. Where it is negative,
      descent raises e_l.
  """

  logit: np.ndarray
  value: np.ndarray
  preferred: np.ndarray
  rejected: np.ndarray


def response(loss: Callable, *, beta: float, level: float, logits: np.ndarray) -> Response:
  """Value and gradient of a loss where e_w and e_l move by the same amount.

      e_w = level - z/beta,   e_l = level + z/beta,   r_w = r_l = level

  Each pair is a batch of its own, so that the mean of `kto` is 0. Losses of residuals get parallel
  residuals of one element, √e.

  Args:
    loss: A function of `losses` with its hyperparameters bound.
    beta: Factor between errors and the logits of the axis, independent of the loss's own beta.
    level: Error of the reference, > max |logits|/beta.
    logits: `[N]`.

  Returns:
    `Response`; the computation is in float32.

  Raises:
    InputError: An error would be negative.
  """
  logits = np.asarray(logits, np.float64)
  if not level > np.abs(logits).max() / beta:
    raise InputError(
      f"level must be above max |logit|/beta = {np.abs(logits).max() / beta:g}, got {level:g}: "
      "errors are not negative"
    )
  needs_residuals = losses.requirements(loss).residuals

  def of(moves: jax.Array) -> jax.Array:  # moves of e_w and e_l from level, [2]
    steady = jnp.full((1,), level, jnp.float32)
    fields = (steady + moves[:1], steady + moves[1:], steady, steady)
    errors = losses.PairErrors(*fields)
    more = [losses.Residuals(*(jnp.sqrt(e)[:, None] for e in fields))] if needs_residuals else []
    return loss(errors, *more)[0][0]

  moves = jnp.asarray(np.stack([-logits, logits], axis=1) / beta, jnp.float32)
  value, gradient = jax.jit(jax.vmap(jax.value_and_grad(of)))(moves)
  gradient = np.asarray(gradient, np.float64) * 2 / beta
  return Response(logits, np.asarray(value, np.float64), -gradient[:, 0], gradient[:, 1])


def picture(
  objectives: Mapping[str, Callable],
  *,
  beta: float,
  level: float,
  reach: float = 8.0,
  theme: Theme = LIGHT,
  path: str | os.PathLike | None = None,
) -> bytes:
  """PNG of value and slope of losses against the logit, with two axes per loss.

  Slopes are divided by the absolute slope in e_w at policy = reference, and values too, after their
  value there is subtracted: a constant factor of a loss only changes the learning rate. The factor
  is written in the plot.

  Args:
    objectives: Losses with their hyperparameters bound, by title.
    beta: See `response`.
    level: See `response`.
    reach: The logits range from -reach to reach.
    theme: `LIGHT` or `DARK`.
    path: File to write the PNG to; None writes nothing.

  Returns:
    The PNG.

  Raises:
    InputError: There is no loss, matplotlib is not installed, or `level` is too low.
  """
  if not objectives:
    raise InputError("no loss to plot; give at least one")
  columns = min(4, len(objectives))
  rows = math.ceil(len(objectives) / columns)
  lines = 3 if columns == 1 else 1  # of the legend
  above = 0.72 + 0.2 * lines  # inches over the first axes
  width, height = 0.9 + 2.7 * columns, above + 2.95 * rows
  figure = import_optional("matplotlib.figure").Figure(
    (width, height), dpi=100, facecolor=theme.page
  )
  import_optional("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
  edges = {"left": 0.6 / width, "right": 1 - 0.1 / width, "top": 1 - above / height}
  grid = figure.add_gridspec(rows, columns, **edges, bottom=0.45 / height, hspace=0.5, wspace=0.2)
  logits = np.linspace(-reach, reach, 321)
  for number, (name, loss) in enumerate(objectives.items()):
    row, column = divmod(number, columns)
    cell = grid[row, column].subgridspec(2, 1, hspace=0.08)
    upper, lower = (figure.add_subplot(cell[part]) for part in range(2))
    curve = response(loss, beta=beta, level=level, logits=logits)
    _plot(upper, lower, curve, theme)
    settings = _settings(loss)
    title_height = 1.06 + 0.13 * len(settings)
    style = {"transform": upper.transAxes, "va": "bottom"}
    upper.text(0, title_height, name, fontsize=9.5, fontweight="bold", color=theme.text, **style)
    upper.text(0, 1.05, "\n".join(settings), fontsize=7, color=theme.faint, **style)
    if column == 0:
      upper.set_ylabel("value", fontsize=8, color=theme.faint)
      lower.set_ylabel("slope", fontsize=8, color=theme.faint)
    if number + columns >= len(objectives):
      lower.set_xlabel("logit z", fontsize=8, color=theme.faint)
  figure.legend(
    *lower.get_legend_handles_labels(),
    loc="upper left",
    bbox_to_anchor=(0.5 / width, 1),
    ncols=3 if lines == 1 else 1,
    frameon=False,
    fontsize=8,
    labelcolor=theme.text,
  )
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", metadata={"Software": None})
  if path is not None:
    write_atomically(path, buffer.getvalue())
  return buffer.getvalue()


def _plot(upper, lower, curve: Response, theme: Theme) -> None:
  unit = abs(float(np.interp(0.0, curve.logit, curve.preferred)))
  start = float(np.interp(0.0, curve.logit, curve.value))
  upper.plot(curve.logit, (curve.value - start) / unit, color=theme.text, linewidth=1.6)
  dpo = -(1 - np.tanh(curve.logit / 2))  # -(1 - σ(z)) over its size at z = 0
  lower.plot(curve.logit, dpo, color=theme.faint, linewidth=1, linestyle=":", label="slope of DPO")
  lower.plot(
    curve.logit,
    curve.rejected / unit,
    color=theme.rejected,
    linewidth=2.4,
    label="by the rejected image",
  )
  lower.plot(
    curve.logit,
    curve.preferred / unit,
    "--",
    color=theme.preferred,
    linewidth=1.6,
    label="by the preferred image",
  )
  upper.set_ylim(-4, 16)
  lower.set_ylim(-2.6, 1.1)
  lower.text(
    0.98,
    0.06,
    f"×{unit:.2g}",
    transform=lower.transAxes,
    ha="right",
    fontsize=7.5,
    color=theme.faint,
  )
  for axis in (upper, lower):
    axis.set_xlim(curve.logit[0], curve.logit[-1])
    axis.set_xticks(np.linspace(curve.logit[0], curve.logit[-1], 5))
    axis.axvline(0, color=theme.line, linewidth=1, zorder=0)
    axis.axhline(0, color=theme.line, linewidth=1, zorder=0)
    axis.tick_params(colors=theme.faint, labelsize=7.5, length=2.5)
    axis.patch.set_alpha(0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(theme.line)
  upper.tick_params(labelbottom=False)


def _settings(loss: Callable) -> list[str]:
  """Bound hyperparameters, in short lines."""
  settings = []
  for key, value in getattr(loss, "keywords", {}).items():
    if callable(value):
      settings.append(f"{key}={getattr(value, 'func', value).__name__}")
    elif value is not None:
      number = f"{value:.4g}" if isinstance(value, float) else str(value)
      settings.append(f"{SYMBOLS.get(key, key)}={number}")
  return textwrap.wrap(", ".join(settings), 44)
