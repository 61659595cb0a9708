"""What alignment did to the emoji model: scores on training and held-out captions, and a picture.

    python benchmarks/emoji.py --folder data/emoji --reference runs/emoji/reference/pipeline \
      dmpo=runs/emoji/dmpo/pipeline dpo=runs/emoji/dpo/pipeline --picture runs/emoji/emoji.png

Every model draws the same captions from the same noise: all held-out captions, and as many of the
training captions, taken at random. Intervals (95%) are bootstrapped over captions, each with the
mean of its samples, since samples of one caption are alike. One training run each: what another run
would give is not in them. "right drawing" is the share of samples whose nearest drawing of the
folder (squared distance over pixels) is that of their caption.
"""

import argparse
import dataclasses
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmpo_jax import evaluation, interop, sampling
from dmpo_jax.data.toy import captioned
from dmpo_jax.evaluation.scorers.pixels import SCORES
from dmpo_jax.pipelines.generate import requests_for, sampler_of

SCALE, GAP, BETWEEN, LABEL, TITLE, MARGIN = 4, 4, 20, 210, 26, 14  # pixels of the picture
PARTS = {"train": "training captions", "test": "held-out captions"}


def cell(interval):
  value, low, high = interval
  return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def share(interval):
  value, low, high = (100 * x for x in interval)
  return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def by_caption(values, seeds):
  """The mean of each caption's samples, `[captions * seeds]` -> `[captions]`."""
  return np.asarray(values, float).reshape(-1, seeds).mean(axis=1)


def right_drawing(images, captions, drawings):
  """Whether each sample's nearest drawing is that of its caption."""
  x = np.clip(images, -1, 1).reshape(len(images), -1)
  y = drawings.images.reshape(len(drawings), -1)
  distance = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
  return np.array(drawings.captions)[distance.argmin(axis=1)] == np.array(captions)


def main(arguments=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--folder", type=pathlib.Path, required=True, help="what dmpo-jax data emoji wrote")
  add("--reference", type=pathlib.Path, required=True, help="its pipeline folder")
  add("models", nargs="*", help="NAME=PIPELINE of the aligned models")
  add("--score", choices=sorted(SCORES), default="colourfulness")
  add("--seeds", type=int, default=4, help="samples of a caption (default: 4)")
  add("--steps", type=int, default=10, help="of DPM-Solver++ 2M (default: 10)")
  add("--guidance", type=float, default=2.0)
  add("--picture", type=pathlib.Path, help="where to write the picture")
  options = parser.parse_args(arguments)
  folders = {"reference": options.reference}
  folders |= {
    name: pathlib.Path(path) for name, _, path in (m.partition("=") for m in options.models)
  }
  pipelines = {name: interop.load_pipeline(folder) for name, folder in folders.items()}
  reference = pipelines["reference"]
  size = reference.configs["unet"]["sample_size"]
  parts = {
    name: captioned.load(options.folder, size=size, split=name) for name in ("train", "test")
  }
  everything = _joined(parts)
  count = min(map(len, parts.values()))
  chosen = {
    name: sorted(np.random.default_rng(0).permutation(len(part))[:count])
    for name, part in parts.items()
  }
  captions = [parts[name].captions[i] for name, rows in chosen.items() for i in rows]
  prompts = np.repeat(captions, options.seeds).tolist()
  sampler = sampler_of(
    reference, num_steps=options.steps, guidance=options.guidance, solver="dpm_solver_pp_2m"
  )
  requests, _ = requests_for(reference, prompts, np.arange(len(prompts)))
  images = {
    name: pipelines.sample_in_batches(sampler, pipeline.params, requests, batch_size=64)
    for name, pipeline in pipelines.items()
  }
  score, half = SCORES[options.score], count * options.seeds
  for place, name in enumerate(chosen):
    mine = slice(place * half, (place + 1) * half)
    real = score(parts[name].images[chosen[name], 0])
    print(f"\n{count} {PARTS[name]} x {options.seeds} samples; {options.score} of the drawings: "
          f"{cell(evaluation.statistics.bootstrap(real))}\n")  # fmt: skip
    print(f"| model | {options.score} | change | win rate | right drawing | Vendi |")
    print("|---|---|---|---|---|---|")
    before = score(images["reference"][mine])
    for model, drawn in images.items():
      level = score(drawn[mine])
      right = right_drawing(drawn[mine], prompts[mine], everything)
      mean, was, hits = (by_caption(v, options.seeds) for v in (level, before, right))
      won = by_caption(evaluation.statistics.wins(level, before), options.seeds)
      groups = np.repeat(np.arange(count), options.seeds)
      against = "| | |" if model == "reference" else (
        f"| {cell(evaluation.statistics.paired_difference(mean, was))} | "
        f"{share(evaluation.statistics.bootstrap(won))} |"
      )  # fmt: skip
      print(
        f"| {model} | {cell(evaluation.statistics.bootstrap(mean))} {against} "
        f"{share(evaluation.statistics.bootstrap(hits))} | "
        f"{evaluation.statistics.vendi(drawn[mine], groups):.3f} |"
      )
  if options.picture:
    draw(options, parts, chosen, images, captions)


def _joined(parts):
  """All drawings of the folder."""
  found = list(parts.values())
  return dataclasses.replace(
    found[0],
    images=np.concatenate([part.images for part in found]),
    captions=[caption for part in found for caption in part.captions],
    ids=np.concatenate([part.ids for part in found]),
  )


def draw(options, parts, chosen, images, captions):
  """A row for each of 12 captions, evenly spaced among those that were measured: the drawing, then
  every model's samples from the same noise."""
  seeds, count = options.seeds, len(captions) // 2
  shown = [
    *np.linspace(0, count - 1, 7).astype(int),
    *np.linspace(count, 2 * count - 1, 5).astype(int),
  ]
  drawings = [parts[name].images[i, 0] for name, rows in chosen.items() for i in rows]
  panels = {"drawing": [[drawings[row]] for row in shown]}
  for name, drawn in images.items():
    sheet = drawn.reshape(len(captions), seeds, *drawn.shape[1:])
    panels[name.replace("dmpo", "DMPO").replace("dpo", "DPO")] = sheet[shown, :seeds]
  side = SCALE * drawings[0].shape[0]
  widths = {name: len(rows[0]) * (side + GAP) - GAP for name, rows in panels.items()}
  width = LABEL + sum(widths.values()) + BETWEEN * len(widths) + MARGIN
  height = TITLE + len(shown) * (side + GAP) + 2 * MARGIN + BETWEEN
  sheet = Image.new("RGB", (width, height), "white")
  pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
  x = LABEL + BETWEEN
  for name, rows in panels.items():
    pen.text((x, MARGIN), name, font=ImageFont.load_default(size=16), fill="#20232b")
    for place, row in enumerate(rows):
      y = MARGIN + TITLE + place * (side + GAP) + BETWEEN * (place >= 7)
      for column, image in enumerate(row):
        pixels = np.asarray(sampling.to_uint8(image))
        tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(tile, (x + column * (side + GAP), y))
    x += widths[name] + BETWEEN
  for place, row in enumerate(shown):
    y = MARGIN + TITLE + place * (side + GAP) + BETWEEN * (place >= 7) + side // 2
    words = captions[row] if len(captions[row]) < 32 else captions[row][:30] + "..."
    pen.text((LABEL, y), words, font=font, fill="#5c6370", anchor="rm")
  pen.text((MARGIN, MARGIN + TITLE + 7 * (side + GAP)), "held out:", font=font, fill="#20232b")
  options.picture.parent.mkdir(parents=True, exist_ok=True)
  sheet.save(options.picture, optimize=True)


if __name__ == "__main__":
  main()
