"""Converters of annotation tools' exports; the layouts follow the tools' documentation."""

import json

import custom_files
import damaged_json
import numpy as np
import pytest
from custom_files import HEIGHT, WIDTH, write_photo

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, masks, scan, schema
from input_pipeline.custom.converters import collect, label_studio_shapes

SQUARE = custom_files.SQUARE["polygons"]
TRIANGLE = [[15, 3, 25, 3, 25, 13]]


def coco(*annotations, file_name="a.png", **fields):
  """Returns a COCO file; annotations are numbered from 1."""
  return {
    "images": [{"id": 4, "file_name": file_name, "height": HEIGHT, "width": WIDTH}],
    "annotations": [
      {"id": n, "image_id": 4, "category_id": 1, "segmentation": SQUARE, "iscrowd": 0} | row
      for n, row in enumerate(annotations, 1)
    ],
    "categories": [{"id": 1, "name": "mug", "supercategory": ""}],
    **fields,
  }


def convert(folder, export_format, content, *options):
  """Converts an export and returns the lines."""
  (folder / "export.json").write_text(json.dumps(content))
  out = folder / "mine.jsonl"
  command.main(
    [
      "convert",
      "--from",
      export_format,
      str(folder / "export.json"),
      "--out",
      str(out),
      "--overwrite",
      *options,
    ]
  )
  return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path):
  write_photo(tmp_path / "a.png")
  return tmp_path


@pytest.mark.parametrize(
  ("row", "sentences"),
  [
    ({"caption": "the cup"}, ["the cup"]),
    ({"sentences": ["One", "two"]}, ["One", "two"]),
    ({"sentences": [{"raw": "Raw!", "sent": "raw"}, {"sent": "two"}]}, ["Raw!", "two"]),
    ({"attributes": {"referring expression": "the cup"}}, ["the cup"]),
    ({"captions": ["one\n two "]}, ["one", "two"]),
    ({"caption": "", "attributes": {"phrase": "the cup"}}, ["the cup"]),
  ],
)
def test_expressions_are_found_where_people_put_them(folder, row, sentences):
  (line,) = convert(folder, "coco", coco(row))
  assert line == {
    "image": "a.png",
    "split": "train",
    "image_id": 4,
    "sentences": sentences,
    "target": {"polygons": SQUARE},
  }
  assert scan.scan(str(folder / "mine.jsonl")).problems == []


def test_a_custom_field_can_be_named(folder, capsys):
  content = coco({"label_text": "the cup|a mug"}, {"caption": "not this"})
  (line,) = convert(folder, "coco", content, "--text", "label_text", "--separator", "|")
  assert line["sentences"] == ["the cup", "a mug"]
  assert "skipped: region without an expression (1)" in capsys.readouterr().out
  schema = convert(folder, "coco", content, "--text", "category")
  assert [line["sentences"] for line in schema] == [["mug"]]
  assert len(schema[0]["target"]) == 2
  with pytest.raises(InputError, match=r"annotations are caption, .*label_text.*--text category"):
    convert(folder, "coco", content, "--text", "none")


def test_regions_with_the_same_expression_are_one_target(folder):
  content = coco(
    {"sentences": ["The cups", "left"]},
    {"sentences": ["the  cups"], "segmentation": TRIANGLE},
  )
  both, left = convert(folder, "coco", content)
  assert both["sentences"] == ["The cups"]
  assert both["target"] == [{"polygons": SQUARE}, {"polygons": TRIANGLE}]
  assert (left["sentences"], left["target"]) == (["left"], {"polygons": SQUARE})


def test_what_cvat_exports(folder, capsys):
  """CVAT's "COCO 1.0" has attributes, empty segmentations of boxes, and RLE of masks."""
  (folder / "images" / "default").mkdir(parents=True)
  write_photo(folder / "images" / "default" / "b.png")
  no = {"occluded": False, "rotation": 0.0}
  mask = np.zeros((HEIGHT, WIDTH), np.uint8)
  mask[2:6, 3:9] = 1
  runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.T.ravel(), 2]))).tolist()
  content = coco(
    {"attributes": no | {"expression": "the cup"}},
    {"segmentation": [], "bbox": [1.0, 2.0, 5.0, 6.0], "attributes": no | {"expression": "box"}},
    {
      "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs},
      "iscrowd": 1,
      "attributes": no | {"expression": "brushed"},
    },
    {"attributes": no},
    file_name="b.png",
    licenses=[{"name": "", "id": 0, "url": ""}],
    info={"contributor": "", "year": "", "version": ""},
  )
  cup, brushed = convert(folder, "cvat", content, "--images", str(folder / "images"))
  assert cup["image"] == brushed["image"] == "images/default/b.png"
  assert (cup["sentences"], cup["target"]) == (["the cup"], {"polygons": SQUARE})
  assert np.array_equal(masks.rasterise(brushed["target"], HEIGHT, WIDTH), mask.astype(bool))
  printed = capsys.readouterr().out
  assert "box without a mask (use --boxes to convert it) (1: annotation 2)" in printed
  assert "region without an expression (1)" in printed
  assert scan.scan(str(folder / "mine.jsonl")).problems == []
  _, box, _ = convert(
    folder, "cvat", content, "--images", str(folder / "images"), "--boxes", "--with_instances"
  )
  drawn = masks.rasterise(box["target"], HEIGHT, WIDTH)
  assert drawn.sum() == 30 and drawn[2:8, 1:6].all()
  assert len(box["instances"]) == 4  # CVAT writes iscrowd: 1 for run lengths
  assert scan.scan(str(folder / "mine.jsonl")).problems == []


def region(name, kind, value, **fields):
  """Returns a row of `result` in Label Studio's JSON."""
  return {
    "id": name,
    "type": kind,
    "from_name": kind,
    "to_name": "image",
    "original_width": WIDTH,
    "original_height": HEIGHT,
    "image_rotation": 0,
    "value": value,
    **fields,
  }


def text(name, *texts, **fields):
  return region(name, "textarea", {"text": list(texts)}, **fields)


def percent(x, y):
  return [100 * x / WIDTH, 100 * y / HEIGHT]


def task(*rows, image="/data/upload/1/0123abcd-a.png", **fields):
  annotation = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": list(rows)}
  return {"id": 1, "data": {"image": image}, "annotations": [annotation]} | fields


POLYGON = {
  "points": [percent(2, 3), percent(12, 3), percent(12, 13), percent(2, 13)],
  "closed": True,
  "polygonlabels": ["Cup"],
}


def drawn(line):
  parts = line["target"] if isinstance(line["target"], list) else [line["target"]]
  return np.logical_or.reduce([masks.rasterise(part, HEIGHT, WIDTH) for part in parts])


def test_what_label_studio_exports_as_json(folder, capsys):
  content = [
    task(
      region("r1", "polygonlabels", POLYGON),
      text("r1", "The cup", "left cup"),
      region(
        "r2",
        "rectanglelabels",
        dict(zip("xy", percent(15, 2), strict=True))
        | dict(zip(("width", "height"), percent(10, 5), strict=True))
        | {"rotation": 0, "rectanglelabels": ["Cup"]},
      ),
      text("r2", "box"),
      text("free", "nothing here", from_name="absent"),
      region("r4", "polygonlabels", POLYGON, meta={"text": ["a note"]}),
      region("r5", "keypointlabels", {"x": 1, "y": 2}),
    )
  ]
  (cup,) = convert(folder, "label-studio", content)
  assert cup["sentences"] == ["The cup", "left cup"]
  assert cup["image"] == "a.png"
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[3:13, 2:12] = True
  assert np.array_equal(drawn(cup), expected)
  printed = capsys.readouterr().out
  for message in (
    "skipped: box without a mask (use --boxes to convert it) (1: task 1, region r2)",
    "skipped: text without a region (1: task 1, region free)",
    "skipped: keypointlabels not supported (1: task 1, region r5)",
    "note: text under meta not read; --text meta reads it (1: task 1, region r4)",
  ):
    assert message in printed
  (note,) = convert(folder, "label-studio", content, "--text", "meta")
  assert note["sentences"] == ["a note"]
  schema = convert(folder, "label-studio", content, "--boxes", "--no_target", "absent")
  by_text = {line["sentences"][0]: line for line in schema}
  assert by_text["nothing here"]["target"] is None
  expected[:] = False
  expected[2:7, 15:25] = True
  assert np.array_equal(drawn(by_text["box"]), expected)
  assert scan.scan(str(folder / "mine.jsonl")).problems == []


def test_label_studio_rotates_a_box_around_its_corner(folder):
  corner, size = percent(20, 5), percent(10, 6)
  value = {"x": corner[0], "y": corner[1], "width": size[0], "height": size[1], "rotation": 90}
  content = [task(region("r", "rectangle", value), text("r", "box"))]
  (line,) = convert(folder, "label-studio", content, "--boxes")
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[5:15, 14:20] = True  # a quarter turn clockwise: it extends down and to the left
  assert np.array_equal(drawn(line), expected)


def test_an_ellipse_of_label_studio_has_its_area(folder):
  centre, radii = percent(15, 10), percent(9, 6)
  value = {"x": centre[0], "y": centre[1], "radiusX": radii[0], "radiusY": radii[1]}
  content = [task(region("r", "ellipselabels", value), text("r", "disc"))]
  (line,) = convert(folder, "label-studio", content)
  rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  expected = ((columns - 15) / 9) ** 2 + ((rows - 10) / 6) ** 2 <= 1
  assert (drawn(line) ^ expected).sum() < 0.06 * expected.sum()


def pack(values, sizes=(3, 4, 8, 16)):
  """Encodes runs as rle-pack does, with bits as text."""
  bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
  at = 0
  while at < len(values):
    end = at
    while end < len(values) and values[end] == values[at] and end - at < 256:
      end += 1
    which = next(n for n, size in enumerate(sizes) if end - at <= 2**size)
    bits += f"1{which:02b}{end - at - 1:0{sizes[which]}b}{values[at]:08b}"
    at = end
  bits += "0" * (-len(bits) % 8)
  return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def test_a_label_studio_brush_covers_its_opaque_pixels(folder):
  painted = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
  values = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
  values[painted] = (200, 10, 10, 255)
  value = {"format": "rle", "rle": pack(values.ravel()), "brushlabels": ["Cup"]}
  (line,) = convert(
    folder, "label-studio", [task(region("r", "brushlabels", value), text("r", "x"))]
  )
  assert np.array_equal(drawn(line), painted)


def test_a_literal_run_is_read_value_by_value():
  values = np.arange(4 * 4) % 7
  bits = f"{16:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
  bits += f"0{1:02b}{15:04b}" + "".join(f"{value:08b}" for value in values)
  bits += "0" * (-len(bits) % 8)
  data = [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]
  expected = values.reshape(2, 2, 4)[..., 3] != 0
  assert np.array_equal(label_studio_shapes.decode_brush(data, 2, 2), expected)
  for damaged, message in ((data[:-3], "truncated"), (data[4:], "values for")):
    with pytest.raises(ValueError, match=message):
      label_studio_shapes.decode_brush(damaged, 2, 2)


def test_invalid_regions_are_skipped_and_reported(folder, capsys):
  content = [
    task(
      region("r0", "polygonlabels", POLYGON),
      text("r0", "good"),
      region("r1", "polygonlabels", POLYGON, image_rotation=90),
      text("r1", "turned"),
      region("r2", "brushlabels", {"format": "rle", "rle": [1, 2]}),
      text("r2", "broken"),
      region("r3", "polygonlabels", {}),
    )
  ]
  (line,) = convert(folder, "label-studio", content)
  assert line["sentences"] == ["good"]
  printed = capsys.readouterr().out
  assert "rotated by 90 degrees" in printed and "truncated" in printed and "'points'" in printed


def test_one_of_several_annotations_of_a_task_counts(folder):
  exported = task(region("r", "polygonlabels", POLYGON), text("r", "first"))
  true = task(region("r", "polygonlabels", POLYGON), text("r", "true"))["annotations"][0]
  gone = task(region("r", "polygonlabels", POLYGON), text("r", "gone"))["annotations"][0]
  exported["annotations"] = [gone | {"was_cancelled": True}, *exported["annotations"]]
  assert convert(folder, "label-studio", [exported])[0]["sentences"] == ["first"]
  exported["annotations"].append(true | {"ground_truth": True})
  assert convert(folder, "label-studio", [exported])[0]["sentences"] == ["true"]


@pytest.mark.parametrize(
  "image",
  [
    "/data/upload/1/0123abcd-a.png",
    "/data/local-files/?d=photos/a.png",
    "s3://bucket/photos/a.png",
    "https://example.com/photos/a.png?size=big",
    "a.png",
  ],
)
def test_photos_are_found_however_label_studio_names_them(folder, image):
  content = [task(region("r", "polygonlabels", POLYGON), text("r", "x"), image=image)]
  (line,) = convert(folder, "label-studio", content)
  assert line["image"] == "a.png"


def test_label_studio_s_coco_has_no_text_and_says_so(folder):
  """`result.json` has paths as on the exporting machine, and no attributes."""
  content = coco({"bbox": [2, 3, 10, 10], "ignore": 0}, file_name="images\\0123abcd-a.png")
  with pytest.raises(InputError, match=r"does not contain the texts .* export as JSON"):
    convert(folder, "label-studio", content)
  (line,) = convert(folder, "label-studio", content, "--text", "category")
  assert (line["image"], line["sentences"]) == ("a.png", ["mug"])


@pytest.mark.parametrize(
  ("export_format", "content", "message"),
  [
    ("coco", [], "not a COCO file"),
    ("coco", {"images": {}, "annotations": []}, "not a COCO file"),
    ("coco", {"images": [], "annotations": ["x"]}, "is not an object"),
    ("cvat", coco({}), "no annotation with a mask has an expression"),
    ("coco", coco(), "`annotations` is empty"),
    ("coco", coco({"segmentation": [], "bbox": [1, 2, 3, 4]}), "left; skipped: box without a mask"),
    ("label-studio", {"a": 1}, "neither Label Studio's JSON"),
    ("label-studio", [{"image": "a.png", "label": []}], "JSON-MIN"),
    ("label-studio", [task(region("r", "polygonlabels", POLYGON))], "no region has a text"),
  ],
)
def test_an_invalid_export_is_refused_and_writes_nothing(folder, export_format, content, message):
  with pytest.raises(InputError, match=message):
    convert(folder, export_format, content)
  assert not (folder / "mine.jsonl").exists()


def test_splits_are_shares_of_images_and_stay(folder):
  names = [f"{n}.png" for n in range(4000)]
  shares = collect.parse_splits(["val=0.1", "test=0.2"])
  splits = [collect.split_of(name, shares) for name in names]
  assert splits == [collect.split_of(name, shares) for name in names]
  counts = {split: splits.count(split) / len(names) for split in ("train", "val", "test")}
  assert counts == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.02)
  assert collect.split_of("a", collect.parse_splits(["val"])) == "val"
  for texts in (["val=2"], ["val=0.7", "test=0.7"], ["=0.1"], ["val=x"]):
    with pytest.raises(InputError, match="--split"):
      collect.parse_splits(texts)


_LABEL_STUDIO = [
  task(
    region("r1", "polygonlabels", POLYGON, meta={"text": ["a note"]}),
    text("r1", "the cup"),
    region("r2", "rectangle", {"x": 1, "y": 2, "width": 10, "height": 20, "rotation": 9}),
    text("r2", "box"),
    region("r3", "ellipse", {"x": 9, "y": 9, "radiusX": 3, "radiusY": 4, "rotation": 0}),
    region("r4", "brush", {"format": "rle", "rle": pack([0, 0, 0, 255] * (WIDTH * HEIGHT))}),
    text("free", "nothing here", from_name="absent"),
  )
]
_COCO = coco(
  {"sentences": [{"raw": "The cup"}, "cup"], "attributes": {"expression": "x"}},
  {"segmentation": [], "bbox": [1.0, 2.0, 5.0, 6.0], "caption": "box"},
  {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "abc"}, "iscrowd": 1, "caption": "crowd"},
)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  ("export_format", "content", "options"),
  [
    ("coco", _COCO, ["--with_instances", "--boxes"]),
    ("coco", _COCO, ["--text", "category"]),
    ("label-studio", _LABEL_STUDIO, ["--boxes", "--no_target", "absent"]),
    ("label-studio", _LABEL_STUDIO, ["--text", "category"]),
  ],
)
def test_an_export_with_anything_in_any_place_is_read_or_refused(
  folder, capsys, export_format, content, options, every
):
  broken = []
  for damage, changed in damaged_json.variants(content, every):
    try:
      for number, line in enumerate(convert(folder, export_format, changed, *options), 1):
        schema.parse(number, json.dumps(line).encode())
    except InputError:
      pass
    except Exception as error:
      broken.append(f"{damage}: {error!r}")
    capsys.readouterr()
  assert broken == []
