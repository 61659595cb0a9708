"""Sources of preference pairs: one module for each published data set, and `custom`.

A new source is a module that has what `SourceModule` lists, and its line in `SOURCES`: the command
line, its help, the planning and the reading of the tables come from there.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from dmpo_jax.data.convert.row_values import Row
from dmpo_jax.data.convert.sources import (
  custom,
  hive,
  hpdv2,
  hpdv3,
  imagerewarddb,
  imgedit,
  instructpix2pix,
  magicbrush,
  open_image_preferences,
  pickapic,
)
from dmpo_jax.data.convert.sources.raw_pair import RawPair


class SourceModule(Protocol):
  """Contract of the modules of this folder. A module's docstring describes the data set.

  Attributes:
    EXAMPLE: Arguments of `dmpo-jax data convert NAME` for its help: a path and options.
    SPLITS: The published splits of the data set, the default first; () where there are none.
    FILES: Description of the files that `files` looks for, for the message where there are none;
      "{split}" stands for the split.
    COLUMNS: Columns that every table must have.
    OPTIONAL: Further columns that are read where they exist.
    OTHER_FORMS: Column of another form of the data set, or of another one -> what to do about it,
      for the message where required columns are missing.
    VOTES: Whether rows hold votes, for `--labels=votes`.
    ONE_EDIT: Whether rows hold one edit of a source image and no rejected image, so that the user
      says by `--rejected` what the edit is preferred to.
  """

  EXAMPLE: str
  SPLITS: Sequence[str]
  FILES: str
  COLUMNS: Sequence[str]
  OPTIONAL: Sequence[str]
  OTHER_FORMS: Mapping[str, str]
  VOTES: bool
  ONE_EDIT: bool

  def files(self, root: pathlib.Path, split: str) -> list[str]:
    """Tables of a split relative to the folder `root`, see `tables.plan`; [] where none exists."""

  def images(self, root: pathlib.Path, split: str) -> pathlib.Path:
    """The folder that paths of images in a split's rows are relative to."""

  def raw_pairs(self, row: Row, where: str, labels: str) -> list[RawPair]:
    """The pairs of a row, their images not read yet.

    Args:
      row: Values by column, of any type: read them with `row_values`.
      where: "FILE:ROW", an id for rows that have none.
      labels: One of `options.LABELS`. "soft": the data set's probabilities; "votes": fractions of
        votes; "hard": 0, 1/2 or 1. Where "soft" and "hard" differ by rounding alone a module may
        return soft labels for both: the caller rounds.

    Returns:
      One pair or more.

    Raises:
      InputError: A value is missing, of the wrong type or out of range.
    """


SOURCES: dict[str, SourceModule] = {
  "pickapic": pickapic,
  "hpdv2": hpdv2,
  "hpdv3": hpdv3,
  "imagerewarddb": imagerewarddb,
  "open-image-preferences": open_image_preferences,
  "instructpix2pix": instructpix2pix,
  "magicbrush": magicbrush,
  "hive": hive,
  "imgedit": imgedit,
  "custom": custom,
}
