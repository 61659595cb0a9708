"""Scores of aligned emoji models on training and held-out captions, and a picture of samples.

    python benchmarks/emoji.py --folder data/emoji --reference runs/emoji/reference/pipeline \
      dmpo=runs/emoji/dmpo/pipeline dpo=runs/emoji/dpo/pipeline --picture runs/emoji/emoji.png

Every model samples the same captions from the same noise: all held-out captions, and as many
training captions, chosen at random. Intervals (95%) are bootstrapped over captions, each with the
mean of its samples, since samples of one caption are similar. There is one training run per model;
the variation between runs is not in the intervals. "right drawing" is the fraction of samples whose
nearest drawing of the folder (squared distance over pixels) is that of their caption.
"""

import argparse
import dataclasses
import pathlib
import unicodedata

import numpy as np

from dmpo_jax import pipelines
from dmpo_jax.data.toy import image_captions
from dmpo_jax.evaluation import image_grids, statistics
from dmpo_jax.evaluation.scorers import parse_scorer
from dmpo_jax.sampling.images import to_uint8

PARTS = {"train": "training captions", "test": "held-out captions"}


def by_caption(values, seeds):
  """Mean of each caption's samples, `[captions * seeds]` -> `[captions]`."""
  return np.asarray(values, float).reshape(-1, seeds).mean(axis=1)


def score(scorer, images, prompts):
  """Scores of images in [-1, 1]."""
  return scorer.score(np.asarray(to_uint8(images)), prompts)


def right_drawing(images, captions, drawings):
  """Whether each sample's nearest drawing is that of its caption."""
  x = np.clip(images, -1, 1).reshape(len(images), -1)
  y = drawings.images.reshape(len(drawings), -1)
  distance = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
  return np.array(drawings.captions)[distance.argmin(axis=1)] == np.array(captions)


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--folder", type=pathlib.Path, required=True, help="folder of dmpo-jax data emoji")
  add("--reference", type=pathlib.Path, required=True, help="its pipeline folder")
  add("models", nargs="*", help="NAME=PIPELINE of the aligned models")
  add("--scorer", default="colourfulness", help="NAME[=WEIGHTS] (default: colourfulness)")
  add("--seeds", type=int, default=4, help="samples per caption (default: 4)")
  add("--steps", type=int, default=10, help="steps of DPM-Solver++(2M) (default: 10)")
  add("--guidance", type=float, default=2.0)
  add("--picture", type=pathlib.Path, help="PNG file to write")
  options = parser.parse_args(arguments)
  folders = {"reference": options.reference}
  folders |= {
    name: pathlib.Path(path) for name, _, path in (m.partition("=") for m in options.models)
  }
  models = {name: pipelines.load(folder) for name, folder in folders.items()}
  reference = models["reference"]
  size = reference.configs["unet"]["sample_size"]
  parts = {
    name: image_captions.load(options.folder, size=size, split=name) for name in ("train", "test")
  }
  everything = _joined(parts)
  count = min(map(len, parts.values()))
  chosen = {
    name: sorted(np.random.default_rng(0).permutation(len(part))[:count])
    for name, part in parts.items()
  }
  captions = [parts[name].captions[i] for name, rows in chosen.items() for i in rows]
  prompts = np.repeat(captions, options.seeds).tolist()
  functions = pipelines.build(reference, dtype=pipelines.default_dtype())
  solver = functions.make_solver(options.steps, name="dpm_solver_pp_2m")
  sampler = pipelines.make_sampler(functions, solver, guidance=options.guidance)
  inputs, _ = pipelines.sampling_inputs(functions, prompts, np.arange(len(prompts)))
  images = {
    name: pipelines.sample_all(sampler, pipeline.params, inputs, batch_size=64)
    for name, pipeline in models.items()
  }
  scorer, half = parse_scorer(options.scorer), count * options.seeds
  for place, name in enumerate(chosen):
    mine = slice(place * half, (place + 1) * half)
    real = score(scorer, parts[name].images[chosen[name], 0], captions[place * count :][:count])
    print(
      f"\n{count} {PARTS[name]} x {options.seeds} samples; {scorer.name} of the drawings: "
      f"{statistics.bootstrap(real)}\n"
    )
    print(f"| model | {scorer.name} | change | win rate | right drawing | Vendi |")
    print("|---|---|---|---|---|---|")
    baseline = score(scorer, images["reference"][mine], prompts[mine])
    groups = np.repeat(np.arange(count), options.seeds)
    for model, samples in images.items():
      values = score(scorer, samples[mine], prompts[mine])
      right = right_drawing(samples[mine], prompts[mine], everything)
      mean, baseline_mean, hits = (by_caption(v, options.seeds) for v in (values, baseline, right))
      won = by_caption(statistics.wins(values, baseline), options.seeds)
      comparison = (
        "| |"
        if model == "reference"
        else f"{statistics.paired_difference(mean, baseline_mean)} | "
        f"{statistics.bootstrap(won).as_percent()} |"
      )
      print(
        f"| {model} | {statistics.bootstrap(mean)} | {comparison} "
        f"{statistics.bootstrap(hits).as_percent()} | "
        f"{statistics.vendi(samples[mine], groups):.3f} |"
      )
  if options.picture:
    write_picture(options.picture, parts, chosen, images, captions, options.seeds)


def _joined(parts):
  """All drawings of the folder."""
  everything = list(parts.values())
  return dataclasses.replace(
    everything[0],
    images=np.concatenate([part.images for part in everything]),
    captions=[caption for part in everything for caption in part.captions],
    ids=np.concatenate([part.ids for part in everything]),
  )


def write_picture(path, parts, chosen, images, captions, seeds):
  """Writes a row for each of 12 captions, evenly spaced among the measured ones: the drawing, then
  every model's samples from the same noise."""
  count = len(captions) // 2
  rows = np.r_[np.linspace(0, count - 1, 7), np.linspace(count, 2 * count - 1, 5)].astype(int)
  drawings = [parts[name].images[i] for name, part in chosen.items() for i in part]  # [1, H, W, C]
  panels = [image_grids.Panel("drawing", "", np.stack([drawings[row] for row in rows]))]
  for name, samples in images.items():
    sheet = samples.reshape(len(captions), seeds, *samples.shape[1:])  # [captions, S, H, W, C]
    label = name.replace("dmpo", "DMPO").replace("dpo", "DPO")
    panels.append(image_grids.Panel(label, "", sheet[rows]))
  labels = [shortened(captions[row]) + (" (held out)" if row >= count else "") for row in rows]
  path.parent.mkdir(parents=True, exist_ok=True)
  image_grids.comparison(panels, labels, scale=4, path=path)


def shortened(caption):
  """At most 32 ASCII letters of a caption."""
  text = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode()
  return text if len(text) <= 32 else text[:29] + "..."


if __name__ == "__main__":
  main()
