"""docs/configuration.md is what its script makes of the source."""

import pathlib
import runpy

from dmpo_jax.training import config

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
script = runpy.run_path(str(DOCS / "make_configuration.py"))


def test_the_page_is_up_to_date():
  stale = "the page is stale: python docs/make_configuration.py"
  assert (DOCS / "configuration.md").read_text() == script["page"](), stale


def test_every_key_of_the_default_config_is_in_the_page():
  page = script["page"]()
  keys = []
  for name, value in config.default().items():
    keys += [f"{name}.{key}" for key in value] if name in ("optimizer", "mesh") else [name]
  assert len(keys) > 20
  assert all(f"`{key}`" in page for key in keys)


def test_every_key_and_option_has_a_meaning():
  rows = [line for line in script["page"]().splitlines() if line.startswith("| `")]
  assert len(rows) > 100
  assert not [row for row in rows if row.endswith("|  |")]
