"""A JSON export of Label Studio: regions with masks, or what is wrong with it."""

import base64
import contextlib
import io
import json
import pathlib
from collections.abc import Iterator

import numpy as np
from coco_exports import check
from PIL import Image

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import label_studio
from input_pipeline.custom.converters.collect import Export, Options

COVERED = (
  "input_pipeline/custom/converters/label_studio.py",
  "input_pipeline/custom/converters/label_studio_shapes.py",
  "input_pipeline/custom/converters/geometry.py",
)
MAX_BYTES = 4096
_OPTIONS = (Options(), Options(("category", "expr"), boxes=True, no_target="free"))


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields an export for each shape, and for each way to name the image."""
  del realdata
  mask = np.zeros((2, 3, 4), np.uint8)
  mask[0, 1, 3] = 255
  file = io.BytesIO()
  Image.fromarray(mask).save(file, "PNG")
  url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
  # 24 values of 8 bits: four zeros, then a run of 20 times 255.
  bits = f"{24:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + f"100{3:03b}{0:08b}110{19:08b}{255:08b}"
  bits += "0" * (-len(bits) % 8)
  brush = [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]
  vertices = [{"x": 1, "y": 2}, {"x": 90, "y": 2}, {"x": 90, "y": 99}]
  shapes = {
    "polygonlabels": {"points": [[1, 2], [90, 2], [90, 104]], "polygonlabels": ["Cup"]},
    "rectangle": {"x": 50, "y": 50, "width": 90, "height": 20, "rotation": 30},
    "ellipse": {"x": 50, "y": 50, "radiusX": 90, "radiusY": 20, "rotation": 30},
    "vector": {"vertices": vertices, "closed": True},
    "brushlabels": {"format": "rle", "rle": brush, "brushlabels": ["Cup"]},
    "bitmask": {"imageDataURL": url},
  }
  images = [
    {"image": "/data/upload/1/0123abcd-a.png"},
    {"thumb": "t.png", "photo": "s3://b/a.png?x=1"},
    {"image": ["a.png", "b.png"]},
    {"x": "/tasks/1/presign/?fileuri=czM6Ly9hLnBuZw=="},
    {"x": "/data/local-files/?d=a%20b.png"},
  ]
  size = {"original_width": 3, "original_height": 2, "image_rotation": 0}
  for number, (kind, value) in enumerate(shapes.items()):
    common = {"id": "r", "to_name": "image", "item_index": 0} | size
    rows = [
      common | {"type": kind, "from_name": "label", "value": value, "meta": {"text": ["n"]}},
      common | {"type": "textarea", "from_name": "expr", "value": {"text": ["x"]}},
      {"type": "textarea", "from_name": "free", "to_name": "image", "value": {"text": ["y"]}},
      {"type": "relation", "from_id": "r", "to_id": "s"},
    ]
    task = {"id": 1, "data": images[number % len(images)], "annotations": [{"result": rows}]}
    yield json.dumps([task]).encode()


def one_input(data: bytes) -> None:
  """Reads the export with and without options."""
  try:
    content = untrusted_json.loads(data, "x.json", nan_as_none=True)
  except InputError:
    return
  for options in _OPTIONS:
    with contextlib.suppress(InputError):
      check(label_studio.read_content(content, "x.json", options, Export()), options.boxes)
