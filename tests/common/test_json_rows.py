"""Rows of JSON files that are read one by one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common import json_rows
from input_pipeline.common.errors import InputError

_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text() | _FINITE,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
  max_leaves=8,
)
_ROWS = st.lists(st.dictionaries(st.text(max_size=5), _VALUES, max_size=3), max_size=4)


def _split(text: str, size: int, *sections: str) -> tuple[list[tuple[str, dict]], bytes]:
  data = text.encode()
  chunks = [data[i : i + size] for i in range(0, len(data), size)]
  parts = list(json_rows.split(chunks, "a.json", sections))
  rows = [(part.section, part.loads("a")) for part in parts if isinstance(part, json_rows.Row)]
  return rows, b"".join(part for part in parts if isinstance(part, bytes))


@given(
  st.dictionaries(st.text(), _VALUES, max_size=3),
  _ROWS,
  _ROWS,
  st.integers(1, 40),
  st.booleans(),
  st.sampled_from([None, 1]),
)
def test_rows_and_the_text_around_them_are_those_of_the_whole_file(
  around, images, refs, size, ascii_only, indent
):
  content = {"images": images, **around, "refs": refs}
  text = json.dumps(content, ensure_ascii=ascii_only, indent=indent)
  rows, rest = _split(text, size, "images", "refs")
  assert rows == [("images", row) for row in content["images"]] + [
    ("refs", row) for row in content["refs"]
  ]
  assert json.loads(rest) == {**content, "images": [], "refs": []}


@given(_ROWS, st.integers(1, 40))
def test_a_file_may_be_one_array(content, size):
  rows, rest = _split(json.dumps(content), size, "")
  assert rows == [("", row) for row in content]
  assert json.loads(rest) == []


def test_arrays_of_that_name_further_inside_are_not_meant():
  content = {"info": {"images": [{"id": 1}]}, "x": [{"images": [{"id": 2}]}], "images": [{"id": 3}]}
  rows, rest = _split(json.dumps(content), 5, "images")
  assert rows == [("images", {"id": 3})]
  assert json.loads(rest) == {**content, "images": []}


@given(st.integers(1, 40), st.data())
def test_a_cut_file_is_never_a_shorter_one(size, data):
  text = json.dumps({"info": {"a": '"]}'}, "images": [{"id": 1, "name": "a{"}, {"id": 2}]})
  cut = data.draw(st.integers(1, len(text) - 1))
  with pytest.raises(InputError, match=r"a\.json: invalid or truncated JSON"):
    _split(text[:cut], size, "images")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"images": [{}, 1]}', "images has a value that is not an object"),
    ('{"images": [1]}', "images has a value that is not an object"),
    ('{"images": ["a"]}', "images has a value that is not an object"),
    ('{"images": [null, {}]}', "images has a value that is not an object"),
    ('{"images": [[{}]]}', "images has a value that is not an object"),
    ("[{}, 3]", "the list has a value that is not an object"),
    ('{"images": [{} {}]}', "missing or extra comma"),
    ('{"images": [{},, {}]}', "not an object"),
    ('{"images": [{},]}', "missing or extra comma"),
    ('{"images": [{"a": }]}', "a row of images: invalid JSON"),
    ("[" + "[" * 200 + "]" * 201, "nested deeper than 100"),
    ("]", "invalid or truncated"),
  ],
)
def test_what_is_no_list_of_rows_is_one_line(text, message):
  with pytest.raises(InputError, match=message):
    _split(text, 1000, "images", "" if text != "[" + "[" * 200 + "]" * 201 else "x")


def test_the_text_around_long_rows_is_short():
  row = b'{"id": 1, "segmentation": [[' + b"1, " * 20_000 + b"1]]}"
  text = [b'{"images": [' + row] + [b", " + row] * 200 + [b"]}"]
  sizes = [len(part) for part in json_rows.split(text, "a", ("images",)) if isinstance(part, bytes)]
  assert sum(sizes) == len(b'{"images": []}')
