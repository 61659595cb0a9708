"""A row's pair before its images are read and the options of a conversion are applied."""

from typing import NamedTuple


class RawPair(NamedTuple):
  """A pair whose images are not read yet.

  Attributes:
    id: Unique in the data set.
    prompt: Caption.
    image_0: Encoded bytes, or a path relative to the source's folder of images.
    image_1: The same for the other image.
    p0: P(image_0 is preferred), or None where the row has no label.
    weight: Multiplies the loss of the pair, > 0.
    model_0: Model that made image_0; "" where unknown.
    model_1: Model that made image_1; "" where unknown.
    user_id: Annotator; "" where unknown.
    condition: Image that both images were edited from; b"" for none.
    scores: Scores of image_0 and image_1, higher is better, from which p0 follows where it is None;
      None: no scores.
    seeds: Seeds from which image_0 and image_1 were sampled; None where unknown.
  """

  id: str
  prompt: str
  image_0: bytes | str
  image_1: bytes | str
  p0: float | None
  weight: float = 1.0
  model_0: str = ""
  model_1: str = ""
  user_id: str = ""
  condition: bytes | str = b""
  scores: tuple[float, float] | None = None
  seeds: tuple[int, int] | None = None


def swapped(pair: RawPair) -> RawPair:
  """The same pair with its images in the other order."""
  return pair._replace(
    image_0=pair.image_1,
    image_1=pair.image_0,
    p0=None if pair.p0 is None else 1 - pair.p0,
    model_0=pair.model_1,
    model_1=pair.model_0,
    scores=None if pair.scores is None else pair.scores[::-1],
    seeds=None if pair.seeds is None else pair.seeds[::-1],
  )
