"""Copies of images in two splits are leakage, however they are named."""

import io
import shutil

import numpy as np
import pytest
from custom_files import line, write_lines, write_photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, duplicates, scan
from input_pipeline.custom.check import CheckLevel
from input_pipeline.prepare import command as prepare

ROBOFLOW = "{}_jpg.rf.{:032x}.jpg"


def _warnings(path: str, **options) -> list[tuple[str, str]]:
  """Returns kind and message of the warnings of leakage."""
  scanned = scan.scan(path, **options)
  assert scanned.errors() == []
  return [(problem.kind, problem.message) for problem in scanned.leakage()]


def test_the_same_file_under_two_names_is_found(tmp_path):
  write_photo(tmp_path / "a.png", seed=1)
  write_photo(tmp_path / "b.png", seed=2)
  shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
  path = write_lines(
    tmp_path / "x.jsonl",
    line("a.png"),
    line("b.png", split="val"),
    line("c.png", split="val"),
    line("c.png", split="val", sentences=["another"]),
  )
  ((kind, message),) = _warnings(path)
  assert kind == "same image in two splits"
  assert message.startswith("c.png (val) is the same file as a.png (train, line 1): leakage; keep")


def test_a_copy_of_other_size_and_format_is_found(tmp_path):
  pixels = write_photo(tmp_path / "a.png", (12, 16), seed=1)
  smooth = Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)
  smooth.save(tmp_path / "a.png")
  smooth.resize((80, 60)).save(tmp_path / "b.jpg", quality=60)
  write_photo(tmp_path / "c.png", (120, 160), seed=2)
  path = write_lines(
    tmp_path / "x.jsonl", line("b.jpg", split="testA"), line("a.png"), line("c.png", split="val")
  )
  ((kind, message),) = _warnings(path)
  assert kind == "similar images in two splits"
  assert message.startswith("b.jpg (testA) looks the same as a.png (train, line 2)")


@pytest.mark.parametrize(
  ("names", "found"),
  [
    ((ROBOFLOW.format("cup", 1), ROBOFLOW.format("cup", 2)), True),
    (("train/" + ROBOFLOW.format("cup", 1), "valid/" + ROBOFLOW.format("cup", 2)), True),
    (("cup.jpg", ROBOFLOW.format("cup", 2)), True),
    ((ROBOFLOW.format("cup", 1), "cup_jpg.rf.Ab3dEf6hIj9kLm2nOp5q.jpg"), True),
    ((ROBOFLOW.format("cup", 1), ROBOFLOW.format("cup2", 2)), False),
    (("clip_a/frame_0.jpg", "clip_b/frame_0.jpg"), False),
    (("cup.rf.jpg", "cup.rf.png"), False),
  ],
)
def test_what_roboflow_made_of_one_photo_is_found_by_name(tmp_path, names, found):
  for seed, name in enumerate(names):
    write_photo(tmp_path / name, seed=seed)
  path = write_lines(tmp_path / "x.jsonl", line(names[0]), line(names[1], split="val"))
  kinds = [kind for kind, _ in _warnings(path)]
  assert kinds == ["copies of an image in two splits"] * found


def test_copies_within_a_split_are_no_leakage(tmp_path):
  write_photo(tmp_path / "a.png", seed=1)
  shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
  write_photo(tmp_path / "c.png", seed=2)
  rows = [line("a.png"), line("b.png"), line("c.png", split="val")]
  assert _warnings(write_lines(tmp_path / "x.jsonl", *rows)) == []
  assert _warnings(write_lines(tmp_path / "y.jsonl", *rows[:2])) == []


def test_a_path_in_two_splits_is_told_once(tmp_path):
  write_photo(tmp_path / "a.png")
  path = write_lines(tmp_path / "x.jsonl", line("a.png"), line("a.png", split="val"))
  assert [kind for kind, _ in _warnings(path)] == [duplicates.SAME_PATH]


def test_fast_opens_no_image(tmp_path):
  write_photo(tmp_path / "a.png")
  shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
  path = write_lines(tmp_path / "x.jsonl", line("a.png"), line("b.png", split="val"))
  assert len(_warnings(path)) == 1
  assert _warnings(path, level=CheckLevel.FAST) == []


@given(
  st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["train", "val", "test"])), max_size=8)
)
def test_every_copy_in_a_later_split_is_found_and_nothing_else(tmp_path_factory, rows):
  folder = tmp_path_factory.mktemp("copies")
  for number, (photo, _) in enumerate(rows):
    write_photo(folder / f"{number}.png", seed=photo)
  write_photo(folder / "own.png", seed=99)
  lines = [line(f"{number}.png", split=split) for number, (_, split) in enumerate(rows)]
  path = write_lines(folder / "x.jsonl", line("own.png"), *lines)
  order = ["train", "val", "test"]
  expected = {
    number
    for number, (photo, split) in enumerate(rows)
    if any(photo == other and order.index(at) < order.index(split) for other, at in rows)
  }
  found = {int(message.partition(".")[0]) for _, message in _warnings(path)}
  assert found == expected


def test_validate_and_prepare_say_it_with_the_count(tmp_path, capsys):
  for number in range(3):
    write_photo(tmp_path / f"{number}.png", seed=number)
    shutil.copy(tmp_path / f"{number}.png", tmp_path / f"{number}_copy.png")
  lines = [line(f"{number}.png") for number in range(3)]
  lines += [line(f"{number}_copy.png", split="val") for number in range(3)]
  path = write_lines(tmp_path / "mine.jsonl", *lines)
  command.main(["validate", path])
  assert "warning: same image in two splits (3)" in capsys.readouterr().out.splitlines()
  prepare.main(["--dataset", f"jsonl:{path}", "--data_dir", str(tmp_path / "data")])
  (warning,) = [x for x in capsys.readouterr().err.splitlines() if "copy" in x]
  assert "3 images with a copy in another split; the first is: line 4: 0_copy.png (val)" in warning


def test_a_damaged_photo_is_only_reported_as_damaged(tmp_path):
  write_photo(tmp_path / "a.png")
  data = (tmp_path / "a.png").read_bytes()
  (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
  file = io.BytesIO()
  Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file, "PNG")
  (tmp_path / "c.png").write_bytes(file.getvalue())
  path = write_lines(
    tmp_path / "x.jsonl",
    line("a.png"),
    line("b.png", split="val"),
    line("c.png", split="val"),
    line("gone.png", split="val"),
  )
  try:
    scanned = scan.scan(path, level=CheckLevel.WHOLE)
  except InputError as error:
    raise AssertionError from error
  assert {problem.line for problem in scanned.errors()} == {2, 4}
  assert scanned.leakage() == []
