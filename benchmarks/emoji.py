"""Evaluation of aligned emoji models on training and held-out captions, and a picture of samples.

    python benchmarks/emoji.py --folder data/emoji --reference runs/emoji/reference/pipeline \
      dmpo=runs/emoji/dmpo/pipeline dpo=runs/emoji/dpo/pipeline --out runs/emoji/evaluation

`dmpo-jax evaluate` compares the models on all held-out captions and as many training captions,
chosen at random. This program makes its prompt set, whose categories are the two kinds of captions,
and adds the drawings: their own score, the fraction of samples whose nearest drawing of the folder
(squared distance over pixels) is that of their caption, and a picture of samples beside them.
Arguments that it does not know go to `dmpo-jax evaluate`.
"""

import argparse
import csv
import io
import pathlib
import unicodedata

import numpy as np

from dmpo_jax.commands import main as command_line
from dmpo_jax.common import files
from dmpo_jax.common.atomic_files import write_atomically
from dmpo_jax.data.toy import image_captions
from dmpo_jax.evaluation import image_grids, statistics
from dmpo_jax.evaluation.score_files import read_image
from dmpo_jax.evaluation.scorers import parse_scorer
from dmpo_jax.evaluation.units import of_folder
from dmpo_jax.sampling.images import to_uint8

PARTS = {"train": "training captions", "test": "held-out captions"}


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--folder", type=pathlib.Path, required=True, help="folder of dmpo-jax data emoji")
  add("--reference", required=True, help="its pipeline folder")
  add("--scorer", action="append", help="a scorer of dmpo-jax evaluate (default: colourfulness)")
  add("--captions", type=int, help="captions of each kind (default: all held-out ones)")
  add("--out", type=pathlib.Path, required=True, help="folder of the evaluation")
  options, rest = parser.parse_known_args(arguments)
  scorers = options.scorer or ["colourfulness"]
  parts = {split: image_captions.load(options.folder, size=16, split=split) for split in PARTS}
  count = min(options.captions or len(parts["test"]), *map(len, parts.values()))
  chosen = {
    split: sorted(np.random.default_rng(0).permutation(len(part))[:count])
    for split, part in parts.items()
  }
  options.out.mkdir(parents=True, exist_ok=True)
  prompts = options.out / "prompts.csv"
  write_atomically(prompts, prompt_set(parts, chosen))
  command = ["evaluate", "--reference", options.reference, "--prompts", str(prompts)]
  command += ["--out", str(options.out), *(x for s in scorers for x in ("--scorer", s))]
  command += ["--solver", "dpm_solver_pp_2m", "--steps", "10", "--guidance", "2", *rest]
  if status := command_line.main(command):
    return status
  models = files.read_json(options.out / "evaluation.json")["models"]
  sheets, units = {}, {}
  for model in models:
    folder = options.out / "images" / model["name"]
    units[model["name"]], names = of_folder(folder)
    sheets[model["name"]] = np.stack([read_image(folder / name) for name in names]) / 127.5 - 1
  size = sheets[models[0]["name"]].shape[1]  # drawings are compared at the size of the samples
  drawings = np.concatenate(
    [image_captions.load(options.folder, size=size, split=split).images[:, 0] for split in PARTS]
  )  # [N, H, W, C]
  captions = np.array([caption for part in parts.values() for caption in part.captions])
  first = np.cumsum([0, *map(len, parts.values())])
  shown = {split: first[i] + np.array(chosen[split]) for i, split in enumerate(parts)}
  for split, rows in shown.items():
    for text in scorers:
      scorer = parse_scorer(text)
      scores = scorer.score(np.asarray(to_uint8(drawings[rows])), captions[rows].tolist())
      print(f"{scorer.name} of the drawings, {PARTS[split]}: {statistics.bootstrap(scores)}")
  for name, samples in sheets.items():
    right = right_drawing(samples, np.array(units[name].prompts), drawings, captions)
    for split in parts:
      mine = np.isin(units[name].prompts, captions[shown[split]])
      rate = statistics.bootstrap(right[mine], groups=units[name].groups[mine])
      print(f"{name}, {PARTS[split]}: nearest drawing right {rate.as_percent()}")
  write_picture(options.out / "samples.png", shown, drawings, captions, sheets)
  return 0


def prompt_set(parts, chosen):
  """The chosen captions as CSV, with the kind of each as its category."""
  stream = io.StringIO(newline="")
  table = csv.writer(stream, lineterminator="\n")
  table.writerow(("prompt", "category"))
  for split, rows in chosen.items():
    table.writerows((parts[split].captions[i], PARTS[split]) for i in rows)
  return stream.getvalue()


def right_drawing(images, prompts, drawings, captions):
  """Whether the nearest drawing of each sample is that of its caption."""
  x, y = images.reshape(len(images), -1), drawings.reshape(len(drawings), -1)
  distance = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
  return captions[distance.argmin(axis=1)] == prompts


def write_picture(path, shown, drawings, captions, sheets):
  """Writes a row for each of 12 captions, evenly spaced among the measured ones: the drawing, then
  every model's samples from the same noise."""
  every = np.concatenate(list(shown.values()))
  count = len(every) // 2
  places = np.r_[np.linspace(0, count - 1, 7), np.linspace(count, 2 * count - 1, 5)].astype(int)
  panels = [image_grids.Panel("drawing", "", drawings[every[places], None])]
  for name, samples in sheets.items():
    sheet = samples.reshape(len(every), -1, *samples.shape[1:])  # [captions, S, H, W, C]
    label = name.replace("dmpo", "DMPO").replace("dpo", "DPO").replace("sft", "SFT")
    panels.append(image_grids.Panel(label, "", sheet[places]))
  labels = [
    shortened(captions[every[place]]) + (" (held out)" if place >= count else "")
    for place in places
  ]
  image_grids.comparison(panels, labels, scale=4, path=path)


def shortened(caption):
  """At most 32 ASCII letters of a caption."""
  text = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode()
  return text if len(text) <= 32 else text[:29] + "..."


if __name__ == "__main__":
  raise SystemExit(main())
