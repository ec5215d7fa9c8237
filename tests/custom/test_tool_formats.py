"""What annotation tools write in their own formats comes back as it was drawn."""

import base64
import io
import json
import math
import pathlib
import zipfile
from typing import Any

import hypothesis
import numpy as np
import pytest
import tool_exports
from custom_files import write_photo
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from tool_exports import TOOLS, Drawn, Photo

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, convert
from input_pipeline.custom.converters import cvat, export_files, geometry, recognise
from input_pipeline.custom.converters.collect import Export, Options, Region

HEIGHT, WIDTH = 48, 64
SQUARE = [(5.0, 6.0), (25.0, 6.0), (25.0, 26.0), (5.0, 26.0)]
TRIANGLE = [(30.0, 10.0), (60.0, 10.0), (45.0, 40.0)]


def pixels_of(polygon: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
  """Returns the pixels of a polygon by pycocotools."""
  flat = [[float(value) for point in polygon for value in point]]
  runs: Any = coco_mask.frPyObjects(flat, height, width)
  return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def decode(mask: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
  """Returns the pixels of a region's mask by pycocotools."""
  if "rle" in mask:
    assert mask["rle"]["size"] == [height, width]
    return coco_mask.decode(mask["rle"]).astype(bool)
  runs: Any = coco_mask.frPyObjects(mask["polygons"], height, width)
  return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def read(format_name: str, path: pathlib.Path, **options: Any) -> Export:
  """Reads an export with category names as expressions where there is nothing else."""
  options = {"folder": str(path if path.is_dir() else path.parent)} | options
  if format_name == "yolo":
    options = {"text_keys": ("category",)} | options
  return convert.READERS[format_name](str(path), Options(**options))


def by_text(export: Export) -> dict[str, Region]:
  """Returns the regions by their only expression."""
  return {text: region for region in export.regions for text in region.texts}


def polygons_inside(height: int, width: int) -> st.SearchStrategy[Any]:
  """Returns polygons with corners on whole pixels, which shares of sides keep."""
  # Coordinates of at most 1 alone would pass for shares.
  points = st.tuples(st.integers(0, width), st.integers(2, height))
  polygons = st.lists(points, min_size=3, max_size=7, unique=True)
  return polygons.filter(lambda polygon: pixels_of(polygon, height, width).any())


texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=12)


@st.composite
def photo_lists(draw: st.DrawFn) -> list[Photo]:
  """Draws photos in folders, some with the same file name, and objects with different texts."""
  sizes = st.tuples(st.integers(8, 90), st.integers(8, 90))
  photos = []
  names = draw(st.lists(st.sampled_from(("a.png", "b.png")), min_size=1, max_size=3))
  for number, name in enumerate(names):
    height, width = draw(sizes)
    objects = [
      Drawn(draw(polygons_inside(height, width)), f"{number} {k} {draw(texts)}", draw(texts))
      for k in range(draw(st.integers(1, 3)))
    ]
    photos.append(Photo(f"clip_{number}/{name}", height, width, objects))
  return photos


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(photos=photo_lists())
def test_what_comes_back_is_what_was_drawn(
  tmp_path_factory: pytest.TempPathFactory, tool: tool_exports.Tool, photos: list[Photo]
):
  folder = tmp_path_factory.mktemp("export")
  tool.write(folder, photos)
  for photo in photos:
    write_photo(tool_exports.photo_file(folder, tool, photo), (photo.height, photo.width))
  regions = by_text(read(tool.format, folder, folder=str(folder)))
  drawn = {row.text: (photo, row) for photo in photos for row in photo.objects}
  assert set(regions) == set(drawn)
  for text, (photo, row) in drawn.items():
    region = regions[text]
    expected = pixels_of(row.polygon, photo.height, photo.width)
    assert np.array_equal(decode(region.mask, photo.height, photo.width), expected)
    assert photo.name.split("/")[0] in region.image.split("/")
    if tool.has_size:
      assert region.size == (photo.height, photo.width)


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_a_zip_is_read_as_its_folder(tmp_path: pathlib.Path, tool: tool_exports.Tool):
  photo = Photo("clip/a.png", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])
  tool.write(tmp_path / "export", [photo])
  write_photo(tool_exports.photo_file(tmp_path, tool, photo), (HEIGHT, WIDTH))
  tool_exports.pack(tmp_path / "export", tmp_path / "export.zip")
  folder = read(tool.format, tmp_path / "export", folder=str(tmp_path))
  assert read(tool.format, tmp_path / "export.zip", folder=str(tmp_path)) == folder
  assert len(folder.regions) == 1


@pytest.mark.parametrize("packed", (False, True), ids=("folder", "zip"))
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_a_format_is_recognised_and_named(
  tmp_path: pathlib.Path, tool: tool_exports.Tool, packed: bool
):
  export = tmp_path / "export"
  tool.write(export, [Photo("a.png", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])])
  if packed:
    tool_exports.pack(export, tmp_path / "export.zip")
    export = tmp_path / "export.zip"
  assert recognise.recognise(str(export)) == tool.format
  wrong = "labelme" if tool.format == "cvat" else "coco"
  if tool.format == "labelme":
    wrong = "via"
  arguments = ["convert", "--from", wrong, str(export), "--out", str(tmp_path / "out.jsonl")]
  with pytest.raises(InputError, match=f"use --from {tool.format}$"):
    command.main(arguments)
  assert not (tmp_path / "out.jsonl").exists()


def test_unknown_files_are_not_recognised(tmp_path: pathlib.Path):
  for name, text in {
    "a.json": "{}",
    "b.json": "[]",
    "c.json": "not JSON",
    "d.xml": "<other/>",
    "e.csv": "a,b\n1,2\n",
    "f.txt": "0 0.5 0.5\n",
    "g.txt": "images/train/a.jpg\n",
  }.items():
    (tmp_path / name).write_text(text)
    assert recognise.recognise(str(tmp_path / name)) is None
  assert recognise.recognise(str(tmp_path)) is None


def test_a_single_file_of_labels_is_recognised(tmp_path: pathlib.Path):
  for row in ("0 0.5 0.5 0.25 1", "12 0 1 .5 1e-05 0.123456 0.2", " 3 0.1 0.2 0.3 0.4\r\n0 x"):
    (tmp_path / "a.txt").write_text(row)
    assert recognise.recognise(str(tmp_path / "a.txt")) == "yolo"


@pytest.mark.parametrize(
  ("name", "images"),
  (
    ("yolo", ("images/train/a.png", "images/valid/a.png")),
    ("supervisely", ("train/img/a.png", "valid/img/a.png")),
  ),
)
def test_splits_of_an_export_are_kept(tmp_path: pathlib.Path, name: str, images: tuple[str, str]):
  objects = [Drawn(SQUARE, "the square")]
  photos = [Photo(f"{split}/a.png", HEIGHT, WIDTH, objects) for split in ("train", "valid")]
  TOOLS[name].write(tmp_path, photos)
  for photo in photos:
    write_photo(tool_exports.photo_file(tmp_path, TOOLS[name], photo), (HEIGHT, WIDTH))
  found = [(region.image, region.split) for region in read(name, tmp_path).regions]
  assert found == list(zip(images, ("train", "val"), strict=True))


def test_cvat_subsets_are_splits(tmp_path: pathlib.Path):
  shape = cvat_shape("polygon", "the cup", points="5,5;25,5;25,25")
  (tmp_path / "a.xml").write_text(
    f'<annotations><image name="a.png" subset="Validation" width="64" height="48">{shape}</image>'
    f'<image name="b.png" width="64" height="48">{shape}</image></annotations>'
  )
  assert [r.split for r in read("cvat", tmp_path / "a.xml").regions] == ["val", None]


def labelme_regions(
  folder: pathlib.Path, shapes: list[dict[str, Any]], fields: Any = None, **options: Any
) -> Export:
  """Reads a file of LabelMe with these shapes."""
  photo = Photo("a.png", HEIGHT, WIDTH, [])
  content = tool_exports.labelme_photo(photo, shapes, **(fields or {}))
  tool_exports.write_json(folder / "a.json", content)
  return read("labelme", folder / "a.json", **options)


def disc(cx: float, cy: float, a: float, b: float, degrees: float = 0) -> np.ndarray:
  """Returns the pixels whose centres are in an ellipse that is turned clockwise."""
  y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  t = math.radians(degrees)
  u = (x - cx) * math.cos(t) + (y - cy) * math.sin(t)
  v = (y - cy) * math.cos(t) - (x - cx) * math.sin(t)
  return (u / a) ** 2 + (v / b) ** 2 <= 1


def overlap(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the intersection over union."""
  return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("centre", ((30, 20), (3, 4), (60, 45)), ids=("inside", "corner", "end"))
def test_labelme_circle_is_clipped_at_the_border(tmp_path: pathlib.Path, centre: tuple[int, int]):
  x, y = centre
  points = [(x, y), (x + 8, y + 6)]
  shape = tool_exports.labelme_shape(points, "the ball", shape_type="circle")
  mask = labelme_regions(tmp_path, [shape]).regions[0].mask
  assert mask and min(mask["polygons"][0]) >= 0
  assert overlap(decode(mask), disc(x, y, 10, 10)) > 0.95


def test_labelme_rectangle_needs_boxes(tmp_path: pathlib.Path):
  corners = [(25, 26), (5, 6)]
  turned = [(30, 10), (40, 20), (30, 30), (20, 20)]
  shapes = [
    tool_exports.labelme_shape(corners, "two corners", shape_type="rectangle"),
    tool_exports.labelme_shape(SQUARE, "four corners", shape_type="rectangle"),
    tool_exports.labelme_shape(turned, "turned", shape_type="rotation"),
  ]
  with pytest.raises(InputError, match=r"box without a mask \(use --boxes to convert it\) \(3\)"):
    labelme_regions(tmp_path, shapes)
  regions = by_text(labelme_regions(tmp_path, shapes, boxes=True))
  assert np.array_equal(decode(regions["two corners"].mask), pixels_of(SQUARE))
  assert np.array_equal(decode(regions["four corners"].mask), pixels_of(SQUARE))
  assert np.array_equal(decode(regions["turned"].mask), pixels_of(turned))


def labelme_mask(mask: np.ndarray, left: int, top: int, text: str) -> dict[str, Any]:
  """Returns a bitmap of LabelMe, whose corners are both inside."""
  height, width = mask.shape
  return tool_exports.labelme_shape(
    [(left, top), (left + width - 1, top + height - 1)],
    text,
    shape_type="mask",
    mask=base64.b64encode(tool_exports.png(mask)).decode(),
  )


def test_labelme_mask_is_the_same_pixels(tmp_path: pathlib.Path):
  part = np.random.default_rng(0).random((11, 7)) > 0.5
  export = labelme_regions(tmp_path, [labelme_mask(part, 57, 37, "the dots")])
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[37:48, 57:64] = part
  assert np.array_equal(decode(export.regions[0].mask), expected)


def test_labelme_mask_of_another_size_is_left_out(tmp_path: pathlib.Path):
  part = np.ones((11, 7), bool)
  good = tool_exports.labelme_shape(SQUARE, "the square")
  moved = labelme_mask(part, 58, 37, "leaves the photo")
  wrong = labelme_mask(part, 5, 5, "other corners") | {"points": [[5, 5], [12, 15]]}
  export = labelme_regions(tmp_path, [good, moved, wrong])
  assert [region.texts for region in export.regions] == [("the square",)]
  assert sum(export.skipped.values()) == 2


def test_labelme_group_is_one_object(tmp_path: pathlib.Path):
  part = np.ones((4, 4), bool)
  shapes = [
    tool_exports.labelme_shape(SQUARE, "the torn sheet", "sheet", group_id=1),
    tool_exports.labelme_shape(TRIANGLE, "", "sheet", group_id=1),
    labelme_mask(part, 0, 40, "") | {"label": "sheet", "group_id": 1},
    tool_exports.labelme_shape([(50, 42), (62, 42), (62, 47)], "the cup", "cup", group_id=1),
  ]
  regions = by_text(labelme_regions(tmp_path, shapes))
  expected = pixels_of(SQUARE) | pixels_of(TRIANGLE)
  expected[40:44, 0:4] = True
  assert np.array_equal(decode(regions["the torn sheet"].mask), expected)
  assert np.array_equal(decode(regions["the cup"].mask), pixels_of(shapes[3]["points"]))


def test_labelme_texts_in_attributes_and_labels(tmp_path: pathlib.Path):
  shapes = [
    tool_exports.labelme_shape(SQUARE, "", "red cup", attributes={"expression": "the cup"}),
    tool_exports.labelme_shape(TRIANGLE, "", "plate", attributes={"expression": "the plate"}),
  ]
  assert set(by_text(labelme_regions(tmp_path, shapes))) == {"the cup", "the plate"}
  labels = labelme_regions(tmp_path, shapes, text_keys=("category",))
  assert set(by_text(labels)) == {"red cup", "plate"}
  with pytest.raises(InputError, match=r"under note; keys with text: expression, label"):
    labelme_regions(tmp_path, shapes, text_keys=("note",))


@pytest.mark.parametrize(
  ("file", "image", "expected"),
  (
    ("a.json", "a.jpg", "a.jpg"),
    ("labels/a.json", r"..\images\a.jpg", "images/a.jpg"),
    ("labels/clip/a.json", "a.jpg", "clip/a.jpg"),
    ("clip/a.json", "./a.jpg", "clip/a.jpg"),
    ("a.json", r"C:\photos\a.jpg", "C:/photos/a.jpg"),
    ("a.json", "/photos/a.jpg", "/photos/a.jpg"),
    ("clip/a.json", "https://host/photos/a.jpg", "https://host/photos/a.jpg"),
  ),
)
def test_labelme_photo_is_relative_to_its_file(
  tmp_path: pathlib.Path, file: str, image: str, expected: str
):
  photo = Photo("a.jpg", HEIGHT, WIDTH, [])
  shapes = [tool_exports.labelme_shape(SQUARE, "the square")]
  content = tool_exports.labelme_photo(photo, shapes, imagePath=image)
  tool_exports.write_json(tmp_path / file, content)
  assert read("labelme", tmp_path).regions[0].image == expected


def convert_export(folder: pathlib.Path, format_name: str, *options: str) -> list[dict[str, Any]]:
  """Converts the folder `export` and returns the lines."""
  out = folder / "mine.jsonl"
  arguments = ["convert", "--from", format_name, str(folder / "export"), "--out", str(out)]
  command.main([*arguments, "--overwrite", *options])
  return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_labelme_photo_may_be_in_the_file(tmp_path: pathlib.Path):
  write_photo(tmp_path / "elsewhere/a.png", (HEIGHT, WIDTH))
  data = (tmp_path / "elsewhere/a.png").read_bytes()
  shapes = [tool_exports.labelme_shape(SQUARE, "the square")]
  content = tool_exports.labelme_photo(
    Photo("a.png", HEIGHT, WIDTH, []), shapes, imageData=base64.b64encode(data).decode()
  )
  tool_exports.write_json(tmp_path / "work/export/a.json", content)
  (line,) = convert_export(tmp_path / "work", "labelme")
  assert (tmp_path / "work" / line["image"]).read_bytes() == data
  # The photo at hand is used, although the file has it.
  (line,) = convert_export(tmp_path / "work", "labelme", "--images", str(tmp_path / "elsewhere"))
  assert line["image"] == "a.png"


def test_half_of_a_character_in_a_text_is_written(tmp_path: pathlib.Path):
  write_photo(tmp_path / "export/a.png", (HEIGHT, WIDTH))
  shapes = [tool_exports.labelme_shape(SQUARE, "the \ud800 cup")]
  content = tool_exports.labelme_photo(Photo("a.png", HEIGHT, WIDTH, []), shapes)
  (tmp_path / "export/a.json").write_text(json.dumps(content))
  assert convert_export(tmp_path, "labelme")[0]["sentences"] == ["the \ud800 cup"]


def test_labelme_photo_that_exif_turns_is_upright(tmp_path: pathlib.Path):
  exif = Image.Exif()
  exif[0x0112] = 8
  write_photo(tmp_path / "export/a.jpg", (WIDTH, HEIGHT), exif=exif)
  photo = Photo("a.jpg", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])
  tool_exports.write_labelme(tmp_path / "export", [photo])
  (line,) = convert_export(tmp_path, "labelme")
  assert np.array_equal(decode(line["target"]), pixels_of(SQUARE))


def test_labelme_photo_in_the_file_must_have_the_size(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
  write_photo(tmp_path / "elsewhere/a.png", (HEIGHT, WIDTH + 1))
  data = base64.b64encode((tmp_path / "elsewhere/a.png").read_bytes()).decode()
  shapes = [tool_exports.labelme_shape(SQUARE, "the square")]
  photo = Photo("a.png", HEIGHT, WIDTH, [])
  for wrong in (data, "no base64", base64.b64encode(b"no image").decode()):
    content = tool_exports.labelme_photo(photo, shapes, imageData=wrong)
    tool_exports.write_json(tmp_path / "work/export/a.json", content)
    with pytest.raises(InputError):
      convert_export(tmp_path / "work", "labelme")
  assert not list((tmp_path / "work").glob("*_images"))


def test_via_says_that_a_photo_is_not_the_annotated_file(tmp_path: pathlib.Path):
  write_photo(tmp_path / "a.png", (HEIGHT, WIDTH))
  actual = (tmp_path / "a.png").stat().st_size
  region = tool_exports.via_region(Drawn(SQUARE, "the square"))
  for size, notes in ((actual, 0), (-1, 0), (actual + 1, 1)):
    rows = {"a.png": {"filename": "a.png", "size": size, "regions": [region]}}
    tool_exports.write_json(tmp_path / "p.json", rows)
    noted = read("via", tmp_path / "p.json", folder=str(tmp_path)).noted
    assert sum(noted.values()) == notes


CHANGES = ("none", "scaled", "cropped", "turned by EXIF", "renamed", "another of that name")


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("change", CHANGES)
@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(data=st.data())
def test_a_changed_photo_gets_its_own_masks_or_an_error(
  tmp_path_factory: pytest.TempPathFactory,
  change: str,
  tool: tool_exports.Tool,
  data: st.DataObject,
):
  height, width = data.draw(st.tuples(st.integers(8, 40), st.integers(41, 80)))
  polygon = data.draw(polygons_inside(height, width))
  folder = tmp_path_factory.mktemp("export")
  photo = Photo("clip/a.png", height, width, [Drawn(polygon, "the thing")])
  tool.write(folder / "export", [photo])
  place = tool_exports.photo_file(folder, tool, photo)
  size, expected = (height, width), pixels_of(polygon, height, width)
  if change == "scaled":
    size = (2 * height, 2 * width)
  elif change == "cropped":
    size = (height - 3, width)
  elif change == "renamed":
    place = place.with_name("b.png")
  elif change == "another of that name":
    place = folder / "other" / place.name
  exif = Image.Exif()
  exif[0x0112] = 6 if change == "turned by EXIF" else 1
  write_photo(place, size, exif=exif)
  options = ("--text", "category") if tool.format == "yolo" else ()
  try:
    (line,) = convert_export(folder, tool.format, *options)
  except InputError:
    assert change != "none"
    return
  if not (folder / line["image"]).exists():
    # Said by a warning, and by `validate`.
    assert change in ("renamed", "another of that name")
    return
  if tool.format == "yolo":
    # Shares of the sides are the same for every size.
    actual = size[::-1] if change == "turned by EXIF" else size
    shares = [(x * actual[1] / width, y * actual[0] / height) for x, y in polygon]
    assert overlap(decode(line["target"], *actual), pixels_of(shares, *actual)) > 0.99
    return
  if change in ("scaled", "cropped"):
    # Without the annotated size, only polygons beyond the border tell, in `validate`.
    assert not tool.has_size
    return
  assert change == "none"
  assert np.array_equal(decode(line["target"], height, width), expected)


def test_labelme_lines_and_points_are_counted(tmp_path: pathlib.Path):
  shapes = [
    tool_exports.labelme_shape(SQUARE, "the square"),
    tool_exports.labelme_shape(SQUARE[:2], "a line", shape_type="line"),
    tool_exports.labelme_shape(SQUARE[:2], "two points", shape_type="polygon"),
    tool_exports.labelme_shape(SQUARE[:1], "a point", shape_type="point"),
  ]
  export = labelme_regions(tmp_path, shapes)
  assert len(export.regions) == 1
  assert export.skipped == {
    "line: has no area": 1,
    "invalid polygon (fewer than three points)": 1,
    "point: has no area": 1,
  }


def test_reasonseg_s_sentences_are_for_all_targets(tmp_path: pathlib.Path):
  shapes = [
    {"label": "target", "shape_type": "polygon", "points": SQUARE},
    {"label": "target", "shape_type": "polygon", "points": TRIANGLE},
    {"label": "ignore", "shape_type": "polygon", "points": [(0, 40), (9, 40), (9, 47)]},
  ]
  tool_exports.write_json(
    tmp_path / "12_3.json", {"text": ["what can be eaten?"], "is_sentence": True, "shapes": shapes}
  )
  export = read("labelme", tmp_path)
  assert [(r.image, r.texts) for r in export.regions] == [("12_3.jpg", ("what can be eaten?",))] * 2
  assert export.skipped == {"area labelled 'ignore': not a target": 1}


def write_via_shapes(path: pathlib.Path, shapes: list[dict[str, Any]], **fields: Any) -> None:
  """Writes a project of the VGG Image Annotator; the texts are the kinds of the shapes."""
  regions = [
    {"shape_attributes": shape, "region_attributes": {"caption": shape["name"]}} for shape in shapes
  ]
  photo = {"filename": "a.png", "size": -1, "regions": regions}
  tool_exports.write_json(path, {"_via_img_metadata": {"a.png-1": photo}} | fields)


def test_via_shapes(tmp_path: pathlib.Path):
  shapes = [
    {"name": "circle", "cx": 20, "cy": 20, "r": 9},
    {"name": "ellipse", "cx": 40, "cy": 24, "rx": 15, "ry": 6, "theta": math.radians(30)},
    {"name": "rect", "x": 5, "y": 6, "width": 20, "height": 20},
    {"name": "point", "cx": 1, "cy": 2},
    {"name": "polyline", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]},
    {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [1, 1]},
  ]
  write_via_shapes(tmp_path / "p.json", shapes)
  export = read("via", tmp_path / "p.json", boxes=True)
  regions = by_text(export)
  assert set(regions) == {"circle", "ellipse", "rect"}
  assert overlap(decode(regions["circle"].mask), disc(20, 20, 9, 9)) > 0.95
  assert overlap(decode(regions["ellipse"].mask), disc(40, 24, 15, 6, 30)) > 0.95
  assert np.array_equal(decode(regions["rect"].mask), pixels_of(SQUARE))
  assert sum(export.skipped.values()) == 3
  assert set(by_text(read("via", tmp_path / "p.json"))) == {"circle", "ellipse"}


def test_via_options_are_their_names(tmp_path: pathlib.Path):
  region = tool_exports.via_region(Drawn(SQUARE, "1"))
  region["region_attributes"]["colours"] = {"r": True, "g": False, "b": True}
  options = {"caption": {"type": "radio", "options": {"1": "the left cup", "2": "the right cup"}}}
  options["colours"] = {"type": "checkbox", "options": {"r": "red", "g": "green", "b": ""}}
  photo = {"filename": "a.png", "size": 1, "regions": [region]}
  tool_exports.write_json(
    tmp_path / "p.json",
    {"_via_img_metadata": {"a.png1": photo}, "_via_attributes": {"region": options}},
  )
  assert read("via", tmp_path / "p.json").regions[0].texts == ("the left cup",)
  colours = read("via", tmp_path / "p.json", text_keys=("colours",))
  assert colours.regions[0].texts == ("red", "b")


def test_via3_leaves_out_videos_and_pairs(tmp_path: pathlib.Path):
  photos = [Photo(name, HEIGHT, WIDTH, [Drawn(SQUARE, name)]) for name in ("a.png", "b.png")]
  tool_exports.write_via3(tmp_path, photos)
  path = tmp_path / "project.json"
  content = json.loads(path.read_text())
  content["metadata"] |= {
    "video": content["metadata"]["1_0"] | {"z": [1.5]},
    "whole": content["metadata"]["1_0"] | {"xy": []},
    "pair": content["metadata"]["1_0"] | {"vid": "3"},
    "extreme": content["metadata"]["1_0"] | {"xy": [8, 1, 1, 2, 2]},
  }
  content["view"]["3"] = {"fid_list": [1, 2]}
  tool_exports.write_json(path, content)
  export = read("via", path)
  assert [region.image for region in export.regions] == ["a.png", "b.png"]
  assert sum(export.skipped.values()) == 4


def cvat_regions(folder: pathlib.Path, shapes: str, **options: Any) -> Export:
  """Reads an XML file of CVAT with these shapes."""
  (folder / "annotations.xml").write_text(
    f'<annotations><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    "</annotations>",
    encoding="utf-8",
  )
  return read("cvat", folder / "annotations.xml", **options)


def cvat_shape(kind: str, text: str, **attributes: Any) -> str:
  """Returns a shape of CVAT."""
  values = " ".join(f'{key}="{value}"' for key, value in attributes.items())
  return f'<{kind} label="thing" {values}><attribute name="caption">{text}</attribute></{kind}>'


@pytest.mark.parametrize("text", ("true", "0012", "1.50", "die Tasse, rot", "&lt;b&gt; &amp; co"))
def test_cvat_texts_stay_texts(tmp_path: pathlib.Path, text: str):
  shape = cvat_shape("polygon", text, points="5,5;25,5;25,25")
  expected = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
  assert cvat_regions(tmp_path, shape).regions[0].texts == (expected,)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  mask=st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.lists(
      st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]
    ).map(lambda bits: np.array(bits).reshape(size))
  ),
  left=st.integers(0, 60),
  top=st.integers(0, 45),
)
def test_cvat_masks_are_the_same_pixels(
  tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray, left: int, top: int
):
  runs, value = [0], False
  for pixel in mask.ravel():
    if pixel == value:
      runs[-1] += 1
    else:
      runs.append(1)
      value = pixel
  height, width = mask.shape
  place = {"left": left, "top": top, "width": width, "height": height}
  shape = cvat_shape("mask", "the dots", rle=", ".join(map(str, runs)), **place)
  folder = tmp_path_factory.mktemp("cvat")
  if left + width > WIDTH or top + height > HEIGHT or not mask.any():
    with pytest.raises(InputError, match=r"the bitmap of|mask covers no pixel"):
      cvat_regions(folder, shape)
    return
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[top : top + height, left : left + width] = mask
  assert np.array_equal(decode(cvat_regions(folder, shape).regions[0].mask), expected)


@pytest.mark.parametrize("degrees", (0, 30, 90, 200.5))
def test_cvat_turned_boxes_and_ellipses(tmp_path: pathlib.Path, degrees: float):
  box = cvat_shape("box", "the box", xtl=10, ytl=20, xbr=40, ybr=30, rotation=degrees)
  oval = cvat_shape("ellipse", "the oval", cx=30, cy=24, rx=15, ry=6, rotation=degrees)
  regions = by_text(cvat_regions(tmp_path, box + oval, boxes=True))
  assert overlap(decode(regions["the oval"].mask), disc(30, 24, 15, 6, degrees)) > 0.95
  y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  t = math.radians(degrees)
  u = (x - 25) * math.cos(t) + (y - 25) * math.sin(t)
  v = (y - 25) * math.cos(t) - (x - 25) * math.sin(t)
  assert overlap(decode(regions["the box"].mask), (abs(u) <= 15) & (abs(v) <= 5)) > 0.95


def test_cvat_turned_box_is_clipped_not_bent(tmp_path: pathlib.Path):
  shape = cvat_shape("box", "the box", xtl=-10, ytl=-5, xbr=20, ybr=15, rotation=45)
  mask = decode(cvat_regions(tmp_path, shape, boxes=True).regions[0].mask)
  y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  u, v = (x - 5) + (y - 5), (y - 5) - (x - 5)
  expected = (abs(u) <= 15 * math.sqrt(2)) & (abs(v) <= 10 * math.sqrt(2))
  assert overlap(mask, expected) > 0.95


def test_cvat_group_is_one_object(tmp_path: pathlib.Path):
  shapes = cvat_shape("polygon", "", points="1,1;9,1;9,9", group_id=4)
  shapes += cvat_shape("polygon", "both", points="20,20;30,20;30,30", group_id=4)
  shapes += cvat_shape("polygon", "alone", points="40,40;45,40;45,45", group_id=0)
  regions = by_text(cvat_regions(tmp_path, shapes))
  both = pixels_of([(1, 1), (9, 1), (9, 9)]) | pixels_of([(20, 20), (30, 20), (30, 30)])
  assert np.array_equal(decode(regions["both"].mask), both)
  assert decode(regions["alone"].mask).sum() < both.sum()


def test_cvat_video_says_how_to_export(tmp_path: pathlib.Path):
  (tmp_path / "annotations.xml").write_text(
    '<annotations><track id="0" label="cup"><box frame="0" xtl="1" ytl="1" xbr="9" ybr="9"/>'
    "</track></annotations>"
  )
  with pytest.raises(InputError, match=r"track of a video .*CVAT for images"):
    read("cvat", tmp_path / "annotations.xml")


@pytest.mark.parametrize("encoding", ("utf-8", "utf-8-sig", "utf-16"))
def test_cvat_encodings(tmp_path: pathlib.Path, encoding: str):
  text = (
    '<?xml version="1.0" encoding="{}"?><annotations><image name="a.png" width="64" height="48">'
  )
  text += cvat_shape("polygon", "die grüne Tasse", points="5,5;25,5;25,25")
  declared = encoding.removesuffix("-sig")
  content = text.format(declared) + "</image></annotations>"
  (tmp_path / "a.xml").write_bytes(content.encode(encoding))
  assert read("cvat", tmp_path / "a.xml").regions[0].texts == ("die grüne Tasse",)


def test_cvat_entities_are_refused(tmp_path: pathlib.Path):
  bomb = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 9))
  (tmp_path / "a.xml").write_text(
    f'<!DOCTYPE x [<!ENTITY a0 "ha">{bomb}]><annotations>&a8;</annotations>'
  )
  with pytest.raises(InputError, match="document type"):
    read("cvat", tmp_path / "a.xml")


def test_cvat_damaged_xml_is_an_error(tmp_path: pathlib.Path):
  for text in ("<annotations><image", "<annotations>", "<a" * 30 + ">", "<other/>", "<a><b/></c>"):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError):
      read("cvat", tmp_path / "a.xml")


def yolo_regions(folder: pathlib.Path, rows: str, settings: Any = None, **options: Any) -> Export:
  """Reads labels of YOLO for a photo."""
  (folder / "labels").mkdir(parents=True, exist_ok=True)
  (folder / "labels/a.txt").write_text(rows)
  content = settings or {"names": ["the cup", "the plate"]}
  (folder / "data.yaml").write_text(json.dumps(content))
  if not list(folder.rglob("a.*g")):
    write_photo(folder / "images/a.png", (HEIGHT, WIDTH))
  return read("yolo", folder, folder=str(folder), **options)


def test_yolo_box_needs_boxes(tmp_path: pathlib.Path):
  x, y = 15 / WIDTH, 16 / HEIGHT
  rows = f"0 {x} {y} {20 / WIDTH} {20 / HEIGHT}\n1 0.5 0.5 0.9 0.5 0.9 0.9\n"
  assert set(by_text(yolo_regions(tmp_path, rows))) == {"the plate"}
  regions = by_text(yolo_regions(tmp_path, rows, boxes=True))
  assert np.array_equal(decode(regions["the cup"].mask), pixels_of(SQUARE))


def test_yolo_rows_that_are_not_masks_are_counted(tmp_path: pathlib.Path):
  rows = "0 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.1 0.1 0.5 0.1 0.5 0.5 0.93\n7 0.1 0.1 0.5 0.1 0.5 0.5\n"
  rows += "0 3 3 30 3 30 30\n0 x 0 1 1 1 0\n\n0.5 0.1 0.1 0.5 0.1 0.5 0.5\n"
  export = yolo_regions(tmp_path, rows)
  assert len(export.regions) == 1
  assert sum(export.skipped.values()) == 5
  assert "labels/a.txt, line 3" in str(export.places)


def test_yolo_turned_photo_is_upright(tmp_path: pathlib.Path):
  exif = Image.Exif()
  exif[0x0112] = 6
  write_photo(tmp_path / "images/a.jpg", (HEIGHT, WIDTH), exif=exif)
  region = yolo_regions(tmp_path, "0 0 0 0.5 0 0.5 0.5 0 0.5\n").regions[0]
  assert (region.size, region.upright) == ((WIDTH, HEIGHT), True)
  half = [(0, 0), (HEIGHT / 2, 0), (HEIGHT / 2, WIDTH / 2), (0, WIDTH / 2)]
  assert np.array_equal(decode(region.mask, WIDTH, HEIGHT), pixels_of(half, WIDTH, HEIGHT))


def test_yolo_settings_of_a_run_are_not_those_of_the_data(tmp_path: pathlib.Path):
  (tmp_path / "args.yaml").write_text("task: segment\n")
  assert yolo_regions(tmp_path, "0 0.1 0.1 0.5 0.1 0.5 0.5\n").regions[0].texts == ("the cup",)


def test_yolo_photo_must_be_the_only_one_of_its_name(tmp_path: pathlib.Path):
  row = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
  write_photo(tmp_path / "images/a.png", (HEIGHT, WIDTH))
  write_photo(tmp_path / "images/a.jpg", (HEIGHT, WIDTH))
  with pytest.raises(InputError, match=r"a\.jpg and images/a\.png"):
    yolo_regions(tmp_path, row)


def test_yolo_photo_is_in_the_folder_of_its_labels(tmp_path: pathlib.Path):
  write_photo(tmp_path / "images/a.png", (HEIGHT, WIDTH))
  write_photo(tmp_path / "backup/a.png", (HEIGHT, WIDTH))
  write_photo(tmp_path / "backup/images/a.png", (HEIGHT, WIDTH))
  export = yolo_regions(tmp_path, "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
  assert [region.image for region in export.regions] == ["images/a.png"]


def test_yolo_labels_without_photo_are_counted(tmp_path: pathlib.Path):
  row = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
  (tmp_path / "labels").mkdir()
  (tmp_path / "labels/b.txt").write_text(row)
  export = yolo_regions(tmp_path, row)
  assert export.skipped == {"labels without an image in --images": 1}
  assert [region.image for region in export.regions] == ["images/a.png"]


def test_yolo_without_names_is_an_error(tmp_path: pathlib.Path):
  row = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
  with pytest.raises(InputError, match="pose labels"):
    yolo_regions(tmp_path, row, {"names": ["a"], "kpt_shape": [17, 3]})
  with pytest.raises(InputError, match="`names`"):
    yolo_regions(tmp_path, row, {"nc": 3})
  with pytest.raises(InputError, match="--text category"):
    yolo_regions(tmp_path, row, text_keys=("caption",))
  (tmp_path / "data.yaml").write_text("names: [a, b")
  with pytest.raises(InputError, match="invalid YAML"):
    read("yolo", tmp_path, folder=str(tmp_path))
  (tmp_path / "data.yaml").unlink()
  with pytest.raises(InputError, match=r"no data\.yaml with the category names"):
    read("yolo", tmp_path, folder=str(tmp_path))
  (tmp_path / "classes.txt").write_text("the cup\nthe plate\n")
  assert read("yolo", tmp_path, folder=str(tmp_path)).regions[0].texts == ("the cup",)


def supervisely_regions(
  folder: pathlib.Path, objects: list[dict[str, Any]], **options: Any
) -> Export:
  """Reads an annotation of Supervisely with these objects."""
  size = {"height": HEIGHT, "width": WIDTH}
  tool_exports.write_json(folder / "ds/ann/a.png.json", {"size": size, "objects": objects})
  return read("supervisely", folder, **options)


def test_supervisely_interior_stays_a_hole(tmp_path: pathlib.Path):
  ring = tool_exports.supervisely_object(Drawn(SQUARE, "the ring"))
  hole = [(10, 10), (20, 10), (20, 20), (10, 20)]
  ring["points"]["interior"] = [hole]
  region = supervisely_regions(tmp_path, [ring]).regions[0]
  assert region.image == "ds/img/a.png"
  assert np.array_equal(decode(region.mask), pixels_of(SQUARE) & ~pixels_of(hole))
  assert not decode(region.mask)[15, 15]


@pytest.mark.parametrize("kind", ("zlib", "plain", "palette"))
def test_supervisely_bitmaps_are_the_same_pixels(tmp_path: pathlib.Path, kind: str):
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[7:30, 9:40] = np.random.default_rng(1).random((23, 31)) > 0.5
  mask[7, 9] = mask[29, 39] = True
  bitmap = tool_exports.supervisely_bitmap(mask)
  if kind != "zlib":
    image: Any = Image.fromarray(mask[7:30, 9:40])
    file = io.BytesIO()
    if kind == "palette":
      image = Image.fromarray(mask[7:30, 9:40].astype(np.uint8), mode="P")
      # Both are black: only transparency tells them apart.
      image.putpalette([0, 0, 0, 0, 0, 0])
      image.save(file, format="PNG", transparency=b"\0\xff")
    else:
      image.save(file, format="PNG")
    bitmap["data"] = base64.b64encode(file.getvalue()).decode()
  shape = tool_exports.supervisely_object(
    Drawn([], "the dots"), geometryType="bitmap", bitmap=bitmap
  )
  assert np.array_equal(decode(supervisely_regions(tmp_path, [shape]).regions[0].mask), mask)


def test_supervisely_tags(tmp_path: pathlib.Path):
  tags = [{"name": "caption", "value": "the left cup"}, {"name": "blue", "value": None}]
  shape = tool_exports.supervisely_object(Drawn(SQUARE, ""), tags=tags)
  assert supervisely_regions(tmp_path, [shape]).regions[0].texts == ("the left cup",)
  tagged = supervisely_regions(tmp_path, [shape], text_keys=("tags",))
  assert tagged.regions[0].texts == ("the left cup", "blue")


def test_supervisely_bomb_is_left_out(tmp_path: pathlib.Path):
  bomb = base64.b64encode(tool_exports.zlib.compress(bytes(1 << 24))).decode()
  shapes = [tool_exports.supervisely_object(Drawn(SQUARE, "the square"))]
  shapes.append(shapes[0] | {"geometryType": "bitmap", "bitmap": {"data": bomb, "origin": [0, 0]}})
  export = supervisely_regions(tmp_path, shapes)
  assert len(export.regions) == 1
  assert sum(export.skipped.values()) == 1


def test_datumaro_shapes(tmp_path: pathlib.Path):
  mask = np.random.default_rng(2).random((HEIGHT, WIDTH)) > 0.5
  runs: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  rle = {"size": [HEIGHT, WIDTH], "counts": runs["counts"].decode()}
  rows = [
    {"type": "mask", "group": 3, "label_id": 0, "rle": rle, "attributes": {}},
    {"type": "caption", "group": 3, "caption": "the dots", "attributes": {}},
    {"type": "ellipse", "points": [10, 12, 40, 24], "attributes": {"caption": "the oval"}},
    {"type": "bbox", "bbox": [5, 6, 20, 20], "attributes": {"caption": "the square"}},
    {"type": "caption", "group": 0, "caption": "a table"},
    {"type": "points", "points": [1, 2]},
  ]
  item = {"id": "a", "image": {"path": "a.png", "size": [HEIGHT, WIDTH]}, "annotations": rows}
  labels = {"label": {"labels": [{"name": "thing"}]}}
  tool_exports.write_json(tmp_path / "train.json", {"categories": labels, "items": [item]})
  export = read("datumaro", tmp_path / "train.json", boxes=True)
  regions = by_text(export)
  assert np.array_equal(decode(regions["the dots"].mask), mask)
  assert overlap(decode(regions["the oval"].mask), disc(25, 18, 15, 6)) > 0.95
  assert np.array_equal(decode(regions["the square"].mask), pixels_of(SQUARE))
  assert export.skipped == {
    "caption of a whole image": 1,
    "points: cannot be converted to a mask": 1,
  }


def test_datumaro_subsets_have_their_own_photos(tmp_path: pathlib.Path):
  photo = Photo("a.png", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])
  tool_exports.write_datumaro(tmp_path, [photo])
  (tmp_path / "annotations/val.json").write_bytes(
    (tmp_path / "annotations/train.json").read_bytes()
  )
  regions = read("datumaro", tmp_path).regions
  assert [r.image for r in regions] == ["images/train/a.png", "images/val/a.png"]
  assert [r.split for r in regions] == ["train", "val"]


def test_an_item_without_a_path_is_the_photo_of_its_id(tmp_path: pathlib.Path):
  photo = Photo("a.png", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])
  tool_exports.write_datumaro(tmp_path, [photo])
  path = tmp_path / "annotations/train.json"
  content = json.loads(path.read_text())
  del content["items"][0]["image"]["path"]
  tool_exports.write_json(path, content)
  write_photo(tmp_path / "images/train/a.png", (HEIGHT, WIDTH))
  assert read("datumaro", tmp_path, folder=str(tmp_path)).regions[0].image == "images/train/a.png"


def test_damaged_zips_are_errors(tmp_path: pathlib.Path):
  tool_exports.write_labelme(
    tmp_path / "export", [Photo("a.png", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])]
  )
  tool_exports.pack(tmp_path / "export", tmp_path / "good.zip")
  data = (tmp_path / "good.zip").read_bytes()
  for damaged in (data[:-30], data[:40] + bytes(20) + data[60:], data[:4]):
    (tmp_path / "a.zip").write_bytes(damaged)
    with pytest.raises(InputError, match=r"zip"):
      read("labelme", tmp_path / "a.zip")


def test_a_file_twice_in_a_zip_is_an_error(tmp_path: pathlib.Path):
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
    file.writestr("a.json", "{}")
    with pytest.warns(UserWarning, match="Duplicate name"):
      file.writestr("a.json", "[]")
  with pytest.raises(InputError, match=r"duplicate file a\.json"):
    read("labelme", tmp_path / "a.zip")


def test_a_file_without_a_name_in_a_zip_is_left_out(tmp_path: pathlib.Path):
  photo = Photo("a.png", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])
  tool_exports.write_labelme(tmp_path / "export", [photo])
  tool_exports.pack(tmp_path / "export", tmp_path / "a.zip")
  with zipfile.ZipFile(tmp_path / "a.zip", "a") as file:
    file.writestr("?.json", b"x")
  data = (tmp_path / "a.zip").read_bytes()
  (tmp_path / "a.zip").write_bytes(data.replace(b"?.json", b"\0.json"))
  assert len(read("labelme", tmp_path / "a.zip").regions) == 1


def test_a_zip_bomb_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(export_files, "MAX_BYTES", 1000)
  with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("a.json", " " * 1001)
  with pytest.raises(InputError, match="1,001 bytes; the limit is 1,000"):
    read("labelme", tmp_path / "a.zip")


def test_a_link_out_of_the_export_is_not_opened(tmp_path: pathlib.Path):
  (tmp_path / "secret.json").write_text('{"shapes": []}')
  (tmp_path / "export").mkdir()
  (tmp_path / "export/a.json").symlink_to(tmp_path / "secret.json")
  with pytest.raises(InputError, match="leaves the folder"):
    read("labelme", tmp_path / "export")


def test_files_that_macos_adds_are_not_read(tmp_path: pathlib.Path):
  photo = Photo("a.png", HEIGHT, WIDTH, [Drawn(SQUARE, "the square")])
  tool_exports.write_labelme(tmp_path, [photo])
  for name in ("__MACOSX/._a.json", "._a.json", ".cache/b.json"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\26\7")
  assert len(read("labelme", tmp_path).regions) == 1


@hypothesis.given(
  box=st.tuples(*[st.integers(-40, 100)] * 4), degrees=st.integers(0, 359), size=st.integers(5, 60)
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_clipping_leaves_what_is_inside(box: tuple[int, ...], degrees: int, size: int):
  x0, y0, x1, y1 = box
  hypothesis.assume(abs(x1 - x0) > 2 and abs(y1 - y0) > 2)
  shape = geometry.rotated_box([float(value) for value in box], float(degrees))
  # Rasterised with room around it, and then cut.
  moved = [(x + 160, y + 160) for x, y in zip(*[iter(shape["polygons"][0])] * 2, strict=True)]
  expected = pixels_of(moved, 400, 400)[160 : 160 + size, 160 : 160 + size]
  try:
    clipped = decode(geometry.clip(shape, (size, size)), size, size)
  except ValueError:
    clipped = np.zeros((size, size), bool)
  # Pixels that an edge passes may differ.
  assert (clipped ^ expected).sum() <= 4 + 2 * size


def test_xml_is_recognised_in_every_encoding():
  for encoding in ("utf-8", "utf-8-sig", "utf-16"):
    assert cvat.is_xml("<annotations/>".encode(encoding))
  assert not cvat.is_xml(b'{"images": []}')
