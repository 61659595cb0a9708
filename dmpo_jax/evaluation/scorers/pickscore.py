"""PickScore: preferences of the users of Pick-a-Pic."""

from dmpo_jax.evaluation.scorers.base import Kind, Scorer


def load(
  weights: str, *, dtype: str, batch_size: int, devices, tokenizer: str | None = None
) -> Scorer:
  """PickScore of an image and its prompt.

      s = exp(logit_scale) cos(text, image)

  The preference between two images of a prompt has the logit s_1 - s_2. Other programs print the
  cosine alone (Diffusion-DPO) or s / 26 (flow_grpo).

  Args:
    weights: Folder or hub repository of transformers' CLIPModel, or another CLIP that was trained
      as this one.
    dtype: "float32" or "bfloat16".
    batch_size: Images at once on all devices.
    devices: Devices that share a batch; None: those of this process.
    tokenizer: Folder or repository of the tokenizer; None: that of `weights`.

  Returns:
    A `Scorer` with features.

  Raises:
    InputError: The weights cannot be had or do not fit.

  Source: arXiv 2305.01569; yuvalkirstain/PickScore.
  """
  from dmpo_jax.evaluation.scorers.clip_features import load_features

  clip = load_features(
    weights, dtype=dtype, batch_size=batch_size, devices=devices, tokenizer=tokenizer
  )
  return Scorer(
    "pickscore",
    lambda images, prompts: clip.scale * clip.cosine(images, prompts),
    clip.images,
    needs_prompts=True,
  )


KIND = Kind(
  load,
  "PickScore: preferences of Pick-a-Pic's users; a difference of scores is a logit.",
  "the folder or repository of a CLIPModel; the published one is yuvalkirstain/PickScore_v1",
)
