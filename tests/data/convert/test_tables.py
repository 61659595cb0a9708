"""Tables of every format are read in chunks, and the errors name damaged ones."""

import csv
import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_jax.data.convert import tables
from dmpo_jax.data.convert.tables import parquet, utf8
from dmpo_jax.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def everything(root: pathlib.Path, file: str, rows: int, columns=()) -> list:
  table = tables.plan(root, file, columns, rows=rows)
  return [row for chunk in table.chunks for row in tables.read(root, chunk, columns)]


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_the_chunks_of_a_table_are_its_rows_in_order(tmp_path, name, rows):
  values = [{"a": f'é,\t"{i}\n', "b": "}]"} for i in range(10)]
  write(tmp_path / name, values)
  assert everything(tmp_path, name, rows, ["a", "b"]) == list(enumerate(values))


def write(path: pathlib.Path, values: list[dict]) -> None:
  if path.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(values), path, row_group_size=2)
  elif path.suffix == ".json":
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1))
  elif path.suffix == ".jsonl":
    path.write_text("\n\n".join(json.dumps(v, ensure_ascii=False) for v in values))
  else:
    with path.open("w", newline="") as stream:
      rows = csv.DictWriter(stream, values[0], delimiter="\t" if path.suffix == ".tsv" else ",")
      rows.writeheader()
      rows.writerows(values)


@given(st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=8))
@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_a_window_of_any_size_reads_any_text(tmp_path_factory, name, values):
  root = tmp_path_factory.mktemp("text")
  write(root / name, values)
  read_bytes = utf8.READ_BYTES
  utf8.READ_BYTES = 3
  try:
    assert everything(root, name, 2, ["a", "b"]) == list(enumerate(values))
  finally:
    utf8.READ_BYTES = read_bytes


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
  (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
  assert everything(tmp_path, "a.csv", 10, ["a"]) == [(0, {"a": "1", "b": "2"})]


MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-8": b"\xef\xbb\xbf"}
MARKS |= {"utf-32-le": b"\xff\xfe\0\0", "utf-32-be": b"\0\0\xfe\xff"}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv"])
def test_a_table_in_another_encoding_with_a_mark_has_the_same_rows(tmp_path, name, encoding):
  values = [{"a": f'é,\t"{i}\u2028', "b": "🦊"} for i in range(5)]
  write(tmp_path / name, values)
  text = (tmp_path / name).read_bytes().decode()
  (tmp_path / name).write_bytes(MARKS[encoding] + text.encode(encoding))
  assert everything(tmp_path, name, 2, ["a", "b"]) == list(enumerate(values))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("rows", [1, 100])
def test_lines_of_csv_end_at_lf_crlf_or_cr(tmp_path, end, rows):
  text = f'a,b{end}1,"x\r\ny"{end}{end}2,\u2028{end}3,\x0b\x1c'
  (tmp_path / "a.csv").write_bytes(text.encode())
  values = [{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": "\u2028"}, {"a": "3", "b": "\x0b\x1c"}]
  assert everything(tmp_path, "a.csv", rows, ["a"]) == list(enumerate(values))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_and_their_places_do_not_depend_on_the_blocks_that_are_read(
  tmp_path, monkeypatch, size
):
  content = b"ab\r\n\r\rc\n\nd\r\r\n\r"
  (tmp_path / "a").write_bytes(content)
  monkeypatch.setattr(utf8, "READ_BYTES", size)
  with (tmp_path / "a").open("rb") as stream:
    lines = list(utf8.lines(tmp_path / "a", stream))
  expected = [b"ab\r\n", b"\r", b"\r", b"c\n", b"\n", b"d\r", b"\r\n", b"\r"]
  assert [line for _, line in lines] == expected
  assert all(content[start:].startswith(line) for start, line in lines)


# Forms in which spreadsheets and data frames write the columns a and b.
FORMS = {
  "an unnamed index": ",a,b\n0,1,2\n",
  "an index of pandas": "Unnamed: 0,a,b\n0,1,2\n",
  "commas at the end": "a,b,,\n1,2,,\n",
  "commas at the end of rows": "a,b\n1,2,,\n",
  "commas at the end of the header": "a,b,,\n1,2\n",
  "two columns of one name that are not read": "n,a,n,b\nx,1,y,2\n",
  "spaces behind commas": "a, b\n1, 2\n",
  "semicolons": 'a;b;x\n1;2;"3,5"\n',
  "semicolons and commas": 'x,y;a;b\n"0;3";1;2\n',
  "tabs": "a\tb\n1\t2\n",
  "quotes and semicolons": '"a";"b"\n"1";"2"\n',
  "quotes and commas": '"a","b"\n"1","2"\n',
  "quotes behind spaces": 'a, b\n1, "2"\n',
  "a field of 200,000 characters that is not read": f"a,b,x\n1,2,{'x' * 200_000}\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.csv", "A.CSV"])
def test_what_programs_add_to_a_csv_file_does_not_matter(tmp_path, form, name):
  (tmp_path / name).write_text(FORMS[form])
  ((_, row),) = everything(tmp_path, name, 10, ["a", "b"])
  assert (row["a"], row["b"]) == ("1", "2")


def test_spaces_at_the_beginning_of_a_field_are_kept_where_the_header_has_none(tmp_path):
  (tmp_path / "a.csv").write_text("a,b\n1, 2\n")
  assert everything(tmp_path, "a.csv", 10, ["a"]) == [(0, {"a": "1", "b": " 2"})]


def test_columns_that_are_not_read_are_listed(tmp_path):
  (tmp_path / "a.csv").write_text("a,wieght,b\n1,2,3\n")
  table = tables.plan(tmp_path, "a.csv", ["a"], optional=["b"], rows=1)
  assert table.not_read == ("wieght",)


def test_a_byte_order_mark_before_a_line_of_json_is_no_part_of_it(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
  assert everything(tmp_path, "a.jsonl", 10) == [(0, {"a": 1}), (1, {"a": 2})]


def test_lines_that_are_no_json_are_named_and_the_others_read(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a"\n[1]\n{"a": 2}\n')
  rows = everything(tmp_path, "a.jsonl", 10)
  assert [rows[0][1], rows[3][1]] == [{"a": 1}, {"a": 2}]
  assert "the line is not JSON" in str(rows[1][1])
  assert "must hold an object" in str(rows[2][1])


def test_a_row_of_another_length_than_the_header_is_named(tmp_path):
  (tmp_path / "a.csv").write_text("a,b\n1\n")
  ((number, error),) = everything(tmp_path, "a.csv", 10)
  assert number == 0
  assert "1 fields, the header of the file 2" in str(error)


def test_text_that_is_not_utf8_spoils_its_own_row_alone(tmp_path):
  column = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
  pq.write_table(pa.table({"a": column}), tmp_path / "a.parquet")
  rows = everything(tmp_path, "a.parquet", 10, ["a"])
  assert rows[0] == (0, {"a": "good"})
  assert "a is not valid UTF-8" in str(rows[1][1])


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", b"", "is empty"),
    ("a.parquet", b"", "is empty"),
    ("a.csv", b"prompt,x\n", "holds no row"),
    ("a.json", b"[]", "holds no row"),
    ("a.csv", b"x,y\n1,2\n", "lacks the column prompt; it has x, y"),
    ("a.csv", b"prompt,prompt\n1,2\n", "name each column once; 'prompt' occurs twice"),
    ("a.csv", b'prompt\n"open\n', "not CSV"),
    ("a.json", b'[{"a": 1}, 3]', "after 1 rows: expected an object"),
    ("a.json", b'[{"a": 1}', "after 1 rows: it ends without"),
    ("a.json", b'[{"a": 1} {"a": 2}]', "after 1 rows: expected ','"),
    ("a.json", b'[{"a": tru}]', "after 0 rows"),
    ("a.json", b'[{"a": ' + b"[" * 100_000 + b"]}]", "after 0 rows"),
    ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", "after 0 rows"),
    ("a.parquet", b"PAR1 and no more", "a damaged parquet file"),
    ("a.xlsx", b"x", "unknown kind of table"),
    ("a.csv", b"prompt|x\n1|2\n", "separated by '|', which is not read in .csv"),
    ("a.tsv", b"prompt,x\n1,2\n", "separated by ',', which is not read in .tsv"),
    ("a.csv", b",,\n1,2,3\n", "it names none"),
    ("a.jsonl", b'{"b": 1}\n{"c": 1}\n', "lacks the column prompt; it has b, c"),
    ("a.json", b'[{"b": 1}]', "lacks the column prompt; it has b"),
    ("a.csv", b"\xff\xfep\0r\0o", "no UTF-16-LE text"),
  ],
)
def test_a_broken_table_is_named_before_anything_is_written(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=message):
    tables.plan(tmp_path, name, ["prompt"], rows=10)


def test_a_missing_column_of_a_parquet_file_is_named(tmp_path):
  pq.write_table(pa.table({"captoin": ["x"]}), tmp_path / "a.parquet")
  with pytest.raises(InputError, match="lacks the column caption; it has captoin"):
    tables.plan(tmp_path, "a.parquet", ["caption"], rows=10)


def test_a_column_that_a_parquet_file_has_twice_is_named_if_it_is_read(tmp_path):
  table = pa.table([["x"], ["y"], ["z"]], names=["a", "b", "b"])
  pq.write_table(table, tmp_path / "a.parquet")
  assert everything(tmp_path, "a.parquet", 10, ["a"]) == [(0, {"a": "x"})]
  with pytest.raises(InputError, match=r"a\.parquet has two columns 'b'"):
    tables.plan(tmp_path, "a.parquet", ["a"], optional=["b"], rows=10)


def test_a_parquet_file_whose_inside_is_damaged_is_named(tmp_path):
  path = tmp_path / "a.parquet"
  pq.write_table(pa.table({"a": [f"{i}" * 50 for i in range(1000)]}), path)
  data = bytearray(path.read_bytes())
  data[100:2000] = bytes(1900)
  path.write_bytes(data)
  with pytest.raises(InputError, match=r"a\.parquet, row"):
    everything(tmp_path, "a.parquet", 10, ["a"])


def test_a_column_name_that_is_no_text_is_a_damaged_file(tmp_path):
  path = tmp_path / "a.parquet"
  pq.write_table(pa.table({"column": ["x"]}), path)
  path.write_bytes(path.read_bytes().replace(b"\x06column", b"\x06\x80olumn"))
  with pytest.raises(InputError, match=r"a\.parquet is a damaged parquet file: 'utf-8'"):
    everything(tmp_path, "a.parquet", 10)


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
  (tmp_path / "a.parquet").write_bytes(b"x")
  for name in [m for m in sys.modules if m.split(".")[0] == "pyarrow"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(InputError, match=r"pip install 'dmpo-jax\[data\]'"):
    tables.plan(tmp_path, "a.parquet", [], rows=10)


def test_heavy_columns_that_are_read_one_by_one_give_the_same_rows(tmp_path, monkeypatch):
  bad = pa.array([b"x", b"\xff", b"z"], pa.binary()).view(pa.string())
  columns = {"a": [b"1", b"2", b"3"], "b": [b"4", b"5", None], "c": bad}
  pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
  at_once = everything(tmp_path, "a.parquet", 10, columns)
  monkeypatch.setattr(parquet, "HEAVY_GROUP", 0)
  one_by_one = everything(tmp_path, "a.parquet", 10, columns)
  assert str(one_by_one[1][1]) == str(at_once[1][1])
  assert at_once[::2] == one_by_one[::2]
  assert one_by_one[2] == (2, {"c": "z", "a": b"3", "b": None})
