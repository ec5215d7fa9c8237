"""Small folders of custom data: images of noise, and lines."""

import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 20, 30
SQUARE = {"polygons": [[2, 3, 12, 3, 12, 13, 2, 13]]}


def write_photo(
  path: pathlib.Path, size: tuple[int, int] = (HEIGHT, WIDTH), seed: int = 0, **options: Any
) -> np.ndarray:
  """Writes an image of noise; `options` are Pillow's."""
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)
  return pixels


def line(image: str = "a.png", **fields: Any) -> dict[str, Any]:
  """Returns a valid line."""
  return {"image": image, "sentences": ["the square"], "target": SQUARE} | fields


def write_lines(path: pathlib.Path, *rows: Any) -> str:
  """Writes lines: objects as JSON, strings unchanged."""
  texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text("\n".join(texts) + "\n", encoding="utf-8")
  return str(path)


def write_coco(path: pathlib.Path, file_name: str = "a.png") -> list[dict[str, Any]]:
  """Writes a COCO file with two annotations of one image, and returns the annotations."""
  rows: list[dict[str, Any]] = [
    {"id": 7, "image_id": 1, "category_id": 2, "segmentation": SQUARE["polygons"]},
    {"id": 8, "image_id": 1, "category_id": 2, "segmentation": [[15, 3, 25, 3, 25, 13]]},
  ]
  image = {"id": 1, "file_name": file_name, "height": HEIGHT, "width": WIDTH}
  path.write_text(
    json.dumps({"images": [image], "annotations": rows, "categories": [{"id": 2, "name": "thing"}]})
  )
  return rows


def covered(target: Any, height: int, width: int) -> np.ndarray:
  """Returns the pixels of a target by pycocotools."""
  masks = [] if target is None else target if isinstance(target, list) else [target]
  runs: list[Any] = []
  for mask in masks:
    if isinstance(mask.get("rle", {}).get("counts"), str):
      runs.append(mask["rle"] | {"counts": mask["rle"]["counts"].encode()})
    elif "rle" in mask:
      runs.append(coco_mask.frPyObjects(mask["rle"], height, width))
    else:
      runs += coco_mask.frPyObjects(mask["polygons"], height, width)
  empty = np.zeros((height, width), bool)
  return coco_mask.decode(coco_mask.merge(runs)).astype(bool) if runs else empty
