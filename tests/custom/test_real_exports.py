"""Exports that the tools themselves write: what comes back is what went in, pixel for pixel.

Label Studio's SDK and FiftyOne bring too many packages for `make extras`; these tests run where
they are installed.
"""

import itertools
import json

import numpy as np
import pytest
from custom_files import write_photo
from pycocotools import mask as coco_mask

from input_pipeline.custom import command, masks, scan

HEIGHT, WIDTH = 60, 80


def drawn_masks():
  """Returns a box, a ring, an object of two parts, a disc, a single pixel and noise."""
  objects = np.zeros((6, HEIGHT, WIDTH), bool)
  objects[0, 5:25, 5:30] = True
  objects[1, 30:50, 40:60] = True
  objects[1, 35:45, 45:55] = False
  objects[2, 2:10, 50:60] = objects[2, 2:10, 65:75] = True
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  objects[3] = (rows - 40) ** 2 + (columns - 15) ** 2 < 100
  objects[4, 55, 70] = True
  objects[5] = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
  return objects


MASKS = drawn_masks()


def convert(folder, export_format, *options):
  """Returns the lines of `export.json`, after validation."""
  out = str(folder / "mine.jsonl")
  export = str(folder / "export.json")
  command.main(["convert", "--from", export_format, export, "--out", out, *options])
  assert scan.scan(out).problems == []
  return [json.loads(line) for line in (folder / "mine.jsonl").read_text().splitlines()]


def pixels(mask):
  parts = mask if isinstance(mask, list) else [mask]
  return np.logical_or.reduce([masks.rasterise(part, HEIGHT, WIDTH) for part in parts])


def by_text(lines):
  return {text: pixels(line["target"]) for line in lines for text in line["sentences"]}


def decode(segmentation):
  """Returns the mask of a segmentation as pycocotools' own COCO class does."""
  if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
    segmentation = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
  runs = coco_mask.merge(segmentation) if isinstance(segmentation, list) else segmentation
  return coco_mask.decode(runs).astype(bool)


def write_coco(folder, segmentations, **fields):
  write_photo(folder / "a.png", (HEIGHT, WIDTH))
  content = {
    "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "annotations": [
      {"id": n, "image_id": 1, "category_id": 1, "caption": f"object {n}"}
      | {"segmentation": segmentation, **fields}
      for n, segmentation in enumerate(segmentations)
    ],
    "categories": [{"id": 1, "name": "thing"}],
  }
  (folder / "export.json").write_text(json.dumps(content))


def runs_of(mask):
  """Returns run lengths as pycococreator and others make them."""
  groups = [(value, len(list(group))) for value, group in itertools.groupby(mask.ravel("F"))]
  counts = [count for _, count in groups]
  return {"counts": [0, *counts] if groups[0][0] else counts, "size": list(mask.shape)}


def test_pycocotools_run_lengths_come_back(tmp_path):
  encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in MASKS]
  write_coco(tmp_path, [runs | {"counts": runs["counts"].decode()} for runs in encoded])
  found = by_text(convert(tmp_path, "coco"))
  assert all(np.array_equal(found[f"object {n}"], mask) for n, mask in enumerate(MASKS))


def test_pycococreator_s_objects_are_no_crowds(tmp_path):
  """It writes `iscrowd: 1` with run lengths as lists."""
  write_coco(tmp_path, [runs_of(mask) for mask in MASKS], iscrowd=1)
  lines = convert(tmp_path, "coco", "--with_instances")
  found = by_text(lines)
  assert all(np.array_equal(found[f"object {n}"], mask) for n, mask in enumerate(MASKS))
  for line in lines:
    instances = [pixels(mask) for mask in line["instances"]]
    assert np.array_equal(instances, MASKS)


@pytest.mark.extras
def test_supervision_s_coco_comes_back(tmp_path):
  """It writes polygons of what has one part and no hole, and `iscrowd: 1` with run lengths else."""
  sv = pytest.importorskip("supervision")
  write_photo(tmp_path / "a.png", (HEIGHT, WIDTH))
  drawn = MASKS[[0, 1, 2, 3, 5]]
  boxes = sv.mask_to_xyxy(drawn).astype(float)
  detections = sv.Detections(xyxy=boxes, mask=drawn, class_id=np.arange(len(drawn)))
  names = [f"object {n}" for n in range(len(drawn))]
  image = str(tmp_path / "a.png")
  data = sv.DetectionDataset(classes=names, images=[image], annotations={image: detections})
  data.as_coco(images_directory_path=None, annotations_path=str(tmp_path / "export.json"))
  written = json.loads((tmp_path / "export.json").read_text())["annotations"]
  found = by_text(convert(tmp_path, "coco", "--text", "category"))
  assert len(found) == len(written) == len(drawn)
  crowds = 0
  for name, row, mask in zip(names, written, drawn, strict=True):
    assert np.array_equal(found[name], decode(row["segmentation"]))
    if row["iscrowd"]:
      crowds += 1
      assert np.array_equal(found[name], mask)
  assert crowds == 3


def label_studio_task(rows):
  task = {"id": 1, "data": {"image": "/data/upload/1/0123abcd-a.png"}}
  return [task | {"annotations": [{"id": 1, "result": rows}]}]


def row(number, kind, **value):
  size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
  names = {"id": f"region{number}", "type": kind, "from_name": kind, "to_name": "image"}
  return {**names, **size, "value": value}


@pytest.mark.extras
def test_label_studio_s_brush_comes_back(tmp_path):
  brush = pytest.importorskip("label_studio_sdk.converter.brush")
  write_photo(tmp_path / "a.png", (HEIGHT, WIDTH))
  rows = []
  for number, mask in enumerate(MASKS):
    data = brush.mask2rle(mask.astype(np.uint8) * 255)
    rows.append(row(number, "brushlabels", format="rle", rle=data, brushlabels=["thing"]))
    rows.append(row(number, "textarea", format="rle", rle=data, text=[f"object {number}"]))
  (tmp_path / "export.json").write_text(json.dumps(label_studio_task(rows)))
  found = by_text(convert(tmp_path, "label-studio"))
  assert all(np.array_equal(found[f"object {n}"], mask) for n, mask in enumerate(MASKS))


@pytest.mark.extras
def test_label_studio_s_coco_of_polygons_comes_back(tmp_path):
  converter = pytest.importorskip("label_studio_sdk.converter")
  write_photo(tmp_path / "a.png", (HEIGHT, WIDTH))
  shapes = {"cup": [[10, 10], [50, 10], [50, 60]], "mug": [[60, 50], [90, 50], [75, 90]]}
  rows = [
    row(n, "polygonlabels", points=points, closed=True, polygonlabels=[name])
    for n, (name, points) in enumerate(shapes.items())
  ]
  (tmp_path / "tasks.json").write_text(json.dumps(label_studio_task(rows)))
  labels = "".join(f'<Label value="{name}"/>' for name in shapes)
  config = (
    '<View><Image name="image" value="$image"/>'
    f'<PolygonLabels name="polygonlabels" toName="image">{labels}</PolygonLabels></View>'
  )
  tool = converter.Converter(config=config, project_dir=None, download_resources=False)
  tool.convert(str(tmp_path / "tasks.json"), str(tmp_path), "COCO", is_dir=False)
  (tmp_path / "result.json").rename(tmp_path / "export.json")
  found = by_text(convert(tmp_path, "label-studio", "--text", "category"))
  for name, points in shapes.items():
    polygon = [c for x, y in points for c in (x * WIDTH / 100, y * HEIGHT / 100)]
    assert np.array_equal(found[name], decode([polygon]))


@pytest.mark.extras
@pytest.mark.parametrize("crowd", [0, 1])
def test_fiftyone_s_coco_comes_back(tmp_path, crowd):
  """It writes polygons, or run lengths where an object has `iscrowd`."""
  fiftyone = pytest.importorskip("fiftyone")
  write_photo(tmp_path / "a.png", (HEIGHT, WIDTH))
  objects = []
  for number, mask in enumerate(MASKS[:4]):
    rows, columns = np.nonzero(mask)
    (top, bottom), (left, right) = ((x.min(), x.max() + 1) for x in (rows, columns))
    box = [left / WIDTH, top / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT]
    found = fiftyone.Detection(label="x", bounding_box=box, mask=mask[top:bottom, left:right])
    found["caption"], found["iscrowd"] = f"object {number}", crowd
    objects.append(found)
  import fiftyone.utils.coco  # pyright: ignore[reportMissingImports]

  exporter = fiftyone.utils.coco.COCODetectionDatasetExporter(
    labels_path=str(tmp_path / "export.json"), export_media=False
  )
  path = str(tmp_path / "a.png")
  with exporter:
    size = fiftyone.ImageMetadata.build_for(path)
    exporter.export_sample(path, fiftyone.Detections(detections=objects), metadata=size)
  written = json.loads((tmp_path / "export.json").read_text())["annotations"]
  found = by_text(convert(tmp_path, "coco"))
  assert len(found) == len(written) == len(objects)
  for row in written:
    assert isinstance(row["segmentation"], dict) == bool(crowd)
    assert np.array_equal(found[row["caption"]], decode(row["segmentation"]))
