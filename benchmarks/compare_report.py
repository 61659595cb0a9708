"""Report of the comparison of objectives: tables in markdown, and a figure."""

import datetime
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
  """PNG: gain, steps and Vendi of the central objectives over flips, and the gain of all."""
  import io

  pyplot = import_optional("matplotlib.pyplot", extra="monitor")
  central = [name for name in CENTRAL if name in names]
  columns = len(levels)
  drawing, axes = pyplot.subplots(
    2, columns, figsize=(3.4 * columns, 6.4), layout="constrained", squeeze=False
  )
  for column, level in enumerate(levels):
    top = axes[0][column]
    for i, name in enumerate(central):
      _line(top, runs, name, flips, level, "gain", i)
    top.set_title(f"movement {level:g}", fontsize=10)
    top.set_xlabel("labels flipped (%)")
    _dots(axes[1][column], runs, names, [f for f in (0.0, 0.2) if f in flips], level)
  axes[0][0].set_ylabel("gain of the score")
  if central:
    axes[0][0].legend(fontsize=7, frameon=False)
  for ax in axes.flat:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
  stream = io.BytesIO()
  drawing.savefig(stream, format="png", dpi=130)
  pyplot.close(drawing)
  return stream.getvalue()


def _line(ax, runs, name, flips, level, key, number) -> None:
  x, y, half = [], [], []
  for rate in flips:
    values = [p[key] for p in points(runs, name, rate, level).values()]
    if values:
      mean, width = mean_and_half_width(values)
      x.append(100 * rate + 0.6 * (number - 2))
      y.append(mean)
      half.append(0.0 if np.isnan(width) else width)
  if x:
    colour = LIGHT.models[1:][number]
    label = LABELS[name]
    ax.errorbar(x, y, half, color=colour, marker="o", markersize=4, capsize=2, label=label)


def _dots(ax, runs, names, rates, level) -> None:
  """Gain of all objectives at a level, one row each, for the rates."""
  places = {name: -i for i, name in enumerate(names)}
  for i, rate in enumerate(rates):
    for name, place in places.items():
      values = [p["gain"] for p in points(runs, name, rate, level).values()]
      if values:
        mean, width = mean_and_half_width(values)
        ax.errorbar(
          mean,
          place + 0.15 - 0.3 * i,
          xerr=None if np.isnan(width) else width,
          color=LIGHT.models[1 + i],
          marker="o",
          markersize=4,
          capsize=2,
          label=f"{rate:.0%} flipped" if name == names[0] else None,
        )
  ax.set_yticks(list(places.values()), list(places), fontsize=7)
  ax.set_xlabel("gain of the score")
  ax.legend(fontsize=7, frameon=False)
