"""HPSv2 and HPSv2.1: human preference scores."""

from functools import partial

from dmpo_jax.evaluation.scorers.base import Kind, Scorer

REPOSITORY = "xswu/HPSv2"
FILES = {"hpsv2": "HPS_v2_compressed.pt", "hpsv2.1": "HPS_v2.1_compressed.pt"}


def load(
  name: str,
  weights: str,
  *,
  dtype: str,
  batch_size: int,
  devices,
  tokenizer: str | None = None,
  antialias: bool = True,
) -> Scorer:
  """Human preference score of an image and its prompt.

      s = cos(text, image)

  without a scale. The benchmark of its authors prints 100 s. Scores of the two versions do not
  compare.

  Args:
    name: "hpsv2" or "hpsv2.1".
    weights: `HPS_v2_compressed.pt` or `HPS_v2.1_compressed.pt`, or a folder or repository with it.
    dtype: "float32" or "bfloat16".
    batch_size: Images at once on all devices.
    devices: Devices that share a batch; None: those of this process.
    tokenizer: Folder or repository of CLIP's tokenizer.
    antialias: Whether resizing has an antialiasing filter. The original resizes tensors with
      torchvision's default, which was False before 0.17 and is True since then.

  Returns:
    A `Scorer` with features.

  Raises:
    InputError: The weights cannot be had or do not fit.

  Source: arXiv 2306.09341; tgxs002/HPSv2. Prompts with HTML entities or wrong encodings are not
    repaired, as the original does.
  """
  from dmpo_jax.evaluation.scorers.clip_features import find_file, load_features
  from dmpo_jax.evaluation.scorers.preprocess import Preprocessing

  clip = load_features(
    find_file(weights, FILES[name]),
    dtype=dtype,
    batch_size=batch_size,
    devices=devices,
    preprocessing=Preprocessing(0, tensor=True, antialias=antialias, crop="torchvision"),
    tokenizer=tokenizer,
    activation="gelu",
  )
  shown = name if antialias else f"{name} (no antialiasing)"
  return Scorer(shown, clip.cosine, clip.images, needs_prompts=True)


KINDS = {
  name: Kind(
    partial(load, name),
    f"{name.upper().replace('HPSV', 'HPSv')}: a cosine; its authors print 100 times as much.",
    f"{file}, or a folder or repository with it; it is published in {REPOSITORY}",
  )
  for name, file in FILES.items()
}
