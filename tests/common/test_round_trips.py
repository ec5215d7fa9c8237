"""Round trips: rows through their index, lines through JSON."""

import json
import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.custom import schema
from input_pipeline.masks.row_index import RowIndex

_ids = st.integers(1 - 2**63, 2**63 - 1)  # the C parser refuses -2**63, in one line
_values = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    _ids,
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
  ),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
  ),
  max_leaves=5,
)
_rows = st.lists(
  st.fixed_dictionaries({"id": _ids, "image_id": st.integers(0, 3), "more": _values}),
  max_size=8,
  unique_by=lambda row: row["id"],
)


@settings(max_examples=25)
@given(_rows, st.booleans())
def test_rows_are_found_by_their_ids_as_they_were_written(tmp_path_factory, rows, pickled):
  path = tmp_path_factory.mktemp("rows") / "rows.json"
  path.write_text(json.dumps({"annotations": rows}))
  index = RowIndex(str(path), {"annotations": "annotations.item"})
  if pickled:
    index = pickle.loads(pickle.dumps(index))
  assert list(index.rows("annotations")) == rows
  for row in rows:
    assert index.row("annotations", row["id"]) == row
  for image_id in range(5):
    expected = [row for row in rows if row["image_id"] == image_id]
    assert index.of_image("annotations", image_id) == expected
  assert index.image_ids("annotations") == {row["image_id"] for row in rows}


_word = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5)
_numbers = st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=8).filter(lambda p: len(p) % 2 == 0)
_masks = st.one_of(
  st.fixed_dictionaries({"polygons": st.lists(_numbers, min_size=1, max_size=2)}),
  st.fixed_dictionaries({"ann_id": _ids}),
  st.fixed_dictionaries({"ann_ids": st.lists(_ids, min_size=1, max_size=3)}),
  st.fixed_dictionaries({"png": _word}, optional={"value": st.integers(0, 255)}),
  st.fixed_dictionaries(
    {
      "rle": st.fixed_dictionaries(
        {"size": st.lists(st.integers(1, 99), min_size=2, max_size=2), "counts": _word}
      )
    }
  ),
)


@given(
  st.fixed_dictionaries(
    {"image": _word, "sentences": st.lists(_word, min_size=1, max_size=3)},
    optional={"image_id": st.integers(0, 99), "ref_id": st.integers(0, 99), "annotations": _word},
  ),
  st.one_of(st.none(), _masks, st.lists(_masks, max_size=3)),
)
def test_lines_come_back_as_they_were_written(fields, target):
  line, problems = schema.parse(7, json.dumps(fields | {"target": target}))
  assert line is not None and not problems
  for key, value in fields.items():
    assert getattr(line, key) == (tuple(value) if isinstance(value, list) else value)
  assert list(line.target) == (target if isinstance(target, list) else [target] if target else [])


@given(st.binary(max_size=60))
def test_any_bytes_are_a_line_or_problems(data):
  line, problems = schema.parse(1, data)
  assert (line is None) == bool(problems)
