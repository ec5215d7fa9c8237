"""What the tools' own packages write in their formats comes back pixel for pixel.

Datumaro and Supervisely's SDK need an older Pillow, and the others bring Qt or PyTorch, so `make
extras` installs none of them; these tests run where they are installed.
"""

import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from custom_files import write_photo
from pycocotools import mask as coco_mask

from input_pipeline.custom import command, masks
from input_pipeline.proposers.results import ResultsProposer

pytestmark = pytest.mark.extras

HEIGHT, WIDTH = 60, 80
POLYGONS = {
  "the square": [(5, 6), (25, 6), (25, 26), (5, 26)],
  "das Dreieck, rot": [(30, 10), (60, 10), (45, 40)],
  "true": [(62, 41), (79, 41), (79, 59), (70, 59)],
  "0012": [(1, 50), (20, 50), (20, 59)],
}


def drawn_masks() -> dict[str, np.ndarray]:
  """Returns a ring, an object of two parts, a single pixel and noise up to the corners."""
  ring, two, pixel = np.zeros((3, HEIGHT, WIDTH), bool)
  ring[30:50, 40:60] = True
  ring[35:45, 45:55] = False
  two[2:10, 50:60] = two[2:10, 65:75] = True
  pixel[55, 70] = True
  noise = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
  noise[0, 0] = noise[-1, -1] = True
  return {"the ring": ring, "two parts": two, "a pixel": pixel, "noise": noise}


def pixels_of(polygon: Any) -> np.ndarray:
  """Returns the pixels of a polygon by pycocotools."""
  runs: Any = coco_mask.frPyObjects([[float(v) for p in polygon for v in p]], HEIGHT, WIDTH)
  return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def convert(folder: pathlib.Path, format_name: str, export: Any, *options: str) -> dict[str, Any]:
  """Returns the pixels of the targets by their expressions."""
  out = folder / "mine.jsonl"
  arguments = ["--images", str(folder), "--out", str(out), "--overwrite", *options]
  command.main(["convert", "--from", format_name, str(export), *arguments])
  found = {}
  for line in map(json.loads, out.read_text(encoding="utf-8").splitlines()):
    parts = line["target"] if isinstance(line["target"], list) else [line["target"]]
    pixels = np.logical_or.reduce([masks.rasterise(part, HEIGHT, WIDTH) for part in parts])
    found |= dict.fromkeys(line["sentences"], pixels)
  return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  """Asserts that the same texts have the same pixels."""
  assert set(found) == set(expected)
  for text, mask in expected.items():
    assert np.array_equal(found[text], mask), text


def drawn() -> dict[str, np.ndarray]:
  """Returns the pixels of all objects by their texts."""
  return {text: pixels_of(polygon) for text, polygon in POLYGONS.items()} | drawn_masks()


def test_labelme_writes(tmp_path: pathlib.Path):
  label_file = pytest.importorskip("labelme._label_file")
  from labelme import utils  # pyright: ignore[reportMissingImports]

  write_photo(tmp_path / "a.png", (HEIGHT, WIDTH))
  base: dict[str, Any] = {"label": "thing", "group_id": None, "flags": {}, "mask": None}
  shapes = [
    base | {"description": text, "shape_type": "polygon", "points": polygon}
    for text, polygon in POLYGONS.items()
  ]
  for text, mask in drawn_masks().items():
    rows, columns = mask.nonzero()
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
    part = mask[top : bottom + 1, left : right + 1]
    shapes.append(
      base
      | {
        "description": text,
        "shape_type": "mask",
        "points": [[int(left), int(top)], [int(right), int(bottom)]],
        "mask": utils.img_arr_to_b64(part.astype(np.uint8)),
      }
    )
  label_file.write_label_file(
    str(tmp_path / "a.json"),
    shapes=shapes,
    image_path="a.png",
    image_height=HEIGHT,
    image_width=WIDTH,
    image_data=(tmp_path / "a.png").read_bytes(),
  )
  assert_same(convert(tmp_path, "labelme", tmp_path / "a.json"), drawn())


def datumaro_items(path: pathlib.Path) -> Any:
  """Returns a data set of Datumaro with all objects."""
  dm = pytest.importorskip("datumaro")
  write_photo(path, (HEIGHT, WIDTH))
  numbers = itertools.count(1)
  annotations: list[Any] = [
    dm.Polygon(
      [float(v) for p in polygon for v in p],
      label=0,
      id=next(numbers),
      attributes={"caption": text},
    )
    for text, polygon in POLYGONS.items()
  ]
  annotations += [
    dm.Mask(mask, label=0, id=next(numbers), attributes={"caption": text})
    for text, mask in drawn_masks().items()
  ]
  # Numbers of their own, so that no two are one object.
  for annotation in annotations:
    annotation.group = annotation.id
  image = dm.Image.from_file(path=str(path), size=(HEIGHT, WIDTH))
  item = dm.DatasetItem("a", subset="train", media=image, annotations=annotations)
  labels = dm.LabelCategories()
  labels.add("thing", attributes={"caption"})
  return dm.Dataset.from_iterable([item], categories={dm.AnnotationType.label: labels})


def test_datumaro_writes_its_own_format(tmp_path: pathlib.Path):
  datumaro_items(tmp_path / "a.png").export(str(tmp_path / "export"), "datumaro")
  assert_same(convert(tmp_path, "datumaro", tmp_path / "export/annotations/train.json"), drawn())


def test_datumaro_writes_its_own_format_with_photos(tmp_path: pathlib.Path):
  data = datumaro_items(tmp_path / "a.png")
  data.export(str(tmp_path / "b/export"), "datumaro", save_media=True)
  assert_same(convert(tmp_path / "b", "datumaro", tmp_path / "b/export"), drawn())


def test_datumaro_writes_cvat_s_xml(tmp_path: pathlib.Path):
  datumaro_items(tmp_path / "a.png").export(str(tmp_path / "export"), "cvat")
  (path,) = (tmp_path / "export").glob("*.xml")
  assert_same(convert(tmp_path, "cvat", path), drawn())


def test_datumaro_writes_coco(tmp_path: pathlib.Path):
  datumaro_items(tmp_path / "a.png").export(str(tmp_path / "export"), "coco_instances")
  path = tmp_path / "export/annotations/instances_train.json"
  assert_same(convert(tmp_path, "coco", path), drawn())


def test_cvat_s_sdk_encodes_masks(tmp_path: pathlib.Path):
  sdk_masks = pytest.importorskip("cvat_sdk.masks")
  write_photo(tmp_path / "a.png", (HEIGHT, WIDTH))
  shapes = ""
  for text, mask in drawn_masks().items():
    *runs, left, top, right, bottom = sdk_masks.encode_mask(mask)
    shapes += (
      f'<mask label="thing" source="manual" occluded="0" rle="{", ".join(map(str, runs))}" '
      f'left="{left}" top="{top}" width="{right - left + 1}" height="{bottom - top + 1}" '
      f'z_order="0"><attribute name="caption">{text}</attribute></mask>'
    )
  (tmp_path / "annotations.xml").write_text(
    f'<annotations><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    "</annotations>"
  )
  assert_same(convert(tmp_path, "cvat", tmp_path / "annotations.xml"), drawn_masks())


def test_ultralytics_writes_yolo_from_coco(tmp_path: pathlib.Path):
  converter = pytest.importorskip("ultralytics.data.converter")
  two = [[(30, 45), (38, 45), (38, 55), (30, 55)], [(45, 45), (55, 45), (50, 58)]]
  objects = {text: [polygon] for text, polygon in POLYGONS.items()} | {"two parts": two}
  annotations = []
  for number, parts in enumerate(objects.values(), 1):
    flat = [[v for p in polygon for v in p] for polygon in parts]
    annotations.append(
      {"id": number, "image_id": 1, "category_id": number, "iscrowd": 0, "segmentation": flat}
      | {"bbox": [1, 1, 5, 5]}
    )
  image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
  (tmp_path / "coco").mkdir()
  (tmp_path / "coco/instances_train.json").write_text(
    json.dumps({"images": [image], "annotations": annotations})
  )
  converter.convert_coco(
    str(tmp_path / "coco"), str(tmp_path / "yolo"), use_segments=True, cls91to80=False
  )
  (tmp_path / "yolo/data.yaml").write_text(json.dumps({"names": list(objects)}))
  write_photo(tmp_path / "yolo/images/train/a.png", (HEIGHT, WIDTH))
  found = convert(tmp_path, "yolo", tmp_path / "yolo", "--text", "category")
  expected = {text: pixels_of(polygon) for text, polygon in POLYGONS.items()}
  assert_same(found, expected | {"two parts": pixels_of(two[0]) | pixels_of(two[1])})


def test_supervisely_writes(tmp_path: pathlib.Path):
  sly = pytest.importorskip("supervisely")
  meta = sly.TagMeta("caption", sly.TagValueType.ANY_STRING)
  labels = []
  for text, polygon in POLYGONS.items():
    exterior = [sly.PointLocation(row=y, col=x) for x, y in polygon]
    kind = sly.ObjClass("thing", sly.Polygon)
    tags = sly.TagCollection([sly.Tag(meta, value=text)])
    labels.append(sly.Label(sly.Polygon(exterior), kind, tags=tags))
  hole = [sly.PointLocation(row=y, col=x) for x, y in ((10, 10), (20, 10), (20, 20))]
  square = [sly.PointLocation(row=y, col=x) for x, y in POLYGONS["the square"]]
  ring = sly.Polygon(square, [hole])
  labels.append(sly.Label(ring, sly.ObjClass("thing", sly.Polygon), description="a hole"))
  for text, mask in drawn_masks().items():
    kind = sly.ObjClass("blob", sly.Bitmap)
    labels.append(sly.Label(sly.Bitmap(mask), kind, description=text))
  annotation = sly.Annotation((HEIGHT, WIDTH), labels)
  path = tmp_path / "ds/ann/a.png.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(annotation.to_json()))
  write_photo(tmp_path / "ds/img/a.png", (HEIGHT, WIDTH))
  found = convert(tmp_path, "supervisely", tmp_path, "--text", "caption", "--text", "description")
  with_hole = pixels_of(POLYGONS["the square"]) & ~pixels_of(((10, 10), (20, 10), (20, 20)))
  assert_same(found, drawn() | {"a hole": with_hole})


@pytest.mark.parametrize("name", ("the_cup", "COCO_val2014_000000000042", "000000000042"))
def test_ultralytics_writes_detections(tmp_path: pathlib.Path, name: str):
  validation = pytest.importorskip("ultralytics.models.yolo.segment.val")
  import torch  # pyright: ignore[reportMissingImports]

  objects = np.stack(list(drawn_masks().values()))
  count = len(objects)
  validator = object.__new__(validation.SegmentationValidator)
  validator.jdict, validator.class_map = [], list(range(1, 81))
  predictions = {
    "masks": torch.from_numpy(objects.astype(np.uint8)),
    "bboxes": torch.ones((count, 4)),
    "conf": torch.arange(count, 0, -1) / 10,
    "cls": torch.zeros(count),
  }
  validator.pred_to_json(predictions, {"im_file": f"photos/{name}.jpg"})
  (tmp_path / "predictions.json").write_text(json.dumps(validator.jdict))
  proposer = ResultsProposer(str(tmp_path / "predictions.json"))
  image_id = proposer.find_image(f"val/{name}.jpg")
  photo = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  (instances,) = proposer.propose([photo], [image_id])
  assert np.array_equal(instances.masks, objects)
