"""Untrusted JSON: what Python reads, or one line that says why not."""

import gzip
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.common import untrusted_files, untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.masks.coco import CocoAnnotations
from input_pipeline.proposers import image_lists

_values = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
  ),
  lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
  max_leaves=30,
)


@given(_values, st.booleans())
def test_any_value_comes_back(value, as_bytes):
  text = json.dumps(value)
  assert untrusted_json.loads(text.encode() if as_bytes else text, "a.json") == value


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_one_line(data):
  try:
    value = untrusted_json.loads(data, "a.json")
  except InputError as error:
    assert str(error).startswith("a.json: ")
  else:
    assert json.loads(data) == value


@pytest.mark.parametrize(
  "text", ["NaN", "[-Infinity]", '{"x": Infinity}', "1e999", "[-1e400]", "9" * 400 + ".5"]
)
def test_numbers_that_are_not_finite_are_refused(text):
  assert any(not math.isfinite(x) for x in _numbers(json.loads(text)))  # Python reads it
  with pytest.raises(InputError, match=r"a\.json: invalid JSON"):
    untrusted_json.loads(text, "a.json")


def _numbers(value):
  inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
  return [value] if inner is None else [x for item in inner for x in _numbers(item)]


@pytest.mark.parametrize("text", ["1e300", "[12345678901234567890, 1e-999, 0.5e+99]", '"e999"'])
def test_large_numbers_and_text_like_them_are_read(text):
  assert untrusted_json.loads(text, "a.json") == json.loads(text)


def test_a_number_of_many_digits_is_refused():
  with pytest.raises(InputError, match=r"a\.json: invalid JSON"):
    untrusted_json.loads("9" * 1_000_000, "a.json")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 0, "a": 1}}]'])
def test_a_duplicate_key_is_named(text):
  with pytest.raises(InputError, match=r"duplicate key 'a'"):
    untrusted_json.loads(text, "a.json")


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_nesting_of_any_depth_is_refused(opening):
  for count in (101, 100_000):
    closing = "".join({"[": "]", "{": "}"}.get(c, "") for c in reversed(opening * count))
    with pytest.raises(InputError, match=r"nested deeper than 100"):
      untrusted_json.loads(opening * count + "1" + closing, "a.json")


@given(st.integers(1, 8), st.integers(1, 8))
def test_the_limit_of_depth_is_exact(depth, limit):
  text = "[" * depth + '{"a": 1}' + "]" * depth
  if depth + 1 <= limit:
    assert untrusted_json.loads(text, "a.json", max_depth=limit) == json.loads(text)
  else:
    with pytest.raises(InputError, match=f"nested deeper than {limit}"):
      untrusted_json.loads(text, "a.json", max_depth=limit)


def test_text_beyond_the_limit_is_refused_unread(tmp_path):
  path = tmp_path / "a.json"
  with path.open("wb") as file:
    file.truncate(1 << 34)  # 16 GB, sparse
  with pytest.raises(InputError, match=r"a\.json: 17,179,869,184 bytes; the limit"):
    untrusted_json.load_file(path)
  with pytest.raises(InputError, match="11 bytes; the limit is 10"):
    untrusted_json.loads("[1, 2, 3, ]", "a.json", max_bytes=10)


def test_a_list_compressed_a_thousand_times_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(untrusted_files, "MAX_UNPACKED", 100_000)
  path = tmp_path / "ids.gz"
  path.write_bytes(gzip.compress(b"1\n" * 500_000))
  with pytest.raises(InputError, match=r"ids\.gz: exceeds the limit of 100,000 bytes"):
    image_lists.read_ids(str(path))


@pytest.mark.parametrize(
  "row",
  [
    '{"id": 1, "image_id": 1, "x": ' + "[" * 100 + "]" * 100 + "}",
    '{"id": 1, "image_id": 1, "x": ' + "[" * 5000 + "]" * 5000 + "}",
    '{"id": 1, "image_id": 1, "x": ' + "[" * 1000000 + "]" * 1000000 + "}",
    '{"id": 1, "image_id": 1, "x": 1e999}',
    '{"id": 99999999999999999999999, "image_id": 1}',
    '{"id": 1.5, "image_id": 1}',
    '{"id": [], "image_id": {}}',
    "7",
  ],
  ids=["deep", "deeper", "deepest", "infinite", "large id", "fraction", "lists", "number"],
)
def test_a_coco_file_with_an_invalid_row_gives_one_line(tmp_path, row):
  path = tmp_path / "instances.json"
  path.write_text('{"images": [{"id": 1}], "annotations": [' + row + "]}")
  with pytest.raises(InputError, match=r"instances\.json"):
    CocoAnnotations(str(path))
