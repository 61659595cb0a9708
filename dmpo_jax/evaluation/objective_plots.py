"""What objectives do to a pair: value and pull against the logit, as numbers and as a picture."""

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
from dmpo_jax.common.optional import import_optional
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.plots import LIGHT, Theme

# Names of hyperparameters as titles write them; the others by their own names.
SYMBOLS = {"beta": "β", "alpha": "α", "mu": "µ"}


class Response(NamedTuple):
  """An objective along the logits z = -beta/2 Δ of one pair.

  Attributes:
    logit: float64 `[N]`.
    value: float64 `[N]`, the loss.
    winner: float64 `[N]`, d loss/dz by the winner's error alone, -2/beta ∂loss/∂e_w. Where it is
      negative, descent lowers e_w.
    loser: float64 `[N]`, d loss/dz by the loser's error alone, 2/beta ∂loss/∂e_l. Where it is
      negative, descent raises e_l.
  """

  logit: np.ndarray
  value: np.ndarray
  winner: np.ndarray
  loser: np.ndarray


def response(loss: Callable, *, beta: float, level: float, logits: np.ndarray) -> Response:
  """Value and gradient of an objective where winner and loser move by the same amount.

      e_w = level - z/beta,   e_l = level + z/beta,   r_w = r_l = level

  Each pair is a batch of its own, so that the mean of `kto` is 0. Objectives that want residuals
  get parallel ones of one element, √e.

  Args:
    loss: An objective of `losses`, its hyperparameters bound.
    beta: What turns errors into the logits of the axis, whatever the objective's own beta is.
    level: The reference's error, > max |logits|/beta.
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
      "errors are never negative"
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
  """Value and slope of objectives against the logit, two small axes for each of them.

  Slopes are divided by the size of the winner's slope at policy = reference, so are values once
  their value there is taken off: what is left is the shape, for a constant factor is no more than a
  learning rate. The factor stands in the title. Curves end where the axes end.

  Args:
    objectives: Objectives with their hyperparameters bound, by the names to write above them.
    beta: Of the axis, as in `response`.
    level: The reference's error, as in `response`.
    reach: The logits go from -reach to reach.
    theme: `LIGHT` or `DARK`.
    path: Where to write the picture as well; None writes nothing.

  Returns:
    The picture as PNG.

  Raises:
    InputError: There is no objective, matplotlib is not installed, or `level` is too low.
  """
  if not objectives:
    raise InputError("no objective to draw; give at least one")
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
    found = response(loss, beta=beta, level=level, logits=logits)
    _draw(upper, lower, found, theme)
    small = _settings(loss)
    over = 1.06 + 0.13 * len(small)
    look = {"transform": upper.transAxes, "va": "bottom"}
    upper.text(0, over, name, fontsize=9.5, fontweight="bold", color=theme.text, **look)
    upper.text(0, 1.05, "\n".join(small), fontsize=7, color=theme.faint, **look)
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
    with open(path, "wb") as file:
      file.write(buffer.getvalue())
  return buffer.getvalue()


def _draw(upper, lower, found: Response, theme: Theme) -> None:
  unit = abs(float(np.interp(0.0, found.logit, found.winner)))
  start = float(np.interp(0.0, found.logit, found.value))
  upper.plot(found.logit, (found.value - start) / unit, color=theme.text, linewidth=1.6)
  dpo = -(1 - np.tanh(found.logit / 2))  # -(1 - σ(z)) over its size at z = 0
  lower.plot(found.logit, dpo, color=theme.faint, linewidth=1, linestyle=":", label="slope of DPO")
  lower.plot(
    found.logit, found.loser / unit, color=theme.rejected, linewidth=2.4, label="by the loser"
  )
  lower.plot(
    found.logit,
    found.winner / unit,
    "--",
    color=theme.preferred,
    linewidth=1.6,
    label="by the winner",
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
    axis.set_xlim(found.logit[0], found.logit[-1])
    axis.set_xticks(np.linspace(found.logit[0], found.logit[-1], 5))
    axis.axvline(0, color=theme.line, linewidth=1, zorder=0)
    axis.axhline(0, color=theme.line, linewidth=1, zorder=0)
    axis.tick_params(colors=theme.faint, labelsize=7.5, length=2.5)
    axis.patch.set_alpha(0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(theme.line)
  upper.tick_params(labelbottom=False)


def _settings(loss: Callable) -> list[str]:
  """The hyperparameters that are bound, in short lines."""
  words = []
  for key, value in getattr(loss, "keywords", {}).items():
    if callable(value):
      words.append(f"{key}={getattr(value, 'func', value).__name__}")
    elif value is not None:
      number = f"{value:.4g}" if isinstance(value, float) else str(value)
      words.append(f"{SYMBOLS.get(key, key)}={number}")
  return textwrap.wrap(", ".join(words), 44)
