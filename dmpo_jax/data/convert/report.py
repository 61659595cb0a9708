"""The counts of a conversion, as JSON and as text; `report_page` shows them as HTML."""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dmpo_jax.common import paths
from dmpo_jax.common.files import reading
from dmpo_jax.data import captions, tfds_folder
from dmpo_jax.data.convert import options as convert_options
from dmpo_jax.data.convert.chunk_index import LONG_CAPTION, REENCODED, SIZE_MISMATCH, TIE
from dmpo_jax.data.convert.options import Options
from dmpo_jax.data.convert.sources import layouts
from dmpo_jax.data.convert.tables import Table
from dmpo_jax.data.pairs import Pair
from dmpo_jax.errors import cut, printable

MAX_SIZES = 4096  # different sizes that are counted separately
REPORTED_SIZES = 15
EXAMPLES = 12
LISTED = 100  # names of files and columns
TOKEN_EDGES = (0, 10, 20, 30, 40, 50, 60, 70, captions.CONTEXT + 1, 2**32)

# Reasons for which pairs are dropped, with the option of each.
DROPPED = {
  "unlabelled": "unlabelled (--unlabelled=drop)",
  "dropped_ties": "ties (--ties=drop)",
  "dropped_long_captions": "captions over 77 tokens (--long-captions=drop)",
  "dropped_size_mismatch": "images of different sizes (--size-mismatch=drop)",
  "dropped_duplicates": "duplicates (--duplicates=drop)",
  "dropped_repeated_ids": "ids that occurred before (--on-bad-row=skip)",
}


class Statistics:
  """Histograms of the pairs that are kept.

  Args:
    names: Names of the splits, in the order of their numbers in the entries.
  """

  def __init__(self, names: list[str]):
    self.names = names
    self.kept = Counter(dict.fromkeys(names, 0))
    self.flags, self.sizes = Counter(), Counter()
    self.labels = np.zeros(11, np.int64)
    self.tokens = np.zeros(len(TOKEN_EDGES) - 1, np.int64)
    self.examples = []  # (hash of the id, split, number in the split), smallest hashes

  def add(self, entries: np.ndarray) -> None:
    """Counts pairs, in the order of their records.

    Args:
      entries: `[n]` of `chunk_index.DTYPE`.
    """
    self.labels += np.bincount(np.round(entries["p0"] * 10).astype(int), minlength=11)
    self.tokens += np.histogram(entries["tokens"], TOKEN_EDGES)[0]
    for name, flag in (
      ("ties", TIE),
      ("long_captions", LONG_CAPTION),
      ("size_mismatch", SIZE_MISMATCH),
      ("reencoded", REENCODED),
    ):
      self.flags[name] += int(np.count_nonzero(entries["flags"] & flag))
    for sides in (entries["size"][:, :2], entries["size"][:, 2:]):
      for (height, width), count in zip(*np.unique(sides, axis=0, return_counts=True), strict=True):
        size = f"{height}x{width}"
        if size not in self.sizes and len(self.sizes) >= MAX_SIZES:
          size = "others"
        self.sizes[size] += int(count)
    for i, name in enumerate(self.names):
      selected = entries[entries["split"] == i]
      for row in np.argsort(selected["id"][:, 0], kind="stable")[:EXAMPLES].tolist():
        self.examples.append((int(selected["id"][row, 0]), name, self.kept[name] + row))
      self.kept[name] += len(selected)
    self.examples = sorted(self.examples)[:EXAMPLES]


def summary(
  *,
  kind: str,
  counts: Counter,
  statistics: Statistics,
  prompts: dict[str, int],
  options: Options,
  files: dict,
  indices: Mapping[str, str],
  tables: Sequence[Table] = (),
) -> dict:
  """The report of a conversion, the content of report.json.

  Args:
    kind: Name of the source.
    counts: Counts by reason, summed over all chunks.
    statistics: Histograms of the pairs that are kept.
    prompts: Number of different prompts by split.
    options: Options of the conversion.
    files: {name: {"records", "bytes"}} of the shards.
    indices: Split -> SHA-256 of its pair index.
    tables: Tables of the source.

  Returns:
    JSON values. The counts of "found" include pairs that are dropped.
  """
  kept = sum(statistics.kept.values())
  top = dict(
    sorted(statistics.sizes.items(), key=lambda item: (-item[1], item[0]))[:REPORTED_SIZES]
  )
  reencoded = {k.split("/")[1]: n for k, n in sorted(counts.items()) if k.startswith("reencoded/")}
  passed_over = [name for table in tables for name in table.passed_over]
  not_read = dict.fromkeys(printable(name) for table in tables for name in table.not_read)
  names = list(dict.fromkeys(chunk.file for table in tables for chunk in table.chunks))
  return {
    "source": kind,
    "record": tfds_folder.VERSION,
    "options": convert_options.immutable(options),
    "read": {
      "rows": counts["rows"],
      "pairs": counts["pairs"],
      "tables": len(names),
      "announced_tables": layouts.announced(names),
    },
    "found": {
      "ties": counts["ties"],
      "unlabelled": counts["unlabelled"],
      "undecodable": counts["undecodable"],
      "bad_rows": counts["bad"],
      "size_mismatch": counts["size_mismatch"],
      "duplicates": counts["duplicates"],
      "repeated_ids": counts["dropped_repeated_ids"],
      "long_captions": counts["long_captions"],
      "passed_over": len(passed_over),
    },
    "dropped": {name: counts[name] for name in DROPPED},
    "kept": kept,
    "splits": {
      name: {"pairs": count, "prompts": prompts[name]}
      for name, count in statistics.kept.items()
      if count
    },
    "kept_with": dict(statistics.flags),
    "reencoded_images": reencoded,
    "labels": {f"{i / 10:.1f}": n for i, n in enumerate(statistics.labels.tolist())},
    "caption_tokens": {
      f"{low}-{high - 1}" if high < 2**32 else f"{low}+": n
      for low, high, n in zip(
        TOKEN_EDGES, TOKEN_EDGES[1:], statistics.tokens.tolist(), strict=False
      )
    },
    "sizes": top
    | ({"others": 2 * kept - sum(top.values())} if 2 * kept > sum(top.values()) else {}),
    "passed_over": [printable(name) for name in passed_over[:LISTED]],
    "columns_not_read": list(not_read)[:LISTED],
    "files": files,
    "indices": dict(indices),
  }


def lines(report: dict) -> str:
  """The report as a few lines of text."""
  read, found = report["read"], report["found"]
  out = [f"read {read['rows']} rows, {read['pairs']} pairs in valid rows"]
  if (count := read["tables"]) < (announced := read["announced_tables"]):
    out.append(f"only {count} of {announced} tables are there, by their names")
  out.append("found " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in found.items()))
  if names := report["passed_over"]:
    count = found.get("passed_over", len(names))
    out.append(f"passed over, as no image or caption: {_listed(names, count)}")
  if names := report["columns_not_read"]:
    out.append(f"columns that are not read: {_listed(names, len(names))}")
  out += [f"dropped {n} {DROPPED.get(name, name)}" for name, n in report["dropped"].items() if n]
  if report["reencoded_images"]:
    reasons = report["reencoded_images"].items()
    out.append("re-encoded as RGB: " + ", ".join(f"{n} {name}" for name, n in reasons))
  out.append(
    f"kept {report['kept']} pairs: "
    + ", ".join(
      f"{s['pairs']} in {n} ({s['prompts']} prompts)" for n, s in report["splits"].items()
    )
  )
  return printable("\n".join(out))


def _listed(names: Sequence[str], count: int) -> str:
  """The first names of a list, and how many more there are."""
  more = f", ... and {count - 8} more" if count > 8 else ""
  return ", ".join(cut(name, 60) for name in names[:8]) + more


def examples(out: pathlib.Path, files: dict, statistics: Statistics) -> list[tuple[str, Pair]]:
  """The pairs with the smallest hashes of their ids, at most `EXAMPLES`, read from the shards.

  Args:
    out: Folder of the data set.
    files: Names of its shards.
    statistics: Holds the positions of the examples.

  Returns:
    [(split, pair)].
  """
  import grain

  result = []
  with reading(out, "data set", advice="delete it and convert again"):
    for _, split, number in statistics.examples:
      for name in sorted(n for n in files if n.startswith(f"{tfds_folder.NAME}-{split}.")):
        if number < files[name]["records"]:
          shard = grain.sources.ArrayRecordDataSource([str(paths.local_copy(out / name))])
          result.append((split, tfds_folder.deserialize(shard[number])))
          break
        number -= files[name]["records"]
  return result
