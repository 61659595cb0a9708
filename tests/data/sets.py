"""Small data sets in the exact form of the published ones."""

import io
import json
import pathlib
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PICKAPIC = pa.schema(
  [
    ("are_different", pa.bool_()),
    ("best_image_uid", pa.string()),
    ("caption", pa.string()),
    ("created_at", pa.timestamp("ns")),
    ("has_label", pa.bool_()),
    ("image_0_uid", pa.string()),
    ("image_0_url", pa.string()),
    ("image_1_uid", pa.string()),
    ("image_1_url", pa.string()),
    ("jpg_0", pa.binary()),
    ("jpg_1", pa.binary()),
    ("label_0", pa.float64()),
    ("label_1", pa.float64()),
    ("model_0", pa.string()),
    ("model_1", pa.string()),
    ("ranking_id", pa.int64()),
    ("user_id", pa.int64()),
    ("num_example_per_prompt", pa.int64()),
  ]
)
HUB_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(seed: int = 0, *, size=(16, 12), kind: str = "PNG", mode: str = "RGB") -> bytes:
  """A random image of (width, height) as a file's bytes."""
  pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(out, kind)
  return out.getvalue()


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
  """A PNG file of these header values and rows; colour 0 is grey, 2 RGB."""

  def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

  head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  data = chunk(b"IDAT", zlib.compress(rows))
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def save(path: pathlib.Path, seed: int = 0, **settings) -> None:
  """Writes a random image to a file and makes its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encoded(seed, **settings))


def pickapic_row(number: int, **changes) -> dict:
  """A row of Pick-a-Pic; image_0 is preferred in even rows."""
  label = float(number % 2 == 0)
  return {
    "are_different": True,
    "best_image_uid": f"{number}a",
    "caption": f"caption {number // 2}",
    "created_at": None,
    "has_label": True,
    "image_0_uid": f"{number}a",
    "image_0_url": "",
    "image_1_uid": f"{number}b",
    "image_1_url": "",
    "jpg_0": encoded(2 * number, kind="JPEG"),
    "jpg_1": encoded(2 * number + 1, kind="JPEG"),
    "label_0": label,
    "label_1": 1 - label,
    "model_0": "left",
    "model_1": "right",
    "ranking_id": number,
    "user_id": 7,
    "num_example_per_prompt": 2,
  } | changes


def pickapic(path: pathlib.Path, rows: list[dict], *, group: int = 4, schema=PICKAPIC) -> None:
  """Writes rows as a parquet file with row groups of so many."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)


def dump(path: pathlib.Path, rows: list) -> None:
  """Writes a JSON array."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(rows, indent=1))


def hpdv2_train(root: pathlib.Path, preference=(0, 1)) -> None:
  """One training row of HPDv2."""
  for i in (0, 1):
    save(root / f"train/{i}.jpg", i, kind="JPEG")
  dump(
    root / "train.json",
    [{"prompt": "p", "file_path": ["0.jpg", "1.jpg"], "human_preference": list(preference)}],
  )


def hpdv2_test(root: pathlib.Path) -> None:
  """One test row of HPDv2: three images, two annotators."""
  for i in range(3):
    save(root / f"test/{i}.jpg", i, kind="JPEG")
  notes = [{"rank": r, "user_hash": h} for r, h in (([1, 2, 3], "u"), ([2, 1, 3], "v"))]
  row = {"prompt": "p", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [1, 2, 3]}
  dump(root / "test.json", [row | {"raw_annotations": notes}])


def hpdv3(root: pathlib.Path, count: int = 1, **changes) -> None:
  """Rows of HPDv3: image a is always preferred to image b."""
  save(root / "images/a.jpg", 1, kind="JPEG")
  save(root / "images/b.jpg", 2, kind="JPEG")
  row = {
    "prompt": "p",
    "path1": "images/a.jpg",
    "path2": "images/b.jpg",
    "model1": "good",
    "model2": "poor",
    "source": "x",
    "confidence": 0.75,
    "choice_dist": [12, 7],
  } | changes
  dump(root / "train.json", [row] * count)


def imagereward(root: pathlib.Path) -> None:
  """One row of ImageReward's test.json with a tie."""
  for i in range(3):
    save(root / f"{i}.webp", i, kind="WEBP")
  names = [f"{i}.webp" for i in range(3)]
  dump(
    root / "test.json", [{"id": "r1", "prompt": "p", "generations": names, "ranking": [2, 1, 2]}]
  )


def open_image_preferences(path: pathlib.Path, count: int = 1) -> None:
  """Rows of Open Image Preferences, binarized."""
  rows = [
    {
      "id": f"{i}",
      "prompt": f"p{i}",
      "chosen": {"bytes": encoded(2 * i), "path": None},
      "rejected": {"bytes": encoded(2 * i + 1), "path": None},
      "chosen_model": "good",
      "rejected_model": "poor",
      "category": "c",
    }
    for i in range(count)
  ]
  texts = ("id", "prompt", "chosen_model", "rejected_model", "category")
  schema = pa.schema(
    [("chosen", HUB_IMAGE), ("rejected", HUB_IMAGE), *((name, pa.string()) for name in texts)]
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows, schema), path)


def custom(
  root: pathlib.Path, lines: list[str], name: str = "pairs.csv", images: int = 4
) -> pathlib.Path:
  """Custom pairs: images 0.png, 1.png, ... and a table of these lines."""
  for i in range(images):
    save(root / f"{i}.png", i)
  (root / name).write_text("\n".join(lines) + "\n")
  return root / name
