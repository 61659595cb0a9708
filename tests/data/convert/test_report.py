"""The report of a conversion, as JSON and as a page."""

from dmpo_jax.data import images
from tests.data import sets
from tests.data.convert.conversions import TIE, all_pairs, run


def test_histograms_count_the_kept_pairs(whole):
  _, _, out, report = whole
  kept = [p for s in report["splits"] for p in all_pairs(out, s)]
  assert report["labels"]["1.0"] == sum(p.p0 == 1 for p in kept)
  assert sum(report["labels"].values()) == sum(report["caption_tokens"].values()) == len(kept)
  assert report["sizes"] == {"12x16": 2 * len(kept)}


def test_the_page_is_self_contained_and_has_examples(whole):
  page = (whole[2] / "report.html").read_text()
  assert page.count("<figure>") == 12
  assert page.count("data:image/png;base64,") == 24
  assert "http" not in page


def test_captions_are_escaped_on_the_page(tmp_path):
  run(tmp_path, [sets.pickapic_row(0, caption="<script>alert(1)</script>")])
  page = (tmp_path / "out/report.html").read_text()
  assert "<script" not in page
  assert "&lt;script&gt;" in page


def test_reencoded_images_are_counted_by_reason(tmp_path):
  kinds = [sets.encoded(mode="P"), sets.encoded(mode="L"), sets.encoded(mode="LA")]
  kinds += [sets.encoded(mode="CMYK", kind="JPEG"), sets.encoded(mode="RGBA")]
  kinds.append(sets.png(12, 16, depth=16, rows=(b"\0" + bytes(72)) * 16))
  rows = [
    sets.pickapic_row(i, jpg_0=a, jpg_1=b)
    for i, (a, b) in enumerate(zip(kinds[::2], kinds[1::2], strict=True))
  ]
  assert run(tmp_path, rows)["reencoded_images"] == {
    **{"16-bit": 1, "CMYK": 1, "alpha": 2, "grey": 1, "palette": 1}
  }
  for pair in all_pairs(tmp_path / "out"):
    assert {images.decode(x).mode for x in (pair.image_0, pair.image_1)} == {"RGB"}


def test_every_pair_that_was_read_is_kept_or_dropped_for_a_reason(tmp_path):
  rows = [sets.pickapic_row(i) for i in range(12)]
  rows[1] |= TIE
  rows[2]["has_label"] = False
  rows[3]["caption"] = "word " * 90
  rows[4]["jpg_0"] = b"broken"
  rows[5]["jpg_0"] = sets.encoded(size=(9, 9))
  rows[11] = rows[0] | {"ranking_id": 77}
  rows[10] |= {"ranking_id": 6, "image_0_uid": "6a", "image_1_uid": "6b"}
  choices = dict.fromkeys(
    ("ties", "unlabelled", "long_captions", "size_mismatch", "duplicates"), "drop"
  )
  report = run(tmp_path, rows, on_bad_row="skip", **choices)
  assert list(report["dropped"].values()) == [1] * 6
  assert (report["read"]["rows"], report["read"]["pairs"]) == (12, 11)
  assert report["kept"] == report["read"]["pairs"] - sum(report["dropped"].values())
  assert report["kept"] == len(all_pairs(tmp_path / "out")) == 5
