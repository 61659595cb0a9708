"""Pairs of data sets that have one edit for each instruction, and so no rejected image."""

from dmpo_jax.data.convert.sources.raw_pair import RawPair, swapped
from dmpo_jax.data.pairs import preferred_first


def against_source(*, id: str, prompt: str, source: bytes | str, edit: bytes | str) -> RawPair:
  """The pair of an edit and its source image: the edit is preferred to leaving the image alone.

  Args:
    id: Unique in the data set.
    prompt: The instruction.
    source: The image that was edited.
    edit: The edited image.

  Returns:
    The pair, its images in random order.
  """
  pair = RawPair(id=id, prompt=prompt, image_0=edit, image_1=source, p0=1.0, condition=source)
  return pair if preferred_first(id) else swapped(pair)
