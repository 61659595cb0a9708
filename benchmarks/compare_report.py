"""Report of the comparison of objectives: tables in markdown, and a figure."""

import datetime
import io
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from compare_setting import CENTRAL
from scipy import stats

from dmpo_jax.common import files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.common.optional import import_optional
from dmpo_jax.evaluation.plots import LIGHT

Runs = Sequence[Mapping[str, Any]]
LABELS = {
  "dmpo": "DMPO",
  "cdpo": "cDPO, same α",
  "dpo": "DPO",
  "dpo_beta_up": "DPO, β × 2.3",
  "dpo_beta_down": "DPO, β / 2.3",
}
COLUMNS = {"step": ".0f", "gain": "+.4f", "win_rate": ".3f", "right": ".3f", "vendi": ".3f"}
COLUMNS |= {"error_change": "+.4f"}


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
  """Mean of independent runs and the half width of its 95% interval (Student's t); NaN for one."""
  x = np.asarray(values, float)
  if len(x) < 2:
    return float(x.mean()), float("nan")
  return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def text(values: Sequence[float], form: str) -> str:
  """The mean and its interval: "+0.0312 ± 0.0012"."""
  if not len(values):
    return ""
  mean, half = mean_and_half_width(values)
  return f"{mean:{form}}" + ("" if np.isnan(half) else f" ± {half:{form.replace('+', '')}}")


def points(runs: Runs, name: str, flip_rate: float, level: float | None) -> dict[int, Mapping]:
  """seed -> the point of each run at a level; None: where it ended without reaching all levels."""
  return {
    run["seed"]: point
    for run in runs
    if run["name"] == name and run["flip_rate"] == flip_rate
    for point in run["points"]
    if point["level"] == level
  }


def differences(
  runs: Runs, other: str, flip_rate: float, level: float, key: str, name: str = "dmpo"
) -> list[float]:
  """A number of one objective less that of another, seed by seed, where both reached the level."""
  mine, theirs = (points(runs, n, flip_rate, level) for n in (name, other))
  return [mine[seed][key] - theirs[seed][key] for seed in sorted(mine.keys() & theirs.keys())]


def write(
  workdir: pathlib.Path, setting: Mapping[str, Any], runs: Runs, names: Sequence[str]
) -> None:
  """Writes report.md and compare.png over finished runs.

  Args:
    workdir: Work directory, which holds reference.json.
    setting: Its settings.
    runs: The runs.
    names: All objectives, in the order of the tables.
  """
  flips = sorted({run["flip_rate"] for run in runs})
  names = [name for name in names if any(run["name"] == name for run in runs)]
  reference = files.read_json(workdir / "reference.json")
  now = datetime.datetime.now(datetime.UTC).date().isoformat()
  processor = sum(run["processor_seconds"] for run in runs)
  lines = [
    f"# Objectives at equal movement: {setting['data']}",
    "",
    f"{len(runs)} runs, {processor / 60:.0f} minutes of processor time without compilation; "
    f"{os.cpu_count()} x {platform.machine()}, {now}. Settings: `{json.dumps(dict(setting))}`.",
    f"Reference: score {reference['score']:.4f}, right {reference['right']:.3f}, Vendi "
    f"{reference['vendi']:.3f}. Means over seeds with 95% intervals of Student's t.",
    "",
    "![Gain over flipped labels](compare.png)",
  ]
  for level in setting["levels"]:
    for rate in flips:
      lines += ["", f"## Movement {level:g}, {rate:.0%} of labels flipped", ""]
      lines += table(runs, names, rate, level)
  if "dmpo" in names:
    lines += ["", "## DMPO less other objectives, seed by seed", ""]
    lines += paired_table(runs, [n for n in names if n != "dmpo"], flips, setting["levels"])
  lines += ["", "## Runs that ended before the last level", "", *short_runs(runs, names, flips)]
  write_atomically(workdir / "report.md", "\n".join(lines) + "\n")
  write_atomically(workdir / "compare.png", figure(runs, names, flips, setting["levels"]))


def table(runs: Runs, names: Sequence[str], flip_rate: float, level: float) -> list[str]:
  """Rows of a markdown table: objectives at a level."""
  heads = ["steps", "gain", "win rate", "right", "Vendi", "held-out error"]
  lines = ["| objective | seeds | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
  for name in names:
    at = points(runs, name, flip_rate, level)
    if not any(run["name"] == name and run["flip_rate"] == flip_rate for run in runs):
      continue
    cells = [text([p[key] for p in at.values()], form) for key, form in COLUMNS.items()]
    lines.append(f"| `{name}` | {len(at)} | " + " | ".join(cells) + " |")
  return lines


def paired_table(
  runs: Runs, others: Sequence[str], flips: Sequence[float], levels: Sequence[float]
) -> list[str]:
  """Rows of a markdown table: differences from DMPO at equal seed, flips and movement."""
  keys = {"gain": "+.4f", "right": "+.3f", "vendi": "+.3f"}
  lines = ["| DMPO less | flips | movement | seeds | " + " | ".join(keys) + " |"]
  lines += ["|---" * (len(keys) + 4) + "|"]
  for other in others:
    for rate in flips:
      for level in levels:
        both = {key: differences(runs, other, rate, level, key) for key in keys}
        if not both["gain"]:
          continue
        cells = " | ".join(text(values, keys[key]) for key, values in both.items())
        lines.append(f"| `{other}` | {rate:.0%} | {level:g} | {len(both['gain'])} | {cells} |")
  return lines


def short_runs(runs: Runs, names: Sequence[str], flips: Sequence[float]) -> list[str]:
  """Rows of a markdown table: where runs ended that did not reach all levels."""
  lines = ["| objective | flips | runs | steps | movement | gain | held-out error |"]
  lines += ["|---" * 7 + "|"]
  for name in names:
    for rate in flips:
      ends = points(runs, name, rate, None).values()
      if ends:
        cells = [
          text([p["movement"] for p in ends], ".4f"),
          text([p["gain"] for p in ends], "+.4f"),
        ]
        cells.append(text([p["error_change"] for p in ends], "+.4f"))
        steps = max(p["step"] for p in ends)
        lines.append(f"| `{name}` | {rate:.0%} | {len(ends)} | {steps:.0f} | {' | '.join(cells)} |")
  return lines


def figure(
  runs: Runs, names: Sequence[str], flips: Sequence[float], levels: Sequence[float]
) -> bytes:
  """PNG: gain at each level over flips; movement over steps; gain of all objectives.

  Args:
    runs: The runs.
    names: Objectives, in order.
    flips: Rates of flipped labels.
    levels: Movements.
  """
  pyplot = import_optional("matplotlib.pyplot", extra="monitor")
  columns = max(3, len(levels))
  drawing, axes = pyplot.subplots(
    2, columns, figsize=(3.6 * columns, 6.8), layout="constrained", squeeze=False
  )
  central = [name for name in CENTRAL if name in names]
  for axis, level in zip(axes[0], levels, strict=False):
    for name in central:
      _gain_over_flips(axis, runs, name, flips, level)
    axis.set_title(f"gain at movement {level:g}", fontsize=10)
    axis.set_xticks([100 * rate for rate in flips])
    axis.set_xlabel("labels flipped (%)", fontsize=9)
  for axis, rate in zip(axes[1], (flips[0], flips[-1]), strict=False):
    for name in central:
      _movement_over_steps(axis, runs, name, rate)
    axis.set_title(f"movement, {rate:.0%} of labels flipped", fontsize=10)
    axis.set_xlabel("step", fontsize=9)
  _gain_of_all(axes[1][2], runs, names, flips, levels[0])
  for axis in (*axes[0][len(levels) :], *axes[1][3:]):
    axis.set_axis_off()
  for axis in axes.flat:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
  if central:
    axes[1][0].legend(fontsize=8, frameon=False)
  stream = io.BytesIO()
  drawing.savefig(stream, format="png", dpi=110, metadata={"Software": None})
  pyplot.close(drawing)
  return stream.getvalue()


def _style(name: str) -> dict[str, Any]:
  return {"color": LIGHT.models[1:][CENTRAL.index(name)], "label": LABELS[name]}


def _gain_over_flips(axis, runs, name, flips, level) -> None:
  rows = []
  for rate in flips:
    values = [p["gain"] for p in points(runs, name, rate, level).values()]
    if values:
      rows.append((100 * rate + 0.5 * (CENTRAL.index(name) - 2), *mean_and_half_width(values)))
  if rows:
    x, mean, half = np.transpose(rows)
    half = np.nan_to_num(half)
    axis.errorbar(x, mean, half, marker="o", markersize=4, capsize=2, **_style(name))


def _movement_over_steps(axis, runs, name, rate) -> None:
  """A line for each seed."""
  mine = [run for run in runs if run["name"] == name and run["flip_rate"] == rate]
  for i, run in enumerate(mine):
    style = _style(name) if i == 0 else {"color": _style(name)["color"]}
    axis.plot(*np.transpose(run["trajectory"]), linewidth=1.2, alpha=0.8, **style)


def _gain_of_all(axis, runs, names, flips, level) -> None:
  """Gain of all objectives at a level, one row each, without flips and at the largest rate."""
  for i, rate in enumerate(dict.fromkeys((flips[0], flips[-1]))):
    label = f"{rate:.0%} flipped"
    for row, name in enumerate(names):
      values = [p["gain"] for p in points(runs, name, rate, level).values()]
      if not values:
        continue
      mean, half = mean_and_half_width(values)
      place = -row + 0.15 - 0.3 * i
      style = {"color": LIGHT.models[1 + i], "marker": "o", "markersize": 4, "capsize": 2}
      axis.errorbar(mean, place, xerr=np.nan_to_num(half), label=label, **style)
      label = None
  axis.set_yticks([-row for row in range(len(names))], names)
  axis.set_title(f"gain at movement {level:g}", fontsize=10)
  axis.locator_params(axis="x", nbins=5)
  axis.legend(fontsize=8, frameon=False)
