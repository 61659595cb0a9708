"""Every reader of files reads damaged files or refuses them in words.

More cases: DMPO_JAX_FUZZ_CASES=250 python -m pytest tests/fuzz
"""

import pytest

from tests.fuzz import harness
from tests.fuzz.readers import READERS


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_words(name, tmp_path_factory, capsys):
  reader = READERS[name](tmp_path_factory.mktemp(name))
  outcomes = harness.check(name, reader, tmp_path_factory.mktemp("damaged"))
  with capsys.disabled():
    print(f"\n{name}: {outcomes['refused']} refused, {outcomes['read']} read", end="")
