"""`dmpo-jax evaluate`: its files, how it resumes, and its errors."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dmpo_jax import interop
from dmpo_jax.commands.main import main
from dmpo_jax.evaluation import evaluate, score_files, scorers
from dmpo_jax.evaluation.scorers.base import Kind, Scorer
from dmpo_jax.models.lora import init as lora_init
from dmpo_jax.sampling import image_folder
from tests.interop import tiny

PROMPTS = """Prompt\tCategory
the digit seven\tlong <b>
one\tshort
seven\tshort
the "one"\tlong <b>
the the the the the the the the the the\tlong <b>
"""
WORKS = ["--steps", "2", "--seeds", "2", "--batch-size", "4", "--no-progress"]


def features(images):
  """Mean of each channel and a constant, of norm 1."""
  x = np.stack([np.append(np.asarray(i, float).mean(axis=(0, 1)), 50) for i in images])
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def load_fake(weights, *, dtype, batch_size, devices):
  return Scorer("fake", lambda images, prompts: features(images)[:, 0], features)


@pytest.fixture(autouse=True, scope="module")
def fake():
  scorers.SCORERS["fake"] = Kind(load_fake, "The first feature.")
  yield
  del scorers.SCORERS["fake"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A pipeline and another one of other weights."""
  root = tmp_path_factory.mktemp("models")
  tiny.write_tiny_pixels(root / "reference")
  shutil.copytree(root / "reference", root / "other")
  (file,) = (root / "other" / "unet").glob("*.safetensors")
  state = {name: x * np.float32(1.1) for name, x in load_file(file).items()}
  save_file(state, file, metadata={"format": "pt"})
  (root / "prompts.tsv").write_text(PROMPTS)
  return root


def run(models, out, *more, scorer=("brightness", "fake"), prompts=True):
  arguments = ["evaluate", "--reference", str(models / "reference"), "--out", str(out), *WORKS]
  arguments += [x for name in scorer for x in ("--scorer", name)]
  arguments += ["--prompts", str(models / "prompts.tsv")] if prompts else []
  return main([*arguments, *(more or [f"other={models / 'other'}"])])


@pytest.fixture(scope="module")
def evaluated(models, tmp_path_factory):
  out = tmp_path_factory.mktemp("evaluated") / "out"
  assert run(models, out) == 0
  return out


@pytest.fixture
def copy(evaluated, tmp_path):
  return shutil.copytree(evaluated, tmp_path / "copy")


def contents(folder):
  """Digest of each file."""
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def table(folder):
  """Rows as dicts."""
  return pyarrow.parquet.read_table(folder / "scores.parquet").to_pylist()


def column(folder, name, model):
  return [row[name] for row in table(folder) if row["model"] == model]


def test_the_table_has_a_row_for_each_model_prompt_and_seed(evaluated):
  assert len(table(evaluated)) == 2 * 5 * 2
  for model in ("reference", "other"):
    assert column(evaluated, "seed", model) == list(range(10))
    assert set(column(evaluated, "category", model)) == {"long <b>", "short"}


def test_scores_are_those_of_the_image_files(evaluated):
  for row in table(evaluated):
    pixels = np.asarray(Image.open(evaluated / row["image"]).convert("RGB"))
    np.testing.assert_allclose(row["brightness"], pixels.mean() / 255, rtol=1e-5)


def test_both_models_start_from_the_same_noise(evaluated, models, tmp_path):
  run(models, tmp_path / "out", f"same={models / 'reference'}", scorer=["brightness"])
  same, reference = (
    column(tmp_path / "out", "brightness", model) for model in ("same", "reference")
  )
  assert same == reference
  result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
  assert result["scores"]["brightness"]["same"]["win_rate"] == [0.5, 0.5, 0.5]
  assert result["diversity"]["space"] == "pixels"


def test_the_statistics_are_those_of_the_table(evaluated):
  result = json.loads((evaluated / "evaluation.json").read_text())
  other, reference = (column(evaluated, "fake", model) for model in ("other", "reference"))
  change = np.mean(other) - np.mean(reference)
  np.testing.assert_allclose(result["scores"]["fake"]["other"]["difference"][0], change, atol=1e-6)
  assert result["diversity"]["space"] == "fake"
  assert {c["prompts"] for c in result["categories"].values()} == {2, 3}


def test_prompts_that_are_longer_than_the_context_are_listed(evaluated):
  result = json.loads((evaluated / "evaluation.json").read_text())
  ((place, prompt),) = result["prompts"]["longer_than_context"]["other"]
  assert place.endswith("prompts.tsv, line 6")
  assert prompt == " ".join(["the"] * 10)
  assert "longer than the text encoder" in (evaluated / "report.html").read_text()


def test_the_report_is_one_page_that_needs_no_other_file(evaluated):
  page = (evaluated / "report.html").read_text()
  sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', page)
  assert sources
  assert all(source.startswith("data:image/") for source in sources)
  assert "url(" not in page
  assert "long &lt;b&gt;" in page
  assert "<b>\t" not in page


def test_evaluating_again_changes_no_byte(evaluated, models):
  before = contents(evaluated)
  assert run(models, evaluated) == 0
  assert contents(evaluated) == before


class KilledError(BaseException):
  """The process ends here."""


@pytest.mark.parametrize("after", [3, 26, 29])
def test_killed_after_any_file_it_ends_with_the_same_files(
  evaluated, models, tmp_path, monkeypatch, after
):
  written = 0

  def counted(function):
    def write(*arguments, **options):
      nonlocal written
      if written == after:
        raise KilledError
      written += 1
      return function(*arguments, **options)

    return write

  with monkeypatch.context() as patch:
    for module in (image_folder, score_files, evaluate):
      patch.setattr(module, "write_atomically", counted(module.write_atomically))
    with pytest.raises(KilledError):
      run(models, tmp_path / "out")
  assert run(models, tmp_path / "out") == 0
  assert contents(tmp_path / "out") == contents(evaluated)


def test_a_damaged_image_and_damaged_scores_are_made_again(copy, evaluated, models):
  (copy / "images" / "other" / "00001_0000000003.png").write_bytes(b"\x89PNG")
  (copy / "scores" / "reference" / "fake" / "00000.json").write_text("{")
  assert run(models, copy) == 0
  assert contents(copy) == contents(evaluated)


def test_a_model_is_added_to_a_finished_evaluation(copy, models):
  kept = (copy / "images" / "other" / "00001_0000000003.png").stat().st_mtime_ns
  more = [f"other={models / 'other'}", f"third={models / 'reference'}"]
  assert run(models, copy, *more) == 0
  assert (copy / "images" / "other" / "00001_0000000003.png").stat().st_mtime_ns == kept
  assert {row["model"] for row in table(copy)} == {"reference", "other", "third"}


def test_folders_of_samples_are_compared_without_sampling(evaluated, tmp_path):
  reference, other = (evaluated / "images" / name for name in ("reference", "other"))
  arguments = ["evaluate", "--reference", str(reference), f"b={other}", "--scorer", "brightness"]
  assert main([*arguments, "--out", str(tmp_path / "out"), "--no-progress"]) == 0
  for ours, name in (("reference", "reference"), ("b", "other")):
    kept = column(evaluated, "brightness", name)
    assert column(tmp_path / "out", "brightness", ours) == kept


def test_samples_of_another_prompt_are_refused_with_the_image(evaluated, models, tmp_path, capsys):
  folder = shutil.copytree(evaluated / "images" / "other", tmp_path / "samples")
  manifest = json.loads((folder / "manifest.json").read_text())
  for image in manifest["images"][2:4]:
    image["prompt"] = "an owl"
  (folder / "manifest.json").write_text(json.dumps(manifest))
  assert run(models, tmp_path / "out", f"other={folder}", scorer=["brightness"]) == 2
  message = capsys.readouterr().err
  assert "samples/manifest.json, image 2: the prompt is 'an owl', and 'one'" in message
  assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_lora_of_the_reference_is_sampled_as_sample_does(models, tmp_path):
  base, rng = interop.load_pipeline(models / "reference").params, np.random.default_rng(0)
  lora = {"unet": lora_init(jax.random.key(0), base["unet"], rank=1)}
  lora = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), lora)
  file = tmp_path / "lora.safetensors"
  interop.save_lora(file, interop.Lora(lora, {"unet": 1.0}), base)
  prompts = ["--prompt", "the digit seven"]
  arguments = ["--pipeline", str(models / "reference"), "--lora", str(file), *prompts, *WORKS[:4]]
  assert main(["sample", *arguments, "--out", str(tmp_path / "samples")]) == 0
  out = tmp_path / "out"
  assert run(models, out, f"lora={file}", "--limit", "1", scorer=["brightness"]) == 0
  name = "00000_0000000001.png"
  folders = (tmp_path / "samples", out / "images" / "lora", out / "images" / "reference")
  sampled, ours, reference = (np.asarray(Image.open(f / name)).astype(int) for f in folders)
  assert np.abs(ours - sampled).max() <= 1
  assert np.abs(ours - reference).max() > 1


@pytest.mark.slow
def test_two_processes_share_images_and_scores(models, evaluated, tmp_path):
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
  out = tmp_path / "out"
  command = [sys.executable, "-m", "dmpo_jax.commands.main", "evaluate", *WORKS]
  command += ["--reference", str(models / "reference"), f"other={models / 'other'}"]
  command += ["--prompts", str(models / "prompts.tsv"), "--scorer", "brightness"]
  command += ["--out", str(out), "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
  flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
  environment = {**os.environ, "XLA_FLAGS": flags}
  processes = [
    subprocess.Popen([*command, "--process-id", str(i)], env=environment) for i in range(2)
  ]
  assert [process.wait(timeout=300) for process in processes] == [0, 0]
  for model in ("reference", "other"):
    np.testing.assert_allclose(
      column(out, "brightness", model), column(evaluated, "brightness", model), atol=1e-3
    )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["{other}"], "has no name; give NAME=PATH"),
    (["reference={other}"], "two models have the name 'reference'"),
    (["a/b={other}"], "cannot be that of a folder"),
    (["a={other}", "--limit", "0"], "must be at least 1"),
    (["a={other}", "--category", "Kind"], "has no column 'Kind'"),
    (["a={other}", "--scorer", "fake"], "two scorers have the name fake"),
    (["a={other}", "--prompts", "{prompts}.md"], "prompts are read from"),
    (["a={lora}"], "lora.safetensors"),
    (["a={other}", "b=/none/of/them"], "'/none/of/them' is no file, no folder"),
  ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
  models, tmp_path, capsys, arguments, message
):
  save_file({"x": np.zeros(1, np.float32)}, tmp_path / "lora.safetensors")
  names = {
    "other": models / "other",
    "prompts": models / "p",
    "lora": tmp_path / "lora.safetensors",
  }
  assert run(models, tmp_path / "out", *[a.format(**names) for a in arguments]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out" / "report.html").exists()
