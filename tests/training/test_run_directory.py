"""run.json: the fingerprint of a run, its format, and work directories of earlier versions."""

import errno
import fcntl
import json

import pytest

from dmpo_jax.commands.main import main
from dmpo_jax.common.unfinished import temporary_name
from dmpo_jax.configs import digits_dmpo
from dmpo_jax.errors import InputError
from dmpo_jax.parallel.processes import Processes
from dmpo_jax.training import config as configs
from dmpo_jax.training.run import MUTABLE_KEYS
from dmpo_jax.training.run_directory import (
  FORMAT,
  read_run,
  run_config,
  run_lock,
  write_fingerprint,
)

FINGERPRINT = {"config": {"loss": {"alpha": 0.01}, "pipeline": "a"}, "data": "a"}


def test_a_fingerprint_is_written_once_and_then_checked(tmp_path):
  write_fingerprint(tmp_path / "run", FINGERPRINT)
  write_fingerprint(tmp_path / "run", FINGERPRINT)
  assert read_run(tmp_path / "run") == {"format": FORMAT, **FINGERPRINT}
  other = {**FINGERPRINT, "config": {"loss": {"alpha": 0.02}, "pipeline": "a"}}
  with pytest.raises(
    InputError, match=r"(?s)different run.*config\.loss\.alpha: 0\.01 there, 0\.02"
  ):
    write_fingerprint(tmp_path / "run", other)


def test_the_base_pipeline_may_move(tmp_path):
  write_fingerprint(tmp_path, FINGERPRINT)
  write_fingerprint(tmp_path, {**FINGERPRINT, "config": {"loss": {"alpha": 0.01}, "pipeline": "b"}})


@pytest.mark.parametrize(("rate", "is_same"), [(0.0, True), (0.1, False)])
def test_a_key_that_an_older_run_lacks_is_the_same_run_at_its_default(tmp_path, rate, is_same):
  write_fingerprint(tmp_path, FINGERPRINT)
  newer = {**FINGERPRINT, "config": {**FINGERPRINT["config"], "label_flip_rate": rate}}
  if is_same:
    write_fingerprint(tmp_path, newer)
  else:
    with pytest.raises(InputError, match=r"config\.label_flip_rate: absent there, 0\.1 here"):
      write_fingerprint(tmp_path, newer)


@pytest.fixture
def old_run(tmp_path):
  """A work directory of the version before run.json had a format."""
  config = {"pipeline": "a", "health": {"every": 10}, "data": {"name": "encoded", "time_ids": True}}
  content = {"config": config, "data": "a", "start": "0"}
  (tmp_path / "run.json").write_text(json.dumps(content))
  return tmp_path


MESSAGE = r"(?s)run\.json was written by .* other names.*another work directory.*the version that"


def test_a_run_of_an_earlier_version_is_refused_with_the_renamed_keys_in_it(old_run):
  match = MESSAGE + (
    r".*config\.health\.every -> config\.held_out\.every"
    r"\n  config\.data\.name 'encoded' -> 'cached_latents'"
    r"\n  config\.data\.time_ids -> config\.data\.micro_conditioning$"
  )
  with pytest.raises(InputError, match=match):
    write_fingerprint(old_run, FINGERPRINT)


@pytest.mark.parametrize(
  "command",
  [
    ["export", "--workdir", "RUN", "--out", "RUN/out"],
    ["inspect", "RUN"],
    ["sample", "--pipeline", "RUN", "--prompt", "a", "--out", "RUN/out"],
  ],
)
def test_commands_refuse_a_run_of_an_earlier_version(old_run, command, capsys):
  assert main([argument.replace("RUN", str(old_run)) for argument in command]) == 2
  error = capsys.readouterr().err
  assert "run.json was written by" in error
  assert "config.health.every -> config.held_out.every" in error


def test_sampling_from_a_work_directory_names_its_pipeline(tmp_path, capsys):
  write_fingerprint(tmp_path, FINGERPRINT)
  arguments = ["sample", "--pipeline", str(tmp_path), "--prompt", "a", "--out", str(tmp_path / "o")]
  assert main(arguments) == 2
  assert f"is a work directory; sample from {tmp_path / 'pipeline'}" in capsys.readouterr().err


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "config": []}', "\0\0", "[" * 5000]
)
def test_an_invalid_run_json_is_refused_in_one_line(tmp_path, text):
  (tmp_path / "run.json").write_text(text)
  with pytest.raises(InputError, match=r"^[^\n]*run\.json [^\n]*put it back from a copy[^\n]*$"):
    read_run(tmp_path)


def stored_run(workdir, **changes):
  config = digits_dmpo.get_config().to_dict()
  fixed = {key: value for key, value in config.items() if key not in MUTABLE_KEYS}
  (workdir / "run.json").write_text(json.dumps({"format": FORMAT, "config": {**fixed, **changes}}))


@pytest.mark.parametrize("value", [True, False])
def test_the_reference_of_a_run_that_stored_true_or_false_is_frozen(tmp_path, value):
  stored_run(tmp_path, reference=value)
  assert run_config(tmp_path).reference.kind == "frozen"


def test_the_config_of_a_run_is_that_in_run_json_with_defaults_for_keys_it_lacks(tmp_path):
  stored_run(tmp_path, seed=7)
  config = run_config(tmp_path)
  assert config.seed == 7
  assert config.loss.name == "dmpo"
  assert config.held_out.every == configs.default().held_out.every


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("batch_size", "many"),
    ("batch_size", [4]),
    ("batch_size", None),
    ("optimizer", 3),
    ("optimizer", {}),
    ("lora", []),
    ("ema_decay", float("nan")),
    ("model", "SDXL"),
    ("nothing", 1),
  ],
)
def test_a_damaged_config_in_run_json_is_one_line_of_export(tmp_path, capsys, key, value):
  stored_run(tmp_path, **{key: value})
  assert main(["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert "run.json" in error


def test_a_newer_format_is_refused(tmp_path):
  (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT + 1, **FINGERPRINT}))
  with pytest.raises(InputError, match=rf"has format {FORMAT + 1}, .* reads format {FORMAT}"):
    read_run(tmp_path)


def test_a_start_removes_what_a_killed_one_left_of_its_exports(tmp_path):
  left = tmp_path / ("." + temporary_name(tmp_path / "pipeline", "partial"))
  (left / "new" / "unet").mkdir(parents=True)
  (left / "lock").touch()
  with run_lock(tmp_path, Processes()):
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_a_disk_without_locks_is_an_error_of_the_system(tmp_path, monkeypatch):
  def refuse(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with (
    pytest.raises(OSError, match=r"cannot lock \(No locks available\).*/lock'"),
    run_lock(tmp_path, Processes()),
  ):
    pass


@pytest.mark.parametrize("existing", [(), ("a",), ("a/b",), ("a/b", "a/b/checkpoints")])
def test_a_run_that_is_refused_leaves_no_new_directory(tmp_path, existing):
  for name in existing:
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
  before = sorted(tmp_path.rglob("*"))

  def refused():
    with run_lock(tmp_path / "a" / "b", Processes()):
      (tmp_path / "a" / "b" / "checkpoints").mkdir(exist_ok=True)
      raise InputError("no such pipeline")

  with pytest.raises(InputError, match="no such pipeline"):
    refused()
  assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_of_a_refused_run_that_was_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
  flock, removed = fcntl.flock, []

  def after_removal(stream, operation):
    if not removed:
      (tmp_path / "lock").unlink()
      removed.append(True)
    flock(stream, operation)

  monkeypatch.setattr(fcntl, "flock", after_removal)
  with run_lock(tmp_path, Processes()):
    assert (tmp_path / "lock").exists()
    with (
      pytest.raises(InputError, match="another process is training"),
      run_lock(tmp_path, Processes()),
    ):
      pass
