"""The oracle: its metrics, and the images that the report draws."""

import dataclasses
import re
import weakref

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from random_records import (
  SIZES,
  THRESHOLDS,
  best_by_pycocotools,
  encode_masks,
  make_boxes,
  make_record,
  measure_records,
  random_records,
  size_by_area,
)

from input_pipeline import records
from input_pipeline.common import drawing
from input_pipeline.proposals import report
from input_pipeline.proposals.oracle import Match, match_refs
from input_pipeline.proposals.report import Gallery, GalleryItem


def test_the_metrics_are_those_of_a_loop_over_pycocotools():
  rows = random_records(60)
  metrics = measure_records(rows)
  best = [pair for record in rows for pair in best_by_pycocotools(record)]
  for group in ("all", *SIZES):
    ious = [iou for iou, area in best if group in ("all", size_by_area(area))]
    assert metrics[group]["refs"] == len(ious) > 5
    assert metrics[group]["mIoU"] == pytest.approx(sum(ious) / len(ious))
    for threshold in THRESHOLDS:
      reached = sum(iou >= threshold for iou in ious) / len(ious)
      assert metrics[group][f"P@{threshold}"] == pytest.approx(reached)
  for count in (8, 16, 32, 64):
    first = [best_by_pycocotools(keep_first(record, count)) for record in rows]
    found = [iou >= 0.5 for pairs in first for iou, _ in pairs]
    assert metrics["all"][f"R@{count}"] == pytest.approx(sum(found) / len(found))
  assert len({round(metrics["all"][f"P@{threshold}"], 3) for threshold in THRESHOLDS}) == 3
  assert metrics["images"] == 60
  counts = [len(record.instances.masks) for record in rows]
  assert metrics["instances_per_image"] == pytest.approx(sum(counts) / 60)
  assert metrics["images_without_instances"] == counts.count(0) > 0


def keep_first(record: records.ImageRecord, count: int) -> records.ImageRecord:
  instances = record.instances
  columns = ("masks", "scores", "categories")
  first = {name: getattr(instances, name)[:count] for name in columns}
  return dataclasses.replace(record, instances=dataclasses.replace(instances, **first))


def test_the_instance_named_is_the_one_that_fits_best():
  for record in random_records(20, seed=1):
    targets = encode_masks([ref.target for ref in record.refs])
    ious = coco_masks.iou(encode_masks(record.instances.masks), targets, [0] * len(targets))
    for i, match in enumerate(match_refs(record)):
      if match.instance is None:
        assert not len(ious) or not ious[:, i].any()
      else:
        assert ious[match.instance, i] == pytest.approx(ious[:, i].max())


def test_targets_that_are_instances_reach_1_in_everything():
  rng = np.random.default_rng(0)
  rows = []
  for image_id in range(5):
    masks = make_boxes(rng, 18, 120, 140)
    rows.append(make_record(image_id, masks, masks[[17, 3]]))
  metrics = measure_records(rows)
  # In every image one of the two is beyond the first 16.
  recall = {"R@8": 0.5, "R@16": 0.5, "R@32": 1.0, "R@64": 1.0}
  expected = {"refs": 10, "mIoU": 1.0, "P@0.5": 1.0, "P@0.75": 1.0, "P@0.9": 1.0}
  assert metrics["all"] == expected | recall


def test_a_target_without_instances_counts_0():
  masks = make_boxes(np.random.default_rng(0), 1, 50, 60)
  metrics = measure_records([make_record(1, masks, masks), make_record(2, masks[:0], masks)])
  assert metrics["all"].pop("refs") == 2
  assert set(metrics["all"].values()) == {0.5}
  assert (metrics["images_without_instances"], metrics["instances_per_image"]) == (1, 0.5)


def test_a_precision_includes_its_border():
  target = np.zeros((1, 10, 20), bool)
  target[0, :, :10] = True
  instance = target.copy()
  instance[0, 9] = False  # 90 of 100 pixels
  metrics = measure_records([make_record(1, instance, target)])["all"]
  assert (metrics["mIoU"], metrics["P@0.9"]) == (0.9, 1.0)


def test_a_ref_without_a_target_is_left_out():
  masks = make_boxes(np.random.default_rng(0), 2, 50, 60)
  targets = np.stack([masks[0], np.zeros_like(masks[0])])
  gallery = Gallery()
  metrics = measure_records(
    [make_record(1, masks, targets), make_record(2, masks, targets[1:])], gallery
  )
  assert (metrics["all"]["refs"], metrics["all"]["mIoU"]) == (1, 1.0)
  assert (metrics["images"], metrics["refs_without_target"]) == (2, 2)
  assert [picture.ref for picture in gallery.worst() + gallery.random()] == [0, 0]


@pytest.mark.parametrize(
  ("area", "size"),
  [
    (1, "small"),
    (32 * 32 - 1, "small"),
    (32 * 32, "medium"),
    (96 * 96 - 1, "medium"),
    (96 * 96, "large"),
    (10**9, "large"),
  ],
)
def test_the_sizes_are_those_of_coco(area, size):
  assert records.object_size(area) == size


def test_a_size_that_no_target_has_gives_no_metrics():
  masks = np.ones((1, 50, 60), bool)
  metrics = measure_records([make_record(1, masks, masks)])
  for size in ("small", "large"):
    assert metrics[size].pop("refs") == 0
    assert set(metrics[size].values()) == {None}
  assert metrics["medium"]["refs"] == 1


def test_masks_of_several_origins_are_counted_for_each():
  masks = np.ones((1, 5, 6), bool)
  metrics = measure_records([make_record(i, masks, masks, source="abb"[i]) for i in range(3)])
  assert metrics["origins"] == [
    {"instances_from": "b", "instances_trained_on": "ground-truth", "images": 2},
    {"instances_from": "a", "instances_trained_on": "ground-truth", "images": 1},
  ]


# Drawing.


def _matches(*ious: float) -> list[Match]:
  return [Match(iou, 0, 9) for iou in ious]


def _drawn(pictures: list[GalleryItem]) -> list[tuple[int, int]]:
  return [(picture.fields["image_id"], picture.ref) for picture in pictures]


def test_the_worst_are_the_worst_and_of_equals_the_first():
  rng = np.random.default_rng(0)
  ious = rng.integers(0, 5, (200, 3)) / 4
  gallery = Gallery(20)
  for i, row in enumerate(ious):
    gallery.add("a/b", {"image_id": i}, _matches(*row))
  worst = sorted((row.min(), i, row.argmin()) for i, row in enumerate(ious))[:20]
  assert _drawn(gallery.worst()) == [(i, ref) for _, i, ref in worst]
  assert len({iou for iou, _, _ in worst}) < 20


def test_the_random_ones_are_drawn_without_regard_to_their_iou():
  good, bad = Gallery(20), Gallery(20)
  for i in range(1000):
    good.add("a/b", {"image_id": i}, _matches(1.0, 1.0))
    bad.add("a/b", {"image_id": i}, _matches(0.1 * (i % 7), 0.5))
  drawn = _drawn(good.random())
  assert drawn == _drawn(bad.random())
  images = [image for image, _ in drawn]
  assert len(set(images)) == 20
  assert {ref for _, ref in drawn} == {0, 1}
  assert min(images) < 250
  assert max(images) > 750


class _Fields(dict):
  """A dict that supports weak references."""


def test_records_that_are_not_drawn_are_not_kept():
  record = random_records(1)[0]
  watched, alive = [], []

  def stored():
    for i in range(200):
      fields = _Fields(records.encode_record(dataclasses.replace(record, image_id=i)))
      watched.append(weakref.ref(fields))
      yield fields
      alive.append(sum(reference() is not None for reference in watched))

  report.measure("a/b", stored(), Gallery(3))
  assert max(alive) <= 3 + 3 + 2


def test_every_mask_has_a_colour_the_best_a_yellow_and_the_target_a_white_outline():
  photo = np.full((60, 90, 3), 100, np.uint8)
  masks = np.zeros((3, 60, 90), bool)
  masks[0, 5:25, 5:40] = masks[1, 30:55, 5:40] = masks[2, 10:50, 50:85] = True
  drawn = drawing.instance_overlay(photo, masks, masks[1], best=2)
  white, yellow = (drawn == 255).all(-1), (drawn == drawing.SELECTED).all(-1)
  assert white.any()
  assert yellow.any()
  assert not (white & ~masks[1]).any()
  assert not (yellow & ~masks[2]).any()
  insides = {tuple(drawn[y, x]) for y, x in ((15, 20), (42, 20), (30, 67))}
  assert len(insides) == 3
  assert (100, 100, 100) not in insides
  assert tuple(drawn[2, 2]) == (100, 100, 100)
  # If the best instance is the target, both outlines are visible.
  both = drawing.instance_overlay(photo, masks, masks[2], best=2)
  assert (both == 255).all(-1).any()
  assert (both == drawing.SELECTED).all(-1).any()


def test_a_small_mask_is_seen_on_a_large_one():
  photo = np.full((60, 90, 3), 100, np.uint8)
  small, large = np.zeros((2, 60, 90), bool)
  small[20:40, 30:60], large[5:55, 5:85] = True, True
  target = np.zeros((60, 90), bool)
  alone = drawing.instance_overlay(photo, small[None], target)[30, 45].astype(int)
  drawn = drawing.instance_overlay(photo, np.stack([small, large]), target).astype(int)
  inside, around = drawn[30, 45], drawn[10, 45]
  assert abs(inside - alone).sum() < abs(inside - around).sum()


def _pictures(record: records.ImageRecord) -> list[GalleryItem]:
  """Returns an item per ref."""
  fields, matches = records.encode_record(record), match_refs(record)
  return [GalleryItem("a/b", fields, ref, match) for ref, match in enumerate(matches)]


def test_an_image_shows_the_ref_that_it_is_drawn_for():
  masks = np.zeros((2, 240, 480), bool)
  masks[0, 20:200, 20:220] = masks[1, 20:200, 260:460] = True
  for ref, picture in enumerate(_pictures(make_record(1, masks[::-1], masks))):
    drawn = report.draw(picture)
    white, yellow = (drawn == 255).all(-1), (drawn == drawing.SELECTED).all(-1)
    assert 500 < white.sum() < yellow.sum()
    assert not ((white | yellow) & ~masks[ref]).any()


def test_a_caption_says_which_mask_is_best_or_why_none_is():
  left, right = np.zeros((2, 1, 50, 60), bool)
  left[..., :30], right[..., 30:] = True, True
  both = np.concatenate([left, right])
  pictures = [
    picture
    for instances, targets in ((both, right), (left, right), (left[:0], right))
    for picture in _pictures(make_record(7, instances, targets))
  ]
  page = report.page({}, pictures, [])
  captions = re.findall(r"<figcaption><p>(.*?)</p>", page)
  assert captions == [
    "<strong>IoU 1.00</strong>, the best of 2 instances is number 2",
    "<strong>IoU 0.00</strong>, none of 1 instances overlaps the target",
    "<strong>IoU 0.00</strong>, the image has no instances",
  ]
  assert page.count("a/b, image 7, ref 700; target of 1,500 pixels (medium)") == 3
