"""What a source makes of a raw row, before images are read and options applied."""

from typing import NamedTuple

from dmpo_jax.errors import InputError

LABELS = ("soft", "votes", "hard")


class Draft(NamedTuple):
  """A pair whose images are not read yet.

  Attributes:
    id: Unique in the data set.
    prompt: Caption.
    image_0: Encoded bytes, or a path relative to the source's folder of images.
    image_1: The same.
    p0: P(image_0 is preferred), or None where nobody said.
    weight: How much the pair counts.
    model_0: What made image_0.
    model_1: What made image_1.
    user_id: Who judged.
    condition: Image that both were made from, b"" for none.
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


def swapped(draft: Draft) -> Draft:
  """The same pair with its images in the other order."""
  return draft._replace(
    image_0=draft.image_1,
    image_1=draft.image_0,
    p0=None if draft.p0 is None else 1 - draft.p0,
    model_0=draft.model_1,
    model_1=draft.model_0,
  )


def no_votes(source: str) -> InputError:
  """The error for `--labels=votes` where a source does not tell votes."""
  return InputError(f"{source} tells no votes; use --labels=soft or --labels=hard")
