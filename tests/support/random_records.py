"""Records of random instances and refs, and their best IoU by pycocotools."""

import io

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from input_pipeline import records
from input_pipeline.proposals import report
from input_pipeline.proposals.report import Gallery

THRESHOLDS = (0.5, 0.75, 0.9)
SIZES = ("small", "medium", "large")


def make_instances(masks: np.ndarray, source: str = "coco") -> records.Instances:
  count = len(masks)
  scores, categories = np.ones(count, np.float32), np.zeros(count, np.int32)
  return records.Instances(masks, scores, categories, source, "ground-truth")


def make_record(
  image_id: int,
  instances: np.ndarray,
  targets: np.ndarray,
  sentence: str = "that one",
  source: str = "coco",
) -> records.ImageRecord:
  """Returns a gray image with these masks."""
  height, width = targets.shape[1:]
  buffer = io.BytesIO()
  Image.new("RGB", (width, height), "grey").save(buffer, "PNG")
  refs = tuple(
    records.Ref(100 * image_id + i, (i,), target, (sentence,)) for i, target in enumerate(targets)
  )
  return records.ImageRecord(
    buffer.getvalue(),
    image_id,
    f"{image_id}.png",
    height,
    width,
    make_instances(instances, source),
    refs,
  )


def make_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
  """Returns boxes of all sizes with holes in them."""
  masks = np.zeros((count, height, width), bool)
  for mask in masks:
    top, left = rng.integers(height - 8), rng.integers(width - 8)
    mask[top : rng.integers(top + 8, height + 1), left : rng.integers(left + 8, width + 1)] = True
  return masks & (rng.random(masks.shape) < 0.97)


def random_records(count: int, seed: int = 0) -> list[records.ImageRecord]:
  """Images whose targets are their instances, some of them damaged.

  Some images have no instance.
  """
  rng = np.random.default_rng(seed)
  made = []
  for image_id in range(count):
    height, width = rng.integers(160, 300, 2)
    instances = make_boxes(rng, int(rng.integers(0, 20)), height, width)
    targets = make_boxes(rng, int(rng.integers(1, 4)), height, width)
    for target in targets[: len(instances)]:
      mask = rng.choice(instances)
      target[:] = mask & (rng.random(mask.shape) < rng.choice([0.6, 0.8, 1.0]))
    made.append(make_record(image_id, instances, targets))
  return made


def encode_masks(masks: np.ndarray) -> list:
  return [coco_masks.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def best_by_pycocotools(record: records.ImageRecord) -> list[tuple[float, int]]:
  """Yields the best IoU and the area of each target, by pycocotools."""
  targets, instances = (
    encode_masks([ref.target for ref in record.refs]),
    encode_masks(record.instances.masks),
  )
  areas = [int(area) for area in coco_masks.area(targets)]
  if not instances:
    return [(0.0, area) for area in areas]
  ious = coco_masks.iou(instances, targets, [0] * len(targets))
  return [(float(max(ious[:, i])), area) for i, area in enumerate(areas)]


def measure_records(rows: list[records.ImageRecord], gallery: Gallery | None = None) -> dict:
  fields = map(records.encode_record, rows)
  return report.measure("refcoco_unc/val", fields, gallery or Gallery()).metrics()


def size_by_area(area: int) -> str:
  return "small" if area < 32 * 32 else "medium" if area < 96 * 96 else "large"
