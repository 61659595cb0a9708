"""The interface of scorers, and the command line's way to name one."""

import numpy as np
import pytest

from dmpo_jax.errors import InputError
from dmpo_jax.evaluation import scorers
from dmpo_jax.evaluation.scorers import Kind, Scorer, load_scorer, parse_scorer, pixels

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
LENGTHS = Scorer("length", lambda _, prompts: np.array([len(p) for p in prompts]), None, True)


@pytest.fixture
def options(monkeypatch):
  """Options that a scorer with weights was loaded with."""
  loaded = {}

  def load(weights, *, dtype, batch_size, devices, antialias: bool = True, layers: int = 1):
    loaded.update(weights=weights, dtype=dtype, batch_size=batch_size, antialias=antialias)
    loaded.update(layers=layers)
    return LENGTHS

  kind = Kind(load, "Length of the prompt.", "a file of example/lengths")
  monkeypatch.setitem(scorers.SCORERS, "length", kind)
  return loaded


def test_a_scorer_of_pixels_is_its_formula_of_the_levels():
  scores = load_scorer("warmth").score(IMAGES, [""] * 3)
  assert scores.dtype == np.float32
  np.testing.assert_allclose(scores, pixels.warmth(IMAGES / 127.5 - 1), rtol=1e-6)


def test_images_may_have_different_sizes():
  images = [IMAGES[0], IMAGES[1, :3], IMAGES[2, :, :2]]
  scores = load_scorer("brightness").score(images, [])
  np.testing.assert_allclose(scores, [image.mean() / 255 for image in images], rtol=1e-6)


def test_no_images_have_no_scores():
  assert load_scorer("brightness").score([], []).shape == (0,)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (IMAGES[..., :1], r"a.png has the shape \[5, 7, 1\], expected \[H, W, 3\]"),
    (np.concatenate([IMAGES, IMAGES[..., :1]], -1), r"a.png has the shape \[5, 7, 4\]"),
    (IMAGES / 255, "a.png is float64, expected uint8"),
    ([IMAGES[0], IMAGES[1] / 2, IMAGES[2]], "b.png is float64"),
    (IMAGES[:, :0], r"a.png has the shape \[0, 7, 3\]"),
    (IMAGES[:2], "3 names for 2 images"),
  ],
)
def test_what_is_no_image_is_refused_by_name(images, message):
  with pytest.raises(InputError, match=message):
    load_scorer("warmth").score(images, [], names=["a.png", "b.png", "c.png"])


@pytest.mark.parametrize(
  ("prompts", "message"),
  [
    (["a", " ", "c"], "the prompt of image 1 is ' '; length needs a text"),
    (["a", None, "c"], "the prompt of image 1 is None"),
    (["a"], "one prompt an image, got 1 prompts for 3"),
    ("abc", "one prompt an image, got the text 'abc' for 3"),
  ],
)
def test_a_scorer_of_prompts_needs_one_for_every_image(prompts, message):
  with pytest.raises(InputError, match=message):
    LENGTHS.score(IMAGES, prompts)


def test_scores_of_another_shape_are_refused():
  with pytest.raises(InputError, match=r"scores of the shape \[2\] for 3 images"):
    Scorer("odd", lambda images, prompts: np.zeros(2)).score(IMAGES, [])


def test_features_that_are_not_finite_are_refused():
  scorer = Scorer("odd", lambda i, p: np.zeros(3), lambda images: np.full((3, 2), np.nan))
  with pytest.raises(InputError, match="features odd of image 0 are not finite"):
    scorer.embed(IMAGES)
  assert load_scorer("warmth").embed(IMAGES) is None


def test_a_command_line_names_weights_and_options(options):
  text = "length=some/a=b,c.pt,antialias=false,layers=3,dtype=bfloat16,batch_size=5"
  assert parse_scorer(text) is LENGTHS
  assert options == {
    "weights": "some/a=b,c.pt",
    "dtype": "bfloat16",
    "batch_size": 5,
    "antialias": False,
    "layers": 3,
  }


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("lenght=x", "unknown scorer 'lenght'; did you mean 'length'"),
    ("length", "length needs weights, length=WEIGHTS: a file of example/lengths"),
    ("warmth=x", "warmth has no weights, got 'x'"),
    ("length=x,antialias=no", "length: antialias is 'no'; expected true or false"),
    ("length=x,layers=two", "layers is 'two'; expected an integer"),
    ("length=x,batch_size=0", "batch_size is 0; expected a positive integer"),
    ("length=x,dtype=float16", "dtype is 'float16'; expected float32 or bfloat16"),
    ("length=x,antialiased=true", "unknown option of the scorer length: 'antialiased'; did you"),
    ("length=x,devices=2", "unknown option of the scorer length: 'devices'"),
  ],
)
def test_a_scorer_that_is_named_wrongly_is_refused(options, text, message):
  with pytest.raises(InputError, match=message):
    parse_scorer(text)
