"""MDETR's JSON of referring expressions, and GREC's."""

import json

import custom_files
import damaged_json
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from input_pipeline.common.errors import InputError
from input_pipeline.custom import command, scan
from input_pipeline.custom.converters import collect, mdetr

HEIGHT, WIDTH = 40, 50
PHOTO = "COCO_train2014_000000000042.jpg"


def box(x, y, width, height):
  return [x, y, x + width, y, x + width, y + height, x, y + height]


def image(number, caption, **fields):
  """Returns a row of `images`: an expression."""
  return {
    "id": number,
    "file_name": PHOTO,
    "height": HEIGHT,
    "width": WIDTH,
    "original_id": 42,
    "caption": caption,
    "dataset_name": "refcoco",
    "tokens_negative": [[0, len(caption)]],
  } | fields


def annotation(number, image_id, **fields):
  """Returns an annotation with a mask, which MDETR's own converter leaves out."""
  return {
    "id": number,
    "image_id": image_id,
    "category_id": 1,
    "iscrowd": 0,
    "bbox": [5, 6, 10, 12],
    "segmentation": [box(5, 6, 10, 12)],
    "original_id": 700 + image_id,
    "tokens_positive": [[0, 3]],
  } | fields


def grec(number, image_id):
  """Returns the annotation that GREC's converter writes for an expression without a target."""
  return {
    "area": -1,
    "iscrowd": -1,
    "image_id": image_id,
    "category_id": -1,
    "id": number,
    "bbox": [0, 0, 0, 0],
    "empty": True,
    "original_id": -1,
    "tokens_positive": [[0, 3]],
  }


def convert(folder, content, *options, export_format="mdetr", name="finetune_refcoco_val.json"):
  custom_files.write_photo(folder / "train2014" / PHOTO, (HEIGHT, WIDTH))
  (folder / name).write_text(json.dumps(content))
  out = folder / "mine.jsonl"
  arguments = ["--from", export_format, str(folder / name), "--out", str(out), "--overwrite"]
  command.main(["convert", *arguments, *options])
  return [json.loads(line) for line in out.read_text().splitlines()]


def covered(target):
  return custom_files.covered(target, HEIGHT, WIDTH)


@pytest.mark.parametrize("export_format", ["mdetr", "coco"])
def test_the_caption_of_an_image_row_refers_to_its_annotation(tmp_path, export_format):
  content = {
    "images": [image(0, "the red patch"), image(1, "left"), image(2, "Red one")],
    "annotations": [
      annotation(0, 0, original_id=77),
      annotation(1, 1, original_id=78, segmentation=[box(20, 2, 8, 30)]),
      annotation(2, 2, original_id=77),
    ],
    "categories": [{"id": 1, "name": "thing"}],
  }
  both, left = convert(tmp_path, content, export_format=export_format)
  assert both == {
    "image": f"train2014/{PHOTO}",
    "split": "val",
    "image_id": 42,  # COCO's, not the number of the row
    "sentences": ["the red patch", "Red one"],
    "target": {"polygons": [box(5, 6, 10, 12)]},
  }
  assert (left["sentences"], left["image_id"]) == (["left"], 42)
  assert scan.scan(str(tmp_path / "mine.jsonl")).problems == []


@pytest.mark.parametrize(
  ("number", "kept"), [(0, 0), (2**63 - 1, 2**63 - 1), (2**63, None), (-1, None)]
)
def test_an_id_that_lines_cannot_hold_is_left_out(tmp_path, number, kept):
  row = image(0, "the red patch") | {"original_id": number}
  content = {
    "images": [row],
    "annotations": [annotation(0, 0)],
    "categories": [{"id": 1, "name": "thing"}],
  }
  (line,) = convert(tmp_path, content, export_format="mdetr")
  assert line.get("image_id") == kept
  assert scan.scan(str(tmp_path / "mine.jsonl")).problems == []


def test_grecs_targets_are_unions_and_its_empty_ones_are_none(tmp_path):
  runs = {"size": [HEIGHT, WIDTH], "counts": [0, 7, HEIGHT * WIDTH - 7]}
  content = {
    "images": [
      image(5, "both cups", dataset_name="grefcoco"),
      image(6, "a whale", dataset_name="grefcoco"),
    ],
    "annotations": [annotation(1, 5), annotation(2, 5, segmentation=runs), grec(3, 6)],
  }
  both, none = convert(tmp_path, content, name="finetune_grefcoco_testA.json")
  assert (both["split"], none["split"]) == ("testA", "testA")
  assert none["target"] is None
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[6:18, 5:15] = True
  expected[:7, 0] = True
  np.testing.assert_array_equal(covered(both["target"]), expected)
  assert len({json.dumps(line) for line in (both, none)}) == 2


def test_an_object_of_two_targets_is_one_instance(tmp_path):
  other = [box(30, 2, 8, 30)]
  content = {
    "images": [image(0, "both"), image(1, "left")],
    "annotations": [annotation(0, 0), annotation(1, 0, segmentation=other), annotation(2, 1)],
  }
  both, left = convert(tmp_path, content, "--with_instances")
  assert len(both["target"]) == 2
  assert [mask["polygons"] for mask in both["instances"]] == [[box(5, 6, 10, 12)], other]
  assert left["instances"] == both["instances"]


def test_equal_captions_of_two_objects_stay_two_refs(tmp_path):
  content = {
    "images": [image(0, "the cup"), image(1, "the cup")],
    "annotations": [annotation(0, 0), annotation(1, 1, segmentation=[box(30, 2, 8, 30)])],
  }
  first, second = convert(tmp_path, content)
  assert covered(first["target"]).sum() == 10 * 12
  assert covered(second["target"]).sum() == 8 * 30


def test_masks_come_from_cocos_file_by_the_original_id(tmp_path):
  content = {"images": [image(0, "red")], "annotations": [annotation(0, 0, original_id=900)]}
  del content["annotations"][0]["segmentation"]
  coco = {
    "images": [{"id": 42, "file_name": PHOTO, "height": HEIGHT, "width": WIDTH}],
    "annotations": [
      {
        "id": 900,
        "image_id": 42,
        "category_id": 1,
        "bbox": [5, 6, 10, 12],
        "segmentation": [[5, 6, 15, 6, 5, 18]],
      }
    ],
  }
  instances = tmp_path / "instances.json"

  def read():
    instances.write_text(json.dumps(coco))
    return convert(tmp_path, content, "--annotations", str(instances))

  (line,) = read()
  assert line["target"] == {"polygons": [[5, 6, 15, 6, 5, 18]]}
  coco["annotations"][0]["bbox"] = [9, 6, 10, 12]
  with pytest.raises(InputError, match=r"box \[5.0, 6.0, .* differs from that of annotation 900"):
    read()
  coco["annotations"][0]["bbox"] = [5, 6, 10, 12]
  coco["images"][0]["height"] = HEIGHT + 1
  with pytest.raises(InputError, match=f"is 50 x 40 here, but 50 x 41 in {instances}"):
    read()
  coco["images"][0] |= {"file_name": PHOTO.replace("42", "43"), "height": HEIGHT}
  with pytest.raises(InputError, match=r"belongs to .*000043.jpg in .*, not to .*42.jpg"):
    read()
  coco["annotations"][0]["id"] = 901
  with pytest.raises(InputError, match="original_id 900 is not in "):
    read()


def test_what_is_left_out_is_counted(tmp_path, capsys):
  boxed = annotation(2, 2)
  del boxed["segmentation"]
  content = {
    "images": [
      image(0, "good"),
      image(1, "lost"),
      image(2, "boxed"),
      image(3, " "),
      image(4, "dogs and cats"),
      image(5, "nothing", dataset_name="other"),
    ],
    "annotations": [
      annotation(0, 0),
      boxed,
      annotation(3, 3),
      annotation(4, 4, tokens_positive=[[0, 4]]),
      annotation(5, 4, tokens_positive=[[9, 13]]),
      annotation(6, 99),
    ],
  }
  lines = convert(tmp_path, content)
  assert [line["sentences"] for line in lines] == [["good"], ["nothing"]]
  assert lines[1]["target"] is None
  out = capsys.readouterr().out
  for reason in (
    "skipped: caption without an annotation (1: image 1)",
    "skipped: box without a mask (add COCO's masks with --annotations INSTANCES.json, "
    "or use --boxes) (1: image 2)",
    "skipped: row of images without a caption (1: image 3)",
    "skipped: caption whose annotations belong to different words, not one target (1: ",
    "skipped: annotation of an image that is not in the file (1: image 99)",
    "note: caption without an annotation, read as having no target (1: image 5)",
  ):
    assert reason in out
  lines = convert(tmp_path, content, "--boxes")
  assert covered(lines[1]["target"]).sum() == 10 * 12


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"images": [image(0, "a"), image(0, "b")]}, "images row 2: duplicate id 0"),
    ({"images": [image(0, "a", height=0)]}, "images row 1: height and width must be"),
    ({"images": [image(None, "a")]}, "images row 1: id is missing"),
    ({"images": [image(0, "a") | {"caption": 5}]}, "no row of `images` has a `caption`"),
    ({"annotations": [annotation(0, 0), grec(1, 0)]}, "has both an annotation marked `empty`"),
    ({"annotations": []}, "no expression could be converted: skipped: caption without an ann"),
    (
      {"annotations": [annotation(0, 0, segmentation=[[1, 2, 9]])]},
      "no expression could be converted: skipped: invalid segmentation",
    ),
  ],
)
def test_errors_name_the_row(tmp_path, change, message):
  content = {"images": [image(0, "the cup")], "annotations": [annotation(0, 0)]} | change
  with pytest.raises(InputError, match=message) as caught:
    convert(tmp_path, content)
  assert str(tmp_path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_captions_of_another_tool_are_not_taken_for_expressions(tmp_path):
  plain = {key: image(0, "a street")[key] for key in ("id", "file_name", "height", "width")}
  row = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [box(5, 6, 10, 12)]}
  content = {"images": [plain | {"caption": "a street"}], "annotations": [row]}
  with pytest.raises(InputError, match=r"if each row of `images` is an expression.*--from mdetr"):
    convert(tmp_path, content, export_format="coco")
  assert convert(tmp_path, content)[0]["sentences"] == ["a street"]


@st.composite
def files(draw):
  """Returns a file's content in random order, and the pixels of each caption."""
  count = draw(st.integers(1, 6))
  images, annotations, expected = [], [], {}
  for number in range(count):
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(draw(st.integers(0, 3))):
      x, y = draw(st.integers(0, WIDTH - 2)), draw(st.integers(0, HEIGHT - 2))
      # One pixel at the origin would look like shares of the sides.
      width, height = draw(st.integers(2, WIDTH - x)), draw(st.integers(2, HEIGHT - y))
      pixels[y : y + height, x : x + width] = True
      shape = [box(x, y, width, height)]
      if draw(st.booleans()):
        (shape,) = coco_mask.frPyObjects(shape, HEIGHT, WIDTH)
        shape = shape | {"counts": shape["counts"].decode()}
      annotations.append(annotation(len(annotations), number, segmentation=shape))
    images.append(image(number, f"caption {number}", dataset_name="grefcoco"))
    expected[f"caption {number}"] = pixels
  shuffled = draw(st.permutations(images)), draw(st.permutations(annotations))
  return {"images": shuffled[0], "annotations": shuffled[1]}, expected


@settings(max_examples=60, deadline=None)
@given(files())
def test_whatever_the_order_each_caption_has_its_own_pixels(sound):
  content, expected = sound
  regions = mdetr.read_content(content, "f.json", collect.Options()).regions
  found = {}
  for line in collect.make_lines(regions, {PHOTO: PHOTO}, {}, False):
    for sentence in line["sentences"]:
      assert sentence not in found
      found[sentence] = covered(line["target"])
  assert sorted(found) == sorted(expected)
  for caption, pixels in expected.items():
    np.testing.assert_array_equal(found[caption], pixels)


def test_damaged_files_are_read_or_refused():
  content = {
    "images": [image(0, "a"), image(1, "b", dataset_name="grefcoco")],
    "annotations": [annotation(0, 0), grec(1, 1)],
  }
  for where, damaged in damaged_json.variants(content, every=3):
    try:
      export = mdetr.read_content(damaged, "f.json", collect.Options())
      list(collect.make_lines(export.regions, {r.image: r.image for r in export.regions}, {}, True))
    except InputError as error:
      assert "\n" not in str(error), where
