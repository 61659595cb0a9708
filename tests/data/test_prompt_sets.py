"""Prompt sets in the formats of their authors."""

import json
import os
import pathlib
from collections import Counter

import pytest

from dmpo_jax.data import prompt_sets
from dmpo_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
REAL = pathlib.Path(os.environ.get("DMPO_JAX_PROMPTS_DIR", ROOT.parent / "shared/data/prompts"))


def write(folder, name, text):
  path = folder / name
  path.write_text(text)
  return path


def parquet(folder, **columns):
  arrow = pytest.importorskip("pyarrow")
  path = folder / "prompts.parquet"
  pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
  return path


def test_a_text_file_has_a_prompt_per_line_and_empty_lines_are_skipped(tmp_path):
  prompts = prompt_sets.read(write(tmp_path, "a.txt", "a fox\n\n  an owl \r\n"))
  assert prompts.prompts == ["a fox", "an owl"]
  assert prompts.places[1].endswith("a.txt, line 3")


def test_quotation_marks_of_a_tsv_file_are_part_of_the_prompt(tmp_path):
  text = 'Prompt\tCategory\tNote\n"G I G" on a wall\tSigns\t"x"\na "b\tArts\n'
  prompts = prompt_sets.read(write(tmp_path, "parti.tsv", text))
  assert prompts.prompts == ['"G I G" on a wall', 'a "b']
  assert prompts.categories == ["Signs", "Arts"]


def test_another_column_can_be_the_category(tmp_path):
  path = write(tmp_path, "parti.tsv", "Prompt\tCategory\tChallenge\na fox\tAnimals\tBasic\n")
  assert prompt_sets.read(path, category="Challenge").categories == ["Basic"]


def test_csv_is_read_with_quoting(tmp_path):
  prompts = prompt_sets.read(write(tmp_path, "a.csv", 'id,prompt\n1,"a fox, red"\n'))
  assert prompts.prompts == ["a fox, red"]


def test_json_lines_have_the_tag_of_geneval_as_category(tmp_path):
  line = json.dumps({"tag": "colors", "include": [], "prompt": "a red cow"})
  assert prompt_sets.read(write(tmp_path, "g.jsonl", line))[:2] == (["a red cow"], ["colors"])


def test_hpsv2s_list_has_its_styles_in_blocks_of_800(tmp_path):
  path = write(tmp_path, "hps.json", json.dumps([{"prompt": f"p{i}"} for i in range(3200)]))
  count = Counter(prompt_sets.read(path).categories)
  assert count == dict.fromkeys(["anime", "concept-art", "paintings", "photo"], 800)


def test_captions_of_a_parquet_file_that_repeat_are_counted_once(tmp_path):
  path = parquet(tmp_path, caption=["a fox", "an owl", "a fox"], jpg_0=[b"", b"", b""])
  prompts = prompt_sets.read(path)
  assert (prompts.prompts, prompts.repeated) == (["a fox", "an owl"], 1)


def test_a_limit_keeps_evenly_spaced_prompts(tmp_path):
  path = write(tmp_path, "a.txt", "".join(f"p{i}\n" for i in range(9)))
  assert prompt_sets.read(path, limit=3).prompts == ["p0", "p4", "p8"]


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("a.tsv", "Prompt\tCategory\na\tb\n\t\tx\n", "line 3 has 3 fields, the first line names 2"),
    ("a.tsv", "Prompt\tCategory\na\tb\n \tArts\n", "line 3: the prompt is empty"),
    ("a.tsv", "Words\tCategory\na\tb\n", r"has no column for prompts.*\['Words', 'Category'\]"),
    ("a.csv", "words\na\n", "has no column for prompts"),
    ("a.jsonl", '{"prompt": "a"}\n{"tag": "b"}\n', "line 2: there is no prompt"),
    ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "line 2: prompt is 3, expected a text"),
    ("a.json", '["a", 3]', "entry 1 is 3"),
    ("a.txt", "\n\n", "has no prompt"),
    ("a.doc", "a", "prompts are read from .txt, .tsv"),
  ],
)
def test_an_error_names_file_and_row(tmp_path, name, text, message):
  path = write(tmp_path, name, text)
  with pytest.raises(InputError, match=message) as error:
    prompt_sets.read(path)
  assert str(path) in str(error.value)


def test_a_parquet_file_without_prompts_is_refused_with_its_columns(tmp_path):
  with pytest.raises(InputError, match=r"has no column for prompts.*words"):
    prompt_sets.read(parquet(tmp_path, words=["a"]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the published prompt sets are not on this machine")
@pytest.mark.parametrize(
  ("name", "count", "repeated", "categories"),
  [
    ("PartiPrompts.tsv", 1632, 0, 12),
    ("hpsv2.json", 3172, 28, 4),
    ("geneval.jsonl", 553, 0, 6),
  ],
)
def test_published_sets_have_their_counts(name, count, repeated, categories):
  prompts = prompt_sets.read(REAL / name)
  assert len(prompts.prompts) + prompts.repeated == count + repeated
  assert prompts.repeated == repeated
  assert len(set(prompts.categories)) == categories
  if name == "PartiPrompts.tsv":
    assert any(prompt.startswith('"G I G G L E"') for prompt in prompts.prompts)
