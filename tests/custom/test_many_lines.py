"""Files of many lines: what they share, against the plain version, in memory that does not grow."""

import functools
import gc
import json
import pathlib
import tracemalloc
from collections.abc import Callable

import plain_lines
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.custom import across_lines, scan
from input_pipeline.custom.check import CheckLevel, LineSummary
from input_pipeline.custom.line_table import LineTable
from input_pipeline.sources import jsonl

_SMALL = st.integers(0, 3)
_HASHES = st.sampled_from(["", "a", "b"])


@st.composite
def _lines(draw) -> list[LineSummary]:
  """Draws lines that collide in every way."""
  numbers = sorted(draw(st.sets(st.integers(1, 40), max_size=12)))
  return [
    LineSummary(
      number=number,
      offset=100 * number,
      image=draw(st.sampled_from(["a.jpg", "b.jpg", "c/é.jpg", "\ud800.jpg"])),
      size=draw(st.sampled_from([None, (3, 4)])),
      split=draw(st.sampled_from(["train", "Valid", "test"])),
      num_expressions=2,
      ref_id=draw(st.none() | st.integers(0, 12)),
      image_id=draw(st.none() | _SMALL),
      area=draw(st.none() | _SMALL),
      instances_hash=draw(_HASHES),
      expression_hashes=tuple(draw(st.lists(st.sampled_from([-(1 << 63), 5, 6]), max_size=3))),
      target_hash=draw(_HASHES),
      coco_images=tuple(draw(st.lists(_SMALL | st.just("x"), unique=True, max_size=2))),
    )
    for number in numbers
  ]


def _table(lines: list[LineSummary]) -> LineTable:
  table = LineTable()
  table.fill(lines)
  return table


@given(_lines())
def test_lines_on_the_disk_are_the_lines(lines):
  table = _table(lines)
  assert list(table) == lines and len(table) == len(lines)
  assert list(table.where("split = ?", "test")) == [row for row in lines if row.split == "test"]
  table.leave_out([line.number for line in lines[::2]])
  assert list(table) == lines[1::2]


@given(_lines())
def test_what_lines_share_is_what_dictionaries_find(lines):
  table = _table(lines)
  _, refs = plain_lines.number_refs(lines)
  assert list(across_lines.check_refs(table)) == refs
  ids, problems = plain_lines.number_images(lines)
  assert sorted(across_lines.number_images(table)) == sorted(problems)
  assert dict(table.query("SELECT image, id FROM images")) == ids
  for check, plain in (
    (across_lines.check_instances, plain_lines.check_instances),
    (across_lines.check_splits, plain_lines.check_splits),
    (across_lines.check_coco_images, plain_lines.check_coco_images),
  ):
    assert list(check(table)) == list(plain(lines))


@given(_lines())
def test_ambiguous_expressions_are_those_that_dictionaries_find(tmp_path_factory, lines):
  texts = {line.number: [f"{line.number} {i}" for i in range(3)] for line in lines}
  path = tmp_path_factory.mktemp("lines") / "mine.jsonl"
  data = bytearray(b" " * 100)
  for line in lines:
    data += b" " * (line.offset - len(data))
    data += json.dumps({"sentences": texts[line.number]}).encode() + b"\n"
  path.write_bytes(bytes(data))
  actual = list(across_lines.check_expressions(str(path), _table(lines)))
  assert actual == list(plain_lines.check_expressions(texts, lines))


def _write(path: pathlib.Path, count: int) -> str:
  with path.open("w") as file:
    for number in range(count):
      row = {
        "image": f"{number % 8}.png",
        "split": "val" if number % 10 == 0 else "train",
        "sentences": [f"the thing number {number}", f"thing {number}"],
        "target": {"polygons": [[1, 1, 9, 1, 9, 9, 1 + number % 7, 9]]},
      }
      file.write(json.dumps(row) + "\n")
  return str(path)


def _peak(work: Callable[[], None]) -> int:
  """Returns the peak of Python's memory while something is done, in bytes."""
  gc.collect()
  tracemalloc.start()
  try:
    work()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


# Python keeps up to 2000 tuples for reuse, and `scan` holds as many lines at first.
_FEW, _MANY = 3000, 9000
_BYTES_PER_LINE = 20


def _check_all(count: int) -> None:
  lines = (
    LineSummary(
      *(n, 100 * n, f"{n % 50}.png", (3, 4), "val" if n % 50 < 5 else "train", 2, None, None, 5),
      *("", (n, -n), f"{n % 7}", ()),
    )
    for n in range(1, count + 1)
  )
  table = LineTable()
  table.fill(lines)
  assert not list(across_lines.check_refs(table)) and not across_lines.number_images(table)
  assert not list(across_lines.check_instances(table))
  assert not list(across_lines.check_splits(table))
  assert not list(across_lines.check_expressions("", table))
  assert len(table) == count


def test_memory_does_not_grow_with_the_number_of_lines():
  few, many = (_peak(functools.partial(_check_all, count)) for count in (_FEW, _MANY))
  assert (many - few) / (_MANY - _FEW) < _BYTES_PER_LINE


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
  peaks = []
  for count in (_FEW, _MANY):
    path = _write(tmp_path / f"{count}.jsonl", count)
    check = functools.partial(scan.scan, path, level=CheckLevel.FAST, workers=1)
    peaks.append(_peak(check))
  assert (peaks[1] - peaks[0]) / (_MANY - _FEW) < _BYTES_PER_LINE


def test_the_reader_of_many_lines_has_every_ref_once(tmp_path):
  for number in range(8):
    Image.effect_noise((32, 24), 90.0).save(tmp_path / f"{number}.png")
  reader = jsonl.JsonlReader(_write(tmp_path / "mine.jsonl", 400), "mine", workers=1)
  for split, numbers in (
    ("train", {n for n in range(400) if n % 10}),
    ("val", {*range(0, 400, 10)}),
  ):
    images = [reader.annotated_image(split, i, "") for i in reader.splits[split]]
    sentences = [ref["sentences"] for image in images for ref in image.refs]
    assert sorted(sentences) == sorted([f"the thing number {n}", f"thing {n}"] for n in numbers)
    assert {image.name for image in images} == {f"{n % 8}.png" for n in numbers}
  assert reader.no_targets == {"train": 0, "val": 0}
  assert not reader.has_instances and not reader.has_ids
