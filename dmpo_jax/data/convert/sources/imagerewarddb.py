"""ImageRewardDB, in the form of its repository's data/test.json: rankings of images in a folder."""

from dmpo_jax.data.convert import row_values
from dmpo_jax.data.convert.sources import layouts
from dmpo_jax.data.convert.sources.raw_pair import RawPair
from dmpo_jax.data.pairs import ranking_pairs
from dmpo_jax.errors import InputError

EXAMPLE = "ImageReward/data/ --source-split test --out data/imagereward"
SPLITS = ("train", "validation", "test")
FILES, files = layouts.JSON_TABLE, layouts.json_table
images = layouts.beside_tables
COLUMNS = ("id", "prompt", "generations", "ranking")
OPTIONAL = ()
OTHER_FORMS = {
  "image_path": "this is the set's other form, with an image in each row, as the hub has it: make "
  "of the rows of each prompt_id one row with the lists generations (image_path) and ranking "
  "(rank), and id (prompt_id)"
}
VOTES, ONE_EDIT = False, False


def raw_pairs(row: row_values.Row, where: str, labels: str) -> list[RawPair]:
  """All pairs of a row's ranking. Equal ranks are ties; the weights of a row sum to one.

  Args:
    row: Values by key.
    where: Not used: rows have ids.
    labels: Not used: a row is one ranking.

  Returns:
    n (n - 1)/2 pairs for n images.

  Raises:
    InputError: A value is missing, of the wrong type or out of range.
  """
  name = row_values.identifier(row, "id")
  prompt = row_values.text(row, "prompt")
  paths = [
    row_values.text({"image path": p}, "image path")
    for p in row_values.sequence(row, "generations")
  ]
  ranks = row_values.numbers(row, "ranking")
  if len(ranks) != len(paths):
    raise InputError(f"ranking has {len(ranks)} entries for {len(paths)} generations")
  return [
    RawPair(f"{name}:{i}-{j}", prompt, paths[i], paths[j], p0, weight)
    for i, j, p0, weight in ranking_pairs(ranks)
  ]
