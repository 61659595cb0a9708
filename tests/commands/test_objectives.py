"""`dmpo-jax objectives`: the list of losses."""

import inspect
import json

import pytest

from dmpo_jax import losses
from dmpo_jax.commands.main import main


@pytest.fixture
def listing(capsys):
  assert main(["objectives"]) == 0
  return capsys.readouterr().out


def test_every_loss_is_listed_with_its_hyperparameters(listing):
  for name, function in losses.LOSSES.items():
    row = next(line for line in listing.splitlines() if line.startswith(f"{name} "))
    for argument, parameter in inspect.signature(function).parameters.items():
      if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        assert argument in row


def test_lines_have_at_most_100_columns(listing):
  assert max(map(len, listing.splitlines())) <= 100


def test_requirements_are_those_of_the_functions(listing):
  rows = {line.split()[0]: line.split()[-3:] for line in listing.splitlines() if line[:1].isalpha()}
  for name, function in losses.LOSSES.items():
    requirements = function.requirements
    wanted = [requirements.reference, requirements.residuals, requirements.needs_global_batch]
    assert [flag == "yes" for flag in rows[name]] == wanted


def test_defaults_equations_and_sources_come_from_the_functions(capsys):
  assert main(["objectives", "--json"]) == 0
  rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
  assert rows["f_dpo"]["hyperparameters"] == {"divergence_alpha": 0.5}
  assert rows["dmpo"]["required"] == ["beta", "alpha"]
  assert rows["sft"]["equation"] == ["loss = e_w"]
  assert "2311.12908" in rows["dpo"]["source"]


def test_both_forms_of_mapo_are_listed(listing):
  assert "code:   loss = " in listing
  assert "paper:  loss = " in listing
