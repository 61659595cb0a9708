"""The report's text, and that it is one file."""

import base64
import copy
import html.parser
import re

import numpy as np
import pytest

from dmpo_jax.demos.digits.report import render
from dmpo_jax.demos.digits.report_text import assessment, headline
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import image_grids

PNG = image_grids.grid(np.zeros((1, 1, 2, 2, 1)), ["a"])


def model(name, label, **changes):
  steps = list(range(50))
  fields = {
    "name": name,
    "label": label,
    "hyperparameters": {"beta": 200.0},
    "ink": (0.4, 0.39, 0.41),
    "ink_values": [0.39, 0.4, 0.41],
    "ink_gain": (0.1, 0.09, 0.11),
    "win_rate": (0.9, 0.85, 0.95),
    "digit_accuracy": (0.96, 0.94, 0.98),
    "accuracy_change": (0.0, -0.01, 0.01),
    "diversity": {"pairwise": (0.25, 0.24, 0.26), "vendi": 2.1},
    "grid_png": PNG,
    "curves": {
      "step": steps,
      "preferred_error": [-1e-4 * s for s in steps],
      "rejected_error": [1e-4 * s for s in steps],
      "loss": [0.7] * 50,
      "accuracy": [0.6] * 50,
      "logit": [0.01 * s for s in steps],
    },
    "train_seconds": 61.0,
    "pairs_per_second": 300.0,
  }
  return fields | changes


REFERENCE = model(
  "reference", "reference", ink_gain=None, win_rate=None, accuracy_change=None, curves=None
)


def results(**changes):
  return {
    "title": "a run",
    "created": "2026-01-02",
    "machine": "two cores",
    "versions": {"jax": "0.10.2"},
    "seconds": {"training": 100.0},
    "data": {
      "train_images": 1437,
      "test_images": 360,
      "pairs": 4000,
      "temperature": 0.03,
      "label_flip_rate": 0.256,
      "classifier_accuracy": (0.983, 0.97, 0.99),
      "classifier_test_images": 360,
      "real_ink": (0.305, 0.304, 0.306),
    },
    "sampling": {"steps": 40},
    "models": [REFERENCE, model("dmpo", "DMPO")],
    "export": {"path": "out", "files": ["unet/config.json"], "torch_check": None},
  } | changes


class Tags(html.parser.HTMLParser):
  """Collects tags with attributes, text, and whatever was left open."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.open, self.words = [], [], []
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in ("img", "meta", "source"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)


@pytest.fixture(scope="module")
def page():
  return render(results())


@pytest.fixture(scope="module")
def tags(page):
  return Tags(page)


def test_every_tag_that_is_opened_is_closed(tags):
  assert tags.open == []


def test_the_page_loads_nothing_from_outside(page, tags):
  sources = [a[k] for _, a in tags.tags for k in ("src", "srcset", "href") if k in a]
  assert sources
  assert all(source.startswith("data:image/png;base64,") for source in sources)
  assert not re.search(r"https?:|url\(|@import|<script|<link", page)


def test_every_image_is_a_png_with_an_alternative_text(tags):
  for tag, attributes in tags.tags:
    if tag == "img":
      png = base64.b64decode(attributes["src"].split(",")[1])
      assert png.startswith(b"\x89PNG")
      assert attributes["alt"]


def test_every_plot_has_a_dark_twin(tags):
  plotted = [a for t, a in tags.tags if t == "source"]
  assert len(plotted) == 4 + 1 + 1 + 2  # scores, ink, errors of the one aligned model, two shared
  assert {a["media"] for a in plotted} == {"(prefers-color-scheme: dark)"}


def test_the_same_results_give_the_same_page(page):
  assert render(results()) == page


def test_rendering_does_not_change_the_results():
  given = results()
  before = copy.deepcopy(given)
  render(given)
  assert given == before


def test_words_from_outside_are_escaped():
  page = render(results(title="<script>alert(1)</script>", machine="a & b"))
  assert "<script>" not in page
  assert "a &amp; b" in page


def test_the_headline_and_numbers_are_those_of_the_results(tags):
  text = " ".join("".join(tags.words).split())
  assert "DMPO learned the preference: heavier strokes, and the digits stay right." in text
  assert "+0.100, 95% interval +0.090 to +0.110" in text
  assert "90.0% of 3 comparisons (95% interval 85.0% to 95.0%)" in text
  assert "In 25.6% of the pairs the label prefers the lighter image" in text


def test_a_page_of_the_reference_alone_says_that_nothing_was_aligned():
  page = render(results(models=[REFERENCE]))
  Tags(page)
  assert "nothing was aligned" in page


def test_an_aligned_model_without_curves_is_reported_without_them():
  page = render(results(models=[REFERENCE, model("dpo", "DPO", curves=None)]))
  assert "What training did" not in page


def test_a_win_rate_whose_interval_holds_one_half_is_not_a_success():
  kind, summary, notes = assessment(model("dpo", "DPO", win_rate=(0.55, 0.49, 0.61)), REFERENCE)
  assert (kind, summary) == ("bad", "Did not learn the preference")
  assert "not shown to be heavier" in notes[0]
  assert "49.0% to 61.0%" in notes[0]


def test_an_ink_gain_whose_interval_holds_zero_is_not_a_success():
  kind, _, _ = assessment(model("dpo", "DPO", ink_gain=(0.01, -0.001, 0.02)), REFERENCE)
  assert kind == "bad"


def test_lighter_digits_are_called_lighter():
  worse = model("dpo", "DPO", win_rate=(0.2, 0.1, 0.3), ink_gain=(-0.05, -0.06, -0.04))
  _, _, notes = assessment(worse, REFERENCE)
  assert "are lighter than the reference's" in notes[0]


def test_a_fall_of_accuracy_beyond_its_interval_is_a_warning():
  kind, _, notes = assessment(
    model("dpo", "DPO", digit_accuracy=(0.9, 0.87, 0.93), accuracy_change=(-0.06, -0.09, -0.03)),
    REFERENCE,
  )
  assert kind == "warn"
  assert "96.0% before, 90.0% now (−6.0 points, 95% interval −9.0 to −3.0)" in notes[0]


def test_a_fall_of_accuracy_within_its_interval_is_none():
  change = model("dpo", "DPO", accuracy_change=(-0.02, -0.05, 0.01))
  assert assessment(change, REFERENCE)[0] == "good"


def test_a_loss_of_diversity_beyond_the_intervals_is_remarked():
  narrow = model("dpo", "DPO", diversity={"pairwise": (0.2, 0.19, 0.21), "vendi": 1.5})
  kind, _, notes = assessment(narrow, REFERENCE)
  assert kind == "good"
  assert "differ less from each other: distance 0.200 against 0.250" in notes[0]


def test_the_headline_names_success_and_failure_apart():
  said = headline(
    [
      model("dmpo", "DMPO"),
      model("dpo", "DPO", accuracy_change=(-0.06, -0.09, -0.03)),
      model("cdpo", "cDPO", win_rate=(0.5, 0.4, 0.6)),
      model("sft", "SFT"),
    ],
    REFERENCE,
  )
  assert said == (
    "DMPO and SFT learned the preference: heavier strokes, and the digits stay right. "
    "DPO writes heavier, but digits get lost. "
    "cDPO did not learn to write heavier than the reference."
  )


def test_a_failure_is_marked_on_the_page():
  page = render(results(models=[REFERENCE, model("dpo", "DPO", win_rate=(0.5, 0.4, 0.6))]))
  assert '<span class="badge bad">✗ Did not learn the preference</span>' in page
  assert 'class="badge good"' not in page


def test_an_interval_without_width_is_explained():
  page = render(results(models=[REFERENCE, model("dpo", "DPO", win_rate=(1.0, 1.0, 1.0))]))
  assert "An interval without width" in page
  assert "heavier ones in all 3 comparisons" in page


def test_results_that_went_through_json_are_read_alike(page):
  lists = results()
  lists["models"] = [
    {k: list(v) if isinstance(v, tuple) else v for k, v in m.items()} for m in lists["models"]
  ]
  lists["data"] = lists["data"] | {"classifier_accuracy": [0.983, 0.97, 0.99]}
  assert render(lists) == page


def test_whether_torch_loaded_the_export_is_said():
  export = results()["export"]
  assert "was not loaded back" in render(results())
  check = {"max_abs_difference": 3.14e-6, "diffusers_version": "0.42.1"}
  page = render(results(export=export | {"torch_check": check}))
  assert "max abs difference 3.14e-06, diffusers version 0.42.1" in page


def without(part, key):
  return {k: v for k, v in part.items() if k != key}


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (without(results(), "export"), "results lacks export; it needs title"),
    (results(data=without(results()["data"], "pairs")), r"results\['data'\] lacks pairs"),
    (results(data=3), r"results\['data'\] must be a dict .* got int"),
    (results(models=[]), "must begin with the model named 'reference', got \\[\\]"),
    (results(models=[model("dpo", "DPO")]), "must begin with .* got \\['dpo'\\]"),
    (results(models=[REFERENCE, REFERENCE]), "must have different names"),
  ],
)
def test_results_that_lack_something_are_refused(given, message):
  with pytest.raises(InputError, match=message):
    render(given)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"win_rate": None}, r"\['dpo'\]\['win_rate'\] must be an Interval .* got None"),
    ({"ink": (0.4, 0.5, 0.3)}, r"\['ink'\] must be an Interval"),
    ({"ink": (float("nan"), 0.1, 0.2)}, r"\['ink'\] must be an Interval .* finite"),
    ({"grid_png": b"GIF89a"}, "must be the bytes of a PNG file"),
    ({"ink_values": []}, "'ink_values'. is empty"),
    ({"diversity": {"vendi": 1.0}}, r"\['diversity'\] lacks pairwise"),
    ({"curves": model("a", "a")["curves"] | {"loss": [1.0]}}, "lists of one length"),
    ({"curves": model("a", "a")["curves"] | {"loss": [np.nan] * 50}}, "'loss'. holds NaN"),
  ],
)
def test_a_model_that_is_not_as_agreed_is_refused(change, message):
  with pytest.raises(InputError, match=message):
    render(results(models=[REFERENCE, model("dpo", "DPO", **change)]))


def test_a_reference_that_is_compared_with_itself_is_refused():
  with pytest.raises(InputError, match="must be None: the reference has no comparison"):
    render(results(models=[REFERENCE | {"win_rate": (0.5, 0.5, 0.5)}]))
