"""Checks of custom data: every error is reported with its line number."""

import json
import os

import custom_files
import numpy as np
import pytest
from custom_files import SQUARE, line, write_lines, write_photo
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, masks, scan, schema, validate
from input_pipeline.custom.check import CheckLevel
from input_pipeline.custom.schema import LineError, Problem

SIZE = [custom_files.HEIGHT, custom_files.WIDTH]


@pytest.fixture
def folder(tmp_path):
  write_photo(tmp_path / "a.png")
  write_photo(tmp_path / "b.jpg", seed=1)
  return tmp_path


def problems_of(folder, *rows, **options):
  """Returns (line, kind) of every problem in a file."""
  scanned = scan.scan(write_lines(folder / "mine.jsonl", *rows), **options)
  return [(problem.line, problem.kind) for problem in scanned.problems]


def rle(mask):
  runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


INVALID = {
  "invalid JSON": ["{", '["a"]', "NaN", '{"image": "a.png", "image": "b.jpg"}', '{"ref_id": NaN}'],
  "unknown key": [line(sentence="x"), line(target=SQUARE | {"colour": 1})],
  "missing key": [
    {"image": "a.png", "sentences": ["x"]},
    {"sentences": ["x"], "target": None},
    {"image": "a.png", "target": None},
  ],
  "wrong type": [
    line(image=3),
    line(sentences="the square"),
    line(sentences=[3]),
    line(ref_id="1"),
    line(image_id=-1),
    line(ref_id=True),
    line(instances=SQUARE),
    line(instances=[SQUARE | {"score": "high"}]),
    line(instances=[SQUARE | {"category": "cat"}]),
    line(target={"png": 3}),
    line(target={"ann_id": "7"}),
  ],
  "empty expression": [line(sentences=[]), line(sentences=[" \t"]), line(sentences=["x", ""])],
  "invalid split": [line(split="all"), line(split="my split"), line(split=3)],
  "invalid mask": [
    line(target=[[1, 2, 3, 4, 5, 6]]),
    line(target={}),
    line(target=SQUARE | {"png": "m.png"}),
    line(target=SQUARE | {"value": 1}),
    line(instances=[{"ann_ids": [1]}]),
  ],
  "invalid RLE": [
    line(target={"rle": {"size": SIZE}}),
    line(target={"rle": {"size": SIZE, "counts": [599]}}),
    line(target={"rle": {"size": SIZE, "counts": [-1, 601]}}),
    line(target={"rle": {"size": SIZE, "counts": "not run lengths"}}),
  ],
  "invalid polygon": [
    line(target={"polygons": []}),
    line(target={"polygons": [[1, 2, 3, 4]]}),
    line(target={"polygons": [[1, 2, 3, 4, 5, 6, 7]]}),
    line(target={"polygons": [[1, 2, 3, 4, 5, "6"]]}),
  ],
  "polygon outside the image": [line(target={"polygons": [[0, 0, 40, 0, 40, 9]]})],
  "empty mask": [
    line(target={"rle": {"size": SIZE, "counts": [600]}}),
    line(target={"polygons": [[3, 3, 3, 3, 3, 3]]}),
  ],
  "mask is missing": [line(target={"png": "none.png"})],
  "mask has another size": [
    line(target={"png": "small.png"}),
    line(target={"rle": {"size": [20], "counts": [600]}}),
    line(target={"rle": {"size": [30, 20], "counts": [0, 600]}}),
  ],
  "invalid PNG": [line(target={"png": "b.jpg"}), line(target={"png": "a.png"})],
  "unknown annotation": [line(target={"ann_id": 99}), line("b.jpg", target={"ann_id": 7})],
  "image is missing": [line("none.png")],
  "image cannot be read": [line("text.png"), line("empty.png")],
  "path outside the folder": [
    line("../a.png"),
    line("/a.png"),
    line("link/a.png"),
    line(target={"png": "../m.png"}),
  ],
}


@pytest.mark.parametrize(
  ("kind", "row"), [(kind, row) for kind, rows in INVALID.items() for row in rows]
)
def test_an_error_in_a_line_is_reported_with_its_number(folder, kind, row):
  custom_files.write_coco(folder / "coco.json")
  Image.new("1", (5, 5)).save(folder / "small.png")
  (folder / "text.png").write_text("a text")
  (folder / "empty.png").write_bytes(b"")
  os.symlink("/", folder / "link")
  rows = [line(annotations="coco.json"), row, line()]
  assert set(problems_of(folder, *rows)) == {(2, kind)}


def test_every_kind_of_mask_is_valid(folder):
  drawn = np.zeros(SIZE, bool)
  drawn[3:9, 2:20] = True
  Image.fromarray(drawn).save(folder / "bits.png")
  Image.fromarray(drawn.astype(np.uint8) * 3).save(folder / "labels.png")
  custom_files.write_coco(folder / "coco.json")
  targets = [
    None,
    [],
    SQUARE,
    [SQUARE, {"png": "bits.png"}],
    {"rle": rle(drawn)},
    {"rle": {"size": SIZE, "counts": [0, 600]}},
    {"png": "labels.png", "value": 3},
    {"ann_id": 7},
    {"ann_ids": [7, 8]},
  ]
  rows = [line(target=target, sentences=[str(n)]) for n, target in enumerate(targets)]
  instances = [SQUARE | {"score": 0.5, "category": 3}, {"png": "bits.png"}]
  rows += [line("b.jpg", instances=instances, ref_id=100, meta={"any": "thing"}, split="my_test")]
  assert problems_of(folder, line(annotations="coco.json"), *rows) == []


def test_an_unknown_key_is_refused_with_a_suggestion(folder):
  _, problems = schema.parse(4, json.dumps(line(sentance=["x"])))
  assert [str(problem) for problem in problems] == [
    "line 4: unknown key 'sentance'; did you mean 'sentences', such as [\"the red cup\"]?"
  ]


def test_all_problems_of_a_line_are_reported_at_once(folder):
  row = {"sentences": [""], "split": 3, "targets": None}
  kinds = {kind for _, kind in problems_of(folder, row)}
  assert kinds == {"empty expression", "invalid split", "unknown key", "missing key"}
  row = line("none.png", target={"ann_id": 7}, instances=[{"png": "/m.png"}])
  kinds = {kind for _, kind in problems_of(folder, row)}
  assert kinds == {"image is missing", "no COCO file", "path outside the folder"}


def test_what_lines_have_in_common_is_compared(folder):
  rows = [
    line(ref_id=50, image_id=1),
    line(ref_id=50, image_id=2),  # a duplicate ref, and another id of the same image
    line("b.jpg", image_id=1),  # the id of another image
    line(ref_id=3),  # the default of line 3
    line("b.jpg", split="val"),
    line(instances=[SQUARE]),
    line(instances=[]),
  ]
  assert problems_of(folder, *rows) == [
    (2, "duplicate ref id"),
    (2, "image with two ids"),
    (3, "duplicate image id"),
    (4, "duplicate ref id"),
    (5, "image in two splits"),
    (7, "conflicting instances"),
  ]


def test_only_one_coco_file_may_be_named(folder):
  custom_files.write_coco(folder / "one.json")
  custom_files.write_coco(folder / "two.json")
  rows = [
    line(target={"ann_id": 7}),
    line("b.jpg", annotations="one.json"),
    line("b.jpg", annotations="two.json"),
  ]
  assert problems_of(folder, *rows) == [(3, "several COCO files")]
  assert problems_of(folder, rows[0], annotations=str(folder / "two.json")) == []
  kinds = {
    kind for _, kind in problems_of(folder, line(annotations="none.json", target={"ann_id": 7}))
  }
  assert kinds == {"no COCO file"}


def test_processes_find_what_one_finds(folder):
  rows = [line() if n % 7 else line("none.png", sentences=[""]) for n in range(600)]
  assert problems_of(folder, *rows, workers=2) == problems_of(folder, *rows, workers=1) != []


def test_a_truncated_image_is_found_when_it_is_decoded(folder):
  write_photo(folder / "big.jpg", (200, 300))
  data = (folder / "big.jpg").read_bytes()
  (folder / "half.jpg").write_bytes(data[: len(data) // 2])
  row = line("half.jpg")
  assert problems_of(folder, row) == []
  assert problems_of(folder, row, level=CheckLevel.WHOLE) == [(1, "image cannot be read")]


def test_fast_opens_no_image(folder):
  assert problems_of(folder, line("none.png"), level=CheckLevel.FAST) == []
  assert problems_of(folder, line("none.png", target={"ann_id": 7}), level=CheckLevel.FAST) == [
    (1, "no COCO file")
  ]


def test_blank_lines_count_and_a_byte_order_mark_does_no_harm(folder):
  path = folder / "mine.jsonl"
  path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line()).encode() + b"\r\n\r\n{\r\n")
  assert [problem.line for problem in scan.scan(str(path)).problems] == [3]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_lines_is_refused(folder, text):
  (folder / "mine.jsonl").write_text(text)
  with pytest.raises(InputError, match="the file is empty"):
    scan.scan(str(folder / "mine.jsonl"))


def test_masks_are_those_of_pycocotools(folder):
  polygons = [[2.5, 3, 12, 3.7, 9, 13], [10, 2, 25, 2, 25, 18]]
  expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE))).astype(bool)
  drawn = masks.rasterise({"polygons": polygons}, *SIZE)
  assert np.array_equal(drawn, expected)
  assert np.array_equal(masks.rasterise({"rle": rle(expected)}, *SIZE), expected)
  counts = np.diff(np.flatnonzero(np.diff(np.r_[2, expected.T.ravel(), 2])))
  counts = [*([0] if expected[0, 0] else []), *map(int, counts)]
  drawn = masks.rasterise({"rle": {"size": SIZE, "counts": counts}}, *SIZE)
  assert np.array_equal(drawn, expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB"])
def test_a_png_mask_covers_its_nonzero_pixels(tmp_path, mode):
  labels = np.random.default_rng(0).integers(0, 3, SIZE).astype(np.uint8)
  for values in (labels, labels // 2 * 2):
    image = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    if mode == "P":
      image.putpalette([9, 9, 9, 0, 0, 0, 5, 6, 7])
    elif mode in ("1", "RGB"):
      image = Image.fromarray(values > 0).convert(mode)
    image.save(tmp_path / "m.png")
    mask = {"png": str(tmp_path / "m.png")}
    if mode in ("L", "P", "I;16"):
      assert np.array_equal(masks.rasterise(mask | {"value": 2}, *SIZE), values == 2)
    if values is labels and mode in ("L", "P", "I;16"):
      with pytest.raises(
        LineError, match=r"has 3 values .*2 on \d+ pixels.*such as \"value\": [12]"
      ):
        masks.rasterise(mask, *SIZE)
    else:
      assert np.array_equal(masks.rasterise(mask, *SIZE), values > 0)
    with pytest.raises(LineError, match="the image is 30 x 21"):
      masks.rasterise(mask, SIZE[0] + 1, SIZE[1])


def test_many_problems_of_a_kind_are_counted_and_not_all_written_out():
  many = [Problem(n, "image is missing", "image") for n in range(1, 1001)]
  text = list(validate.describe_problems([*many, Problem(3, "invalid split", "split")]))
  assert text[0] == "image is missing (1,000)"
  assert len(text) == 9
  assert "and 995 more, lines 6, 7" in text[6]
  assert len(list(validate.describe_problems(many, everything=True))) == 1001


def test_validate_exits_with_2_if_there_are_errors(folder, capsys):
  path = write_lines(folder / "mine.jsonl", line(), line("none.png"), "{")
  with pytest.raises(SystemExit) as ended:
    command.main(["validate", path])
  printed = capsys.readouterr().out
  assert ended.value.code == 2
  assert "line 2: image:" in printed and "line 3: " in printed
  assert printed.endswith("2 errors in 2 lines\n")


def test_validate_counts_lines_images_and_expressions(folder, capsys):
  rows = [line(sentences=["a", "b"]), line(target=None), line("b.jpg", split="val")]
  command.main(["validate", write_lines(folder / "mine.jsonl", *rows)])
  printed = capsys.readouterr().out.splitlines()
  assert printed[1].split()[:5] == ["train", "1", "2", "3", "1"]
  assert printed[2].split()[:5] == ["val", "1", "1", "1", "0"]
  assert printed[-1].endswith("no errors")


def test_prediction_does_not_need_a_target():
  row = {"image": "a.png", "sentences": ["the square"]}
  assert [problem.kind for problem in schema.parse(1, json.dumps(row))[1]] == ["missing key"]
  annotation, problems = schema.parse(1, json.dumps(row), targets=False)
  assert problems == [] and annotation is not None
  assert (annotation.image, annotation.sentences, annotation.target) == (
    "a.png",
    ("the square",),
    (),
  )
