"""Files of refs in every spelling that people have: the same refs, or an error that names one."""

import json
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.common.errors import InputError
from input_pipeline.sources import refs_file

ANY = refs_file.Rules("mine", None, generalised=True)
REFCOCO = refs_file.Rules("refcoco_unc", {"train": None, "val": None}, generalised=False)
GREFCOCO = refs_file.Rules("grefcoco_unc", {"train": None, "val": None}, generalised=True)


def ref(ref_id: int, *texts: str, **fields) -> dict:
  sentences = [
    {"raw": text, "sent": text.strip().lower(), "sent_id": 10 * ref_id + i, "tokens": text.split()}
    for i, text in enumerate(texts)
  ]
  return {
    "ref_id": ref_id, "ann_id": 100 + ref_id, "image_id": 7, "category_id": 3, "split": "train",
    "file_name": "COCO_train2014_000000000007_1.jpg", "sentences": sentences,
    "sent_ids": [row["sent_id"] for row in sentences], **fields,
  }  # fmt: skip


def read(folder: pathlib.Path, refs, rules: refs_file.Rules = ANY) -> refs_file.Refs:
  path = folder / "refs(unc).json"
  path.write_text(json.dumps(refs))
  return refs_file.read(str(path), rules)


def test_refs_without_sentences_are_left_out_and_counted(tmp_path):
  rows = [ref(1, "left cup"), ref(2), ref(3, "cup"), ref(4, sentences=None), ref(5, " ", "\t")]
  del rows[2]["sentences"][0]["raw"]
  for rules in (ANY, REFCOCO, GREFCOCO):
    actual = read(tmp_path, rows, rules)
    assert [(row.ref_id, row.sentences) for row in actual.rows] == [
      (1, ("left cup",)),
      (3, ("cup",)),
    ]
    assert actual.left_out == {
      "refs without sentences": [2, 4],
      "refs with only empty sentences": [5],
    }


def test_what_is_wrong_with_a_ref_without_sentences_does_not_matter(tmp_path):
  actual = read(tmp_path, [ref(1, "cup"), ref(2, ann_id=[], split=None, image_id=None)], GREFCOCO)
  assert [row.ref_id for row in actual.rows] == [1]


def test_a_file_of_refs_without_sentences_is_an_error(tmp_path):
  with pytest.raises(InputError, match=r"refs\(unc\)\.json: no ref has a sentence"):
    read(tmp_path, [ref(1), ref(2, " ")])


_EMPTY = ["", " ", "\t\n", "\u200b", "\x07", "\u3000"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*_EMPTY, "cup", "left cup", "杯"]), max_size=4)))
def test_empty_sentences_go_and_all_others_stay_in_order(tmp_path_factory, texts):
  folder = tmp_path_factory.mktemp("refs")
  rows = [ref(0, "first"), *(ref(i, *few) for i, few in enumerate(texts, 1))]
  actual = read(folder, rows)
  kept = {i: tuple(text for text in few if text not in _EMPTY) for i, few in enumerate(texts, 1)}
  assert {row.ref_id: row.sentences for row in actual.rows[1:]} == {
    i: sentences for i, sentences in kept.items() if sentences
  }
  left_out = actual.left_out
  assert left_out.get(refs_file.NO_SENTENCES, []) == [i for i in kept if not texts[i - 1]]
  assert left_out.get(refs_file.EMPTY_SENTENCES, []) == [
    i for i in kept if texts[i - 1] and not kept[i]
  ]
  assert left_out.get(refs_file.EMPTY_SENTENCE, []) == [
    i for i in kept if kept[i] for _ in range(len(texts[i - 1]) - len(kept[i]))
  ]


def test_the_cleaned_sentence_stands_in_for_an_empty_one_as_typed(tmp_path):
  rows = [ref(1, " \x07"), ref(2, "Cup ")]
  rows[0]["sentences"][0]["sent"] = "left cup"
  actual = read(tmp_path, rows)
  assert [row.sentences for row in actual.rows] == [("left cup",), ("Cup ",)]
  assert actual.left_out == {}


def test_what_is_not_a_number_is_missing(tmp_path):
  path = tmp_path / "refs(unc).json"
  path.write_text(json.dumps([ref(1, "Cup", area=float("nan"), no_target=float("nan"))]))
  (row,) = refs_file.read(str(path), ANY).rows
  assert (row.sentences, row.ann_ids) == (("Cup",), (101,))


def _with_numpy(value):
  if isinstance(value, dict):
    return {key: _with_numpy(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(map(_with_numpy, value))
  return np.int64(value) if type(value) is int else value


def _with_ids(kind):
  def change(value):
    if isinstance(value, dict):
      return {
        key: kind(item) if key.endswith("_id") and item != 3 else change(item)
        for key, item in value.items()
      }
    return [change(item) for item in value] if isinstance(value, list) else value

  return change


def _as_json(refs) -> bytes:
  return json.dumps(refs).encode()


SPELLINGS = {
  "json": _as_json,
  "json of windows": lambda refs: b"\xef\xbb\xbf" + _as_json(refs),
  "json in UTF-16": lambda refs: json.dumps(refs).encode("utf-16"),
  "python 2": lambda refs: pickle.dumps(refs, 2),
  "protocol 0": lambda refs: pickle.dumps(refs, 0),
  "protocol 5": lambda refs: pickle.dumps(refs, 5),
  "tuples and numpy": lambda refs: pickle.dumps(list(_with_numpy(refs)), 5),
  "float ids": lambda refs: _as_json(_with_ids(float)(refs)),
  "text ids": lambda refs: _as_json(_with_ids(str)(refs)),
}


@pytest.mark.parametrize("name", ["refs(unc).p", "refs(unc).json"])
@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_every_spelling_of_a_file_has_the_same_refs(tmp_path, spelling, name):
  rows = [ref(1, "left cup", "Café "), ref(2, "both", category_id=3), ref(3, "dog", split="val")]
  path = tmp_path / name
  path.write_bytes(SPELLINGS[spelling](rows))
  assert refs_file.read(str(path), REFCOCO) == read(tmp_path / "..", rows, REFCOCO)


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({"ann_id": [5, 6]}, (5, 6)),
    ({"ann_id": 5}, (5,)),
    ({"ann_id": "8756_2"}, ("8756_2",)),  # RefClef
    ({"ann_id": [-1], "no_target": True}, ()),  # gRefCOCO
    ({"ann_id": -1}, ()),
    ({"ann_id": [], "no_target": True}, ()),
    ({"ann_id": [5], "no_target": None}, (5,)),
    ({"ann_id": [5], "source": "zero"}, ()),  # Ref-ZOM
    ({"ann_id": [], "source": "zero"}, ()),
    ({"ann_id": [5, 6], "source": "more"}, (5, 6)),
  ],
)
def test_targets_of_every_data_set(tmp_path, fields, expected):
  (row,) = read(tmp_path, [ref(1, "cup", **fields)]).rows
  assert row.ann_ids == expected


def test_sentences_that_do_not_exist_are_refs_without_a_target(tmp_path):
  rows = [ref(0, "cup", "red dog", "mug", "cat"), ref(1, "dog", "cow", ann_id=None), ref(2, "tea")]
  for index, exists in enumerate((True, False, 1, 0)):
    rows[0]["sentences"][index]["exist"] = exists
  for sentence in rows[1]["sentences"]:
    sentence["exist"] = False
  actual = read(tmp_path, rows)
  assert [(row.ref_id, row.ann_ids, row.sentences) for row in actual.rows] == [
    (-1, (), ("red dog", "cat")),
    (0, (100,), ("cup", "mug")),
    (1, (), ("dog", "cow")),
    (2, (102,), ("tea",)),
  ]
  assert actual.divided == [0]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"ann_id": []}, r"ref 1: ann_id is \[\]; it must be distinct annotations"),
    ({"ann_id": [5, "5"]}, r"ann_id is \[5, 5\]; it must be distinct"),
    ({"ann_id": [True]}, r"ann_id is True, not an id"),
    ({"ann_id": [-1], "no_target": False}, r"no_target is False, but ann_id is \[-1\]"),
    (
      {"no_target": False, "sentences": [{"raw": "cup", "exist": False}]},
      r"no_target is False, but `exist` is false for all sentences",
    ),
    ({"image_id": "one"}, r"ref 1: image_id is 'one', not an integer"),
    ({"split": "val(1)"}, r"ref 1: split 'val\(1\)'; it must be a name"),
    ({"split": "all"}, r"ref 1: split 'all'; it must be a name"),
    ({"split": None}, r"ref 1: split None"),
    ({"sentences": {"raw": "cup"}}, r"ref 1: sentences is \{'raw': 'cup'\}, not a list"),
    ({"sentences": ["cup"]}, r"ref 1, sentence 0: expected a dict, got str"),
    ({"sentences": [{"raw": 3}]}, r"ref 1, sentence 0 .*: 3 is not a string"),
    ({"sentences": [{"raw": "cup", "exist": "no"}]}, r"exist is 'no'; expected true or false"),
  ],
)
def test_a_ref_that_may_mean_two_things_is_named(tmp_path, fields, message):
  with pytest.raises(InputError, match=message) as caught:
    read(tmp_path, [ref(1, "cup") | fields])
  assert "\n" not in str(caught.value)


def test_splits_are_those_of_the_file_unless_they_are_published(tmp_path):
  rows = [ref(i, "cup", split=split) for i, split in enumerate(("testC", "testAB", "my_split"))]
  assert [row.split for row in read(tmp_path, rows).rows] == ["testC", "testAB", "my_split"]
  with pytest.raises(InputError, match=r"split 'testC', but refcoco_unc has train, val; .*refer:"):
    read(tmp_path, rows, REFCOCO)
