"""Label Studio's JSON as it really is: shapes, texts and images, or what is left out and why."""

import base64
import io
import json

import numpy as np
import pytest
from custom_files import HEIGHT, WIDTH, write_photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command
from input_pipeline.custom.converters import label_studio
from input_pipeline.custom.converters.collect import Export, Options
from input_pipeline.masks.segmentation import decode_segmentation

DEFAULT = Options()
IMAGE = "/data/upload/1/0123abcd-a.png"
POINTS = [[10, 10], [40, 10], [40, 50], [10, 50]]


def row(name, kind, value, **fields):
  """Returns a row of `result`."""
  size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
  names = {"id": name, "type": kind, "from_name": kind, "to_name": "image"}
  return names | size | {"value": value} | fields


def text(name, *texts, **fields):
  return row(name, "textarea", {"text": list(texts)}, **fields)


def polygon(name="r", points=POINTS, **fields):
  value = {"points": points, "closed": True, "polygonlabels": ["Cup"]}
  return row(name, "polygonlabels", value, **fields)


def region(kind, value, **fields):
  """Returns the rows of a region with an expression."""
  return row("r", kind, value, **fields), text("r", "the cup")


def task(*rows, data=None, number=7, **fields):
  base = {"id": number, "data": {"image": IMAGE} if data is None else data}
  return base | {"annotations": [{"id": 1, "result": list(rows)}]} | fields


def read(*tasks, options=DEFAULT):
  return label_studio.read_content(list(tasks), "x.json", options, Export())


def pixels(mask, size=(HEIGHT, WIDTH)):
  return decode_segmentation(mask.get("polygons", mask.get("rle")), *size)


def decode(points, size=(HEIGHT, WIDTH)):
  """Returns a polygon, whose points are in percent, by pycocotools."""
  flat = [c for x, y in points for c in (x * size[1] / 100, y * size[0] / 100)]
  return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([flat], *size))) > 0


def png_url(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def black_on_transparent(mask):
  image = np.zeros((*mask.shape, 4), np.uint8)
  image[..., 3] = mask * 255
  return image


def test_a_bitmask_covers_its_opaque_pixels():
  mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
  value = {"imageDataURL": png_url(black_on_transparent(mask)), "bitmasklabels": ["Cup"]}
  for kind in ("bitmask", "bitmasklabels"):
    (found,) = read(task(*region(kind, value))).regions
    assert np.array_equal(pixels(found.mask), mask)
    assert found.size == (HEIGHT, WIDTH) and found.upright


_MASK = np.eye(HEIGHT, WIDTH, dtype=bool)


@pytest.mark.parametrize(
  ("url", "message"),
  [
    (png_url(black_on_transparent(_MASK.T)), r"20 x 30 pixels for an image of 30 x 20"),
    (png_url(np.full((HEIGHT, WIDTH, 4), 255, np.uint8)), "covers the whole image"),
    (png_url(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "the bitmap has colours"),
    (png_url(black_on_transparent(_MASK & False)), "mask covers no pixel"),
    ("data:image/png;base64,iVBORw0KGgo=", "a damaged PNG"),
    ("https://example.com/mask.png", "does not start with data:image/png"),
    (7, "invalid bitmask"),
  ],
)
def test_a_bitmask_that_is_not_one_is_left_out_with_its_reason(url, message):
  export = read(task(*region("bitmask", {"imageDataURL": url}), polygon("s"), text("s", "good")))
  assert [found.texts for found in export.regions] == [("good",)]
  (line,) = export.report()
  assert message in line and line.endswith("(1: task 7, region r)")


def test_a_closed_vector_is_a_polygon_and_an_open_or_curved_one_is_left_out():
  vertices = [{"x": x, "y": y, "isBezier": False} for x, y in POINTS]
  (found,) = read(task(*region("vectorlabels", {"vertices": vertices, "closed": True}))).regions
  assert np.array_equal(pixels(found.mask), decode(POINTS))
  curved = [vertices[0] | {"isBezier": True}, *vertices[1:]]
  for value in ({"vertices": vertices}, {"vertices": curved, "closed": True}):
    with pytest.raises(InputError, match="only closed vectors without curves"):
      read(task(*region("vector", value)))


def test_a_polygon_a_little_beyond_the_border_is_clipped_and_noted():
  points = [[80, 10], [104, 10], [104, 50], [80, 50]]
  export = read(task(polygon("r", points), text("r", "x")))
  assert np.array_equal(
    pixels(export.regions[0].mask), decode([[80, 10], [100, 10], [100, 50], [80, 50]])
  )
  assert list(export.report()) == ["note: polygon beyond the border clipped (1: task 7, region r)"]
  with pytest.raises(InputError, match=r"no usable region; skipped: .*image is 30 x 20"):
    read(task(polygon("r", [[80, 10], [180, 10], [180, 50]]), text("r", "x")))


@pytest.mark.parametrize("size", [(20, 30), (31, 17)])
@pytest.mark.parametrize(
  ("kind", "value"),
  [
    ("rectangle", {"x": 70, "y": 10, "width": 60, "height": 30, "rotation": 30}),
    ("rectangle", {"x": 20, "y": 10, "width": 60, "height": 60, "rotation": 100}),
    ("ellipselabels", {"x": 95, "y": 50, "radiusX": 30, "radiusY": 20, "rotation": 45}),
    ("ellipse", {"x": 3, "y": 4, "radiusX": 40, "radiusY": 10}),
  ],
)
def test_a_turned_shape_beyond_the_border_is_what_is_inside(kind, value, size):
  sides = {"original_width": size[1], "original_height": size[0]}
  export = read(task(*region(kind, value, **sides)), options=Options(boxes=True))
  found = pixels(export.regions[0].mask, size)
  rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
  angle = np.radians(value.get("rotation", 0))
  x, y = columns - value["x"] * size[1] / 100, rows - value["y"] * size[0] / 100
  along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
  if kind == "rectangle":
    width, height = value["width"] * size[1] / 100, value["height"] * size[0] / 100
    expected = (along >= 0) & (along <= width) & (across >= 0) & (across <= height)
  else:
    a, b = value["radiusX"] * size[1] / 100, value["radiusY"] * size[0] / 100
    expected = (along / a) ** 2 + (across / b) ** 2 <= 1
  # Pixels on the edge may belong to either side.
  border = np.abs(np.gradient(expected.astype(float))).sum(0) > 0
  assert not ((found ^ expected) & ~border).any()
  assert (found ^ expected).sum() <= max(4, 0.12 * expected.sum())
  assert dict(export.noted) == {"polygon beyond the border clipped": 1}


@pytest.mark.parametrize(
  ("kind", "value"),
  [
    ("polygonlabels", {"points": [[0.1, 0.1], [0.4, -0.01], [0.4, 1.02]]}),
    ("rectangle", {"x": 0.1, "y": 0.1, "width": 0.9, "height": 0.3}),
    ("ellipse", {"x": 0.5, "y": 0.5, "radiusX": 0.4, "radiusY": 0.2}),
  ],
)
def test_shares_in_place_of_percentages_are_refused(kind, value):
  with pytest.raises(InputError, match="between 0 and 1, but Label Studio uses percentages"):
    read(task(*region(kind, value)), options=Options(boxes=True))


def test_shapes_that_are_not_read_are_named():
  export = read(
    task(
      polygon("a"),
      text("a", "good"),
      row("b", "keypointlabels", {"x": 1, "y": 2}),
      text("b", "a point"),
      row("c", "videorectangle", {"sequence": []}),
      polygon("d", POINTS[:2]),
      row("e", "polygon", {"points": POINTS, "closed": False}),
      {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
      row("f", "choices", {"choices": ["indoor"]}),
      polygon("g"),
      polygon("g", [[1, 1], [90, 1], [90, 90]]),
    )
  )
  assert [found.texts for found in export.regions] == [("good",)]
  assert sorted(export.report()) == [
    "skipped: choices without a region (1: task 7, region f)",
    "skipped: different shapes with the same id (1: task 7, region g)",
    "skipped: invalid polygon (fewer than three points) (1: task 7, region d)",
    "skipped: invalid polygon (not closed) (1: task 7, region e)",
    "skipped: keypointlabels not supported (1: task 7, region b)",
    "skipped: relation without a region (1: task 7)",
    "skipped: videorectangle not supported (1: task 7, region c)",
  ]


def test_labels_beside_a_shape_are_its_labels():
  """`Labels` with `Polygon` gives a row for each, with the same coordinates."""
  value = {"points": POINTS, "closed": True}
  rows = (row("r", "polygon", value), row("r", "labels", value | {"labels": ["Cup", "Red"]}))
  (found,) = read(task(*rows), options=Options(("category",))).regions
  assert found.texts == ("Cup", "Red")
  assert np.array_equal(pixels(found.mask), decode(POINTS))


# Texts.


def test_of_several_text_areas_the_one_that_is_called_like_an_expression_is_read():
  rows = (text("r", "the cup", from_name="Expression"), text("r", "blurred", from_name="comment"))
  export = read(task(polygon(), *rows))
  assert export.regions[0].texts == ("the cup",)
  assert list(export.report()) == [
    "note: text under comment not read; --text comment reads it (1: task 7, region r)"
  ]


def test_of_several_text_areas_the_user_names_the_ones_with_expressions():
  rows = (text("r", "the cup", from_name="short"), text("r", "the red cup", from_name="long"))
  with pytest.raises(InputError, match=r"texts in short and long; .* --text short --text long"):
    read(task(polygon(), *rows))
  (found,) = read(task(polygon(), *rows), options=Options(("long",))).regions
  assert found.texts == ("the red cup",)
  (found,) = read(task(polygon(), *rows), options=Options(("short", "long"))).regions
  assert found.texts == ("the cup", "the red cup")


def test_the_error_names_the_fields_that_regions_have():
  rows = (polygon(), row("r", "choices", {"choices": ["red"]}, from_name="colour"))
  for options in (DEFAULT, Options(("nothing",))):
    with pytest.raises(InputError, match=r"no region has a text.*; regions have category, colour;"):
      read(task(*rows), options=options)


def test_choices_and_notes_of_a_region_are_read_where_they_are_named():
  rows = (
    polygon(meta={"text": ["a note"]}),
    row("r", "choices", {"choices": ["red"]}, from_name="colour"),
  )
  assert read(task(*rows)).regions[0].texts == ("a note",)
  assert read(task(*rows, text("r", "cup"))).regions[0].texts == ("cup",)
  for name, expected in (("meta", "a note"), ("colour", "red"), ("category", "Cup")):
    (found,) = read(task(*rows, text("r", "cup")), options=Options((name,))).regions
    assert found.texts == (expected,)


def test_a_text_of_several_lines_and_several_submissions_are_several_expressions():
  rows = (text("r", "the cup\nleft cup", "red one"), text("r", "the cup"))
  (found,) = read(task(polygon(), *rows)).regions
  assert found.texts == ("the cup", "left cup", "red one")


def test_an_expression_cannot_refer_to_nothing_and_to_a_region():
  rows = (polygon(), text("r", "The cup"), text("free", "the cup", "a dog", from_name="absent"))
  export = read(task(*rows), options=Options(no_target="absent"))
  assert [(found.texts, found.mask is None) for found in export.regions] == [
    (("The cup",), False),
    (("a dog",), True),
  ]
  assert list(export.report()) == [
    "skipped: text without a target that also describes a region (1: the cup)"
  ]


def test_masks_of_label_studio_s_coco_are_for_the_image_that_a_browser_shows(tmp_path):
  """It multiplies percentages of the upright image with the sides of the stored one."""
  exif = Image.Exif()
  exif[0x0112] = 6
  write_photo(tmp_path / "a.jpg", (HEIGHT, WIDTH), exif=exif)
  image = {"id": 0, "file_name": "images/a.jpg", "width": WIDTH, "height": HEIGHT}
  shape = {"segmentation": [[2, 3, 12, 3, 12, 13]], "bbox": [2, 3, 10, 10], "iscrowd": 0}
  row = {"id": 0, "image_id": 0, "category_id": 0} | shape
  content = {"images": [image], "annotations": [row], "categories": [{"id": 0, "name": "mug"}]}
  (tmp_path / "result.json").write_text(json.dumps(content))
  arguments = ["convert", "--from", "label-studio", str(tmp_path / "result.json"), "--text"]
  with pytest.raises(InputError, match=r"a\.jpg: the export is for 30 x 20 pixels, .* 20 x 30"):
    command.main([*arguments, "category", "--out", str(tmp_path / "mine.jsonl")])


# Tasks.


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"annotations": [], "drafts": [{"result": []}]}, "task with drafts only"),
    ({"annotations": [], "predictions": [{"result": []}]}, "task with predictions only"),
    ({"annotations": []}, "task without an annotation"),
    ({"annotations": [{"result": []}]}, "annotation without regions"),
    ({"annotations": [{"was_cancelled": True}]}, "cancelled annotation"),
  ],
)
def test_tasks_without_regions_are_counted_by_reason(fields, reason):
  export = read(task(polygon(), text("r", "x")), task(number=8, **fields))
  assert len(export.regions) == 1
  assert f"skipped: {reason} (1: task 8)" in list(export.report())
  with pytest.raises(InputError, match=f"no usable region; .*{reason}"):
    read(task(**fields))


def test_annotations_were_called_completions():
  old = task(polygon(), text("r", "x"))
  old["completions"] = old.pop("annotations")
  assert read(old).regions[0].texts == ("x",)


# Images.


@pytest.mark.parametrize(
  ("data", "fields", "image"),
  [
    ({"thumb": "/t/a_small.png", "image": "/t/a.png"}, {}, "/t/a.png"),
    ({"thumbnail": "/t/s.png", "photo": "/t/a.png"}, {}, "/t/a.png"),
    ({"left": "l.png", "right": "r.png"}, {"to_name": "right"}, "r.png"),
    ({"Image": "s3://bucket/4711", "icon": "i.png"}, {}, "s3://bucket/4711"),
    ({"url": "https://x.org/a.png?sig=b%2Fc", "id": "7"}, {}, "https://x.org/a.png?sig=b%2Fc"),
    ({"image": ["p0.png", "p1.png"]}, {"item_index": 1}, "p1.png"),
    ({"pages": ["p0.png", "p1.png"]}, {"item_index": 0}, "p0.png"),
    ({"pages": ["p0.png"]}, {}, "p0.png"),
    ({"image": "a.avif"}, {}, "a.avif"),
    ({"photo": "a.JFIF"}, {}, "a.JFIF"),
    ({"photo": "/data/local-files/?d=x/a%20b.png"}, {}, "/data/local-files/?d=x/a%20b.png"),
    ({"image": "/tasks/7/presign/?fileuri=czM6Ly9idWNrZXQvYS5wbmc="}, {}, "s3://bucket/a.png"),
    ({"photo": "/tasks/7/presign/?fileuri=gs://b/a.png"}, {}, "gs://b/a.png"),
    ({"photo": "/tasks/7/resolve/?fileuri=czM6Ly9idWNrZXQvYS5wbmc"}, {}, "s3://bucket/a.png"),
  ],
)
def test_the_image_of_a_task_is_the_annotated_one(data, fields, image):
  (found,) = read(task(polygon(**fields), text("r", "x"), data=data)).regions
  assert found.image == image


@pytest.mark.parametrize(
  ("data", "fields", "reason"),
  [
    ({"thumb": "a.png"}, {}, "task with only a thumbnail"),
    ({"photo": "/thumbs/a.png"}, {}, "task with only a thumbnail"),
    ({"text": "a cup"}, {}, "task without an image"),
    ({"image": "b.JXL"}, {}, r"unsupported image format \(\.jxl\)"),
    ({"image": "data:image/png;base64,AAAA"}, {}, "image inside the JSON"),
    ({"image": ["a.png", "b.png"]}, {}, "list of images without its `item_index`"),
    ({"image": ["a.png", "b.png"]}, {"item_index": 2}, "list of images without its `item_index`"),
  ],
)
def test_a_region_without_a_certain_image_is_left_out(data, fields, reason):
  with pytest.raises(InputError, match=f"no usable region; skipped: .*{reason}"):
    read(task(polygon(**fields), text("r", "x"), data=data))


def test_two_images_of_which_none_is_called_like_the_tag_are_refused():
  data = {"photo": "a.png", "depth": "a_depth.png"}
  with pytest.raises(InputError, match=r"photo \(a\.png\) or depth \(a_depth\.png\).* tag image"):
    read(task(polygon(), text("r", "x"), data=data))


def test_regions_of_several_images_of_a_task_stay_apart(tmp_path):
  for number in range(2):
    write_photo(tmp_path / f"p{number}.png", seed=number)
  shapes = {"a": POINTS, "b": [[50, 50], [90, 50], [90, 90]]}
  rows = []
  for index, (name, points) in enumerate(shapes.items()):
    rows += [polygon(name, points, item_index=index), text(name, name, item_index=index)]
  export = tmp_path / "export.json"
  export.write_text(json.dumps([task(*rows, data={"image": ["p0.png", "p1.png"]})]))
  out = str(tmp_path / "mine.jsonl")
  command.main(["convert", "--from", "label-studio", str(export), "--out", out])
  lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
  assert [(line["image"], line["sentences"]) for line in lines] == [
    ("p0.png", ["a"]),
    ("p1.png", ["b"]),
  ]
  for line in lines:
    assert np.array_equal(pixels(line["target"]), decode(shapes[line["sentences"][0]]))


# The same object, drawn with any tool in an image of any size.


@given(
  size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
  seed=st.integers(0, 2**32 - 1),
  swapped=st.booleans(),
  names=st.permutations(["a", "b", "c"]),
)
def test_masks_come_back_under_their_own_texts_and_images(size, seed, swapped, names):
  random = np.random.default_rng(seed)
  height, width = size
  masks = random.random((3, height, width)) < 0.5
  masks[:, 0, 0], masks[:, -1, -1] = True, False
  sides = {"original_width": width, "original_height": height}
  if swapped and height != width:
    sides = {"original_width": height, "original_height": width}
  tasks = []
  for name, mask in zip(names, masks, strict=True):
    value = {"imageDataURL": png_url(black_on_transparent(mask))}
    rows = [row(name, "bitmask", value, **sides), text(name, f"object {name}", **sides)]
    random.shuffle(rows)
    tasks.append(task(*rows, data={"image": f"{name}.png"}))
  if swapped and height != width:
    with pytest.raises(InputError, match="no usable region"):
      read(*tasks)
    return
  export = read(*tasks)
  assert [found.image for found in export.regions] == [f"{name}.png" for name in names]
  for found, name, mask in zip(export.regions, names, masks, strict=True):
    assert found.texts == (f"object {name}",)
    assert np.array_equal(pixels(found.mask, size), mask)
