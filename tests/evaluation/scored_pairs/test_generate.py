"""Folders of pairs among samples, with images that need no network."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dmpo_jax.commands.main import main
from dmpo_jax.data import pairs, tfds_folder
from dmpo_jax.data.convert.options import Options
from dmpo_jax.errors import InputError
from dmpo_jax.evaluation.scored_pairs import generate, samples
from dmpo_jax.evaluation.scored_pairs.choose import Rule
from dmpo_jax.evaluation.scorers import load_scorer
from dmpo_jax.evaluation.scorers.base import Scorer

PROMPTS, COUNT = [f"square {i}" for i in range(10)], 4
BRIGHTNESS = load_scorer("brightness")
OPTIONS = Options(splits={"train": 0.7, "test": 0.3})


def levels(prompt):
  """Grey levels of a prompt's images: no function of their seeds' order."""
  return [int(200 * pairs.fraction_of(f"{prompt} {seed}")) for seed in range(COUNT)]


def squares(stop_at=None):
  """Grey squares; the process is killed at a prompt."""

  def read(first, last):
    for prompt in PROMPTS[first:last]:
      if prompt == stop_at:
        raise KeyboardInterrupt
      pixels = [np.full((8, 8, 3), level, np.uint8) for level in levels(prompt)]
      encoded = [samples._png(image) for image in pixels]
      yield samples.PromptImages(prompt, list(range(COUNT)), encoded, pixels, ["x"] * COUNT)

  return samples.Samples("runs/x", PROMPTS, {"n": COUNT}, read)


def made(out, source=None, *, scorer=BRIGHTNESS, rule=None, **options):
  options = {"prompts_per_shard": 3} | options
  return generate.generate(source or squares(), out, scorer, rule or Rule(), OPTIONS, **options)


def content(folder):
  return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def all_pairs(folder):
  splits = tfds_folder.check_files(folder)["splits"]
  sources = [tfds_folder.PairSource(folder, split) for split in splits]
  return {source[i].prompt: source[i] for source in sources for i in range(len(source))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  out = tmp_path_factory.mktemp("generated") / "pairs"
  return made(out), out


def test_the_record_has_the_best_and_worst_image_with_seeds_and_scores(whole):
  _, out = whole
  records = all_pairs(out)
  assert set(records) == set(PROMPTS)
  for prompt, pair in records.items():
    grey = levels(prompt)
    assert sorted([pair.seed_0, pair.seed_1]) == sorted([np.argmax(grey), np.argmin(grey)])
    for seed, score, image in (
      (pair.seed_0, pair.score_0, pair.image_0),
      (pair.seed_1, pair.score_1, pair.image_1),
    ):
      np.testing.assert_allclose(score, grey[seed] / 255, rtol=1e-6)
      assert np.asarray(Image.open(io.BytesIO(image)))[0, 0].tolist() == [grey[seed]] * 3
    assert pair.p0 == (pair.score_0 > pair.score_1)
    assert (pair.source, pair.model_0, pair.model_1) == ("generated", "runs/x", "runs/x")


def test_the_report_has_rule_scorer_and_statistics(whole):
  report, _ = whole
  assert report["kept"] == 10
  assert set(report["splits"]) == {"train", "test"}
  generated = report["generated"]
  assert (generated["scorer"], generated["images"], generated["pairs"]) == ("brightness", 40, 10)
  assert generated["rule"]["pairs"] == "best-worst"


@pytest.mark.parametrize("stop_at", ["square 0", "square 4", "square 9"])
def test_a_killed_command_resumes_to_the_same_files(stop_at, whole, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    made(tmp_path / "pairs", squares(stop_at))
  assert made(tmp_path / "pairs") == whole[0]
  assert content(tmp_path / "pairs") == content(whole[1])


def test_hosts_share_the_prompts_and_the_last_one_completes_the_same_files(whole, tmp_path):
  out = tmp_path / "pairs"
  assert made(out, host=1, hosts=2) is None
  assert generate.missing(out) == 2
  assert made(out, host=0, hosts=2) == whole[0]
  assert content(out) == content(whole[1])


def test_a_complete_folder_is_not_made_again(whole):
  assert made(whole[1], squares(stop_at="square 0")) == whole[0]


@pytest.mark.parametrize(
  "other",
  [
    {"rule": Rule(min_gap=0.1)},
    {"scorer": load_scorer("warmth")},
    {"identity": {"weights": {"model.safetensors": "ab"}}},
  ],
)
def test_a_folder_of_another_rule_or_scorer_is_refused(other, whole):
  with pytest.raises(InputError, match="holds another set of pairs"):
    made(whole[1], **other)


def test_a_gap_that_no_pair_reaches_is_an_error_with_the_largest_one(tmp_path):
  gap = max(max(levels(p)) - min(levels(p)) for p in PROMPTS) / 255
  with pytest.raises(InputError, match=rf"no pair of 40 images is left \(10 with.*{gap:.4g}, and"):
    made(tmp_path / "pairs", rule=Rule(min_gap=2.0))


def test_a_score_that_is_not_finite_stops_and_leaves_nothing(tmp_path):
  def scores(images, prompts):
    return np.where(np.arange(len(images)) == 5, np.nan, 1.0)

  with pytest.raises(InputError, match=r"score bad of x for the prompt 'square 1' is nan"):
    made(tmp_path / "pairs", scorer=Scorer("bad", scores))
  assert not (tmp_path / "pairs").exists()


def test_weights_are_known_by_the_content_of_their_files(tmp_path):
  (tmp_path / "model.safetensors").write_bytes(b"a")
  first = generate.fingerprint_of_scorer(f"pickscore={tmp_path},dtype=bfloat16")
  (tmp_path / "model.safetensors").write_bytes(b"b")
  second = generate.fingerprint_of_scorer(f"pickscore={tmp_path},dtype=bfloat16")
  assert first["options"] == second["options"] == ["dtype", "bfloat16"]
  assert first != second
  assert generate.fingerprint_of_scorer("pickscore=a/b")["weights"] == {"repository": "a/b"}
  assert generate.fingerprint_of_scorer("warmth") == {"options": [], "weights": None}


def test_prompts_that_differ_in_case_and_spacing_are_one():
  assert samples.unique(["a fox", "b", "A  fox", "c", "b"]) == ["a fox", "b", "c"]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
  """A folder as `dmpo-jax sample` writes it, of two prompts that differ in case among three."""
  folder, images = tmp_path_factory.mktemp("sampled"), []
  for row, prompt in enumerate(["square 1", "Square 1", "square 2"]):
    for seed, level in enumerate(levels(prompt)):
      name = f"{row:05d}_{seed:010d}.png"
      Image.new("L", (8, 8), level).save(folder / name)
      images.append({"file": name, "prompt": prompt, "seed": seed})
  manifest = {"pipeline": "runs/x/pipeline", "images": images}
  (folder / "manifest.json").write_text(json.dumps(manifest))
  return folder


def test_the_command_makes_pairs_of_a_folder_of_samples(sampled, tmp_path, capsys):
  out = str(tmp_path / "pairs")
  arguments = ["data", "generate", "--samples", str(sampled), "--scorer", "brightness"]
  assert main([*arguments, "--out", out]) == 0
  records = all_pairs(tmp_path / "pairs")
  assert set(records) == {"square 1", "square 2"}
  grey = levels("square 2")
  pair = records["square 2"]
  assert {pair.seed_0, pair.seed_1} == {int(np.argmax(grey)), int(np.argmin(grey))}
  assert "2 pairs with a mean gap of" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--samples", "s", "--steps", "3"], "--steps has no effect on --samples"),
    (["--samples", "s", "--prompts", "p"], "--prompts has no effect on --samples"),
    (["--pipeline", "p"], "--pipeline needs --prompts"),
    (["--pipeline", "p", "--prompts", "x", "--per-prompt", "1"], "a pair needs at least 2 images"),
    (["--samples", "/absent"], "has no finished samples"),
  ],
)
def test_options_that_do_not_fit_together_are_refused(arguments, message, tmp_path, capsys):
  arguments = [*arguments, "--scorer", "warmth", "--out", str(tmp_path / "pairs")]
  assert main(["data", "generate", *arguments]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "pairs").exists()


def test_the_rule_is_a_part_of_the_folder(whole):
  plan = json.loads((whole[1] / "plan.json").read_text())
  assert plan["rule"] == json.loads(json.dumps(Rule()._asdict()))
  assert plan["scorer"] == {"name": "brightness"}
