"""Which proposals are kept, compared with pycocotools' IoU and a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import ranking
from input_pipeline.proposers.registry import open_proposer
from input_pipeline.proposers.selection import Selection, select


def _iou(a, b):
  runs = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (a, b)]
  return coco_mask.iou(runs[:1], runs[1:], [False])[0, 0]


def _plain(masks, scores, selection):
  """Returns the indices of the kept masks by definition."""
  areas = [int(mask.sum()) for mask in masks]
  kept: list[int] = []
  for k in sorted(range(len(masks)), key=lambda k: (-scores[k], -areas[k], k)):
    too_small = areas[k] == 0 or areas[k] / masks[k].size < selection.min_area
    if too_small or len(kept) == selection.max_instances:
      continue
    if all(_iou(masks[k], masks[other]) <= selection.nms_iou for other in kept):
      kept.append(k)
  return kept


@st.composite
def proposals(draw):
  """Returns rectangles, many of them similar, with few distinct scores."""
  height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
  count = draw(st.integers(0, 12))
  masks = np.zeros((count, height, width), bool)
  for mask in masks:
    top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
    mask[top : top + draw(st.integers(0, 12)), left : left + draw(st.integers(0, 12))] = True
  scores = [draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])) for _ in range(count)]
  return records.Instances(
    masks, np.array(scores, np.float32), np.arange(count, dtype=np.int32), "test"
  )


@settings(max_examples=200)
@given(
  proposals(),
  st.builds(
    Selection,
    max_instances=st.integers(1, 6),
    min_area=st.sampled_from([0.0, 0.1, 0.5]),
    nms_iou=st.sampled_from([0.3, 0.5, 0.9, 1.0]),
  ),
)
def test_what_is_kept_is_what_a_plain_loop_keeps(given_instances, selection):
  kept = select(given_instances, selection, "coco")
  expected = _plain(given_instances.masks, given_instances.scores, selection)
  assert kept.categories.tolist() == expected  # the number of each, as it was given
  np.testing.assert_array_equal(kept.masks, given_instances.masks[expected])
  np.testing.assert_array_equal(kept.scores, given_instances.scores[expected])
  assert (kept.source, kept.trained_on) == ("test", "coco")


def test_the_order_of_proposals_of_different_scores_changes_nothing():
  rng = np.random.default_rng(0)
  masks, scores = rng.random((20, 9, 11)) < 0.5, rng.permutation(20).astype(np.float32)
  categories = np.arange(20, dtype=np.int32)
  shuffled = rng.permutation(20)
  first = select(records.Instances(masks, scores, categories, "a"), Selection(max_instances=5))
  other = select(
    records.Instances(masks[shuffled], scores[shuffled], categories[shuffled], "a"),
    Selection(max_instances=5),
  )
  assert first.categories.tolist() == other.categories.tolist()
  assert len(first.scores) == 5


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"max_instances": 0}, "--max_instances 0"),
    ({"max_instances": 65}, "--max_instances 65"),
    ({"min_area": 1.0}, "--min_area 1"),
    ({"min_area": -0.1}, "--min_area -0.1"),
    ({"nms_iou": 0.0}, "--nms_iou 0"),
    ({"nms_iou": float("nan")}, "--nms_iou nan"),
  ],
)
def test_values_out_of_range_are_named(values, message):
  with pytest.raises(InputError, match=message):
    Selection(**values)


def _plain_order(masks, scores):
  """Returns the order by definition, with scipy's morphology."""
  window, merits = np.ones((3, 3)), []
  for mask, score in zip(masks, scores, strict=True):
    eroded = ndimage.binary_erosion(mask, window, border_value=1).sum()
    dilated = ndimage.binary_dilation(mask, window).sum()
    merits.append(float(score) * (eroded / max(dilated, 1)) * float(mask.sum()) ** 0.25)
  order: list[int] = []
  while len(order) < len(masks):
    rest = [k for k in range(len(masks)) if k not in order]
    likeness = [
      max(
        ((masks[k] & masks[j]).sum() / max((masks[k] | masks[j]).sum(), 1) for j in order),
        default=0.0,
      )
      for k in rest
    ]
    gains = [merits[k] * (1 - like) for k, like in zip(rest, likeness, strict=True)]
    order.append(rest[int(np.argmax(gains))])
  return order


@settings(max_examples=100)
@given(proposals())
def test_the_order_by_distinction_is_that_of_a_plain_loop(given_instances):
  masks, scores = given_instances.masks, given_instances.scores
  assert list(ranking.by_distinction(masks, scores)) == _plain_order(masks, scores)


def test_an_object_comes_before_near_copies_of_a_better_one():
  masks = np.zeros((5, 60, 60), bool)
  masks[0, 5:35, 5:35] = True
  for k in range(1, 4):
    masks[k] = masks[0]
    masks[k, 5 : 5 + 2 * k] = False
  masks[4, 45:55, 45:55] = True
  instances = records.Instances(
    masks, np.linspace(0.9, 0.8, 5, dtype=np.float32), np.arange(5, dtype=np.int32), "test"
  )
  kept = {rank: select(instances, Selection(2, rank=rank)) for rank in ranking.RANKS}
  assert kept["score"].categories.tolist() == [0, 2]  # 1 is a duplicate
  assert kept["distinct"].categories.tolist() == [0, 4]
  assert kept["distinct"].scores[1] == instances.scores[4]


def test_large_masks_are_ranked_by_fewer_pixels_in_the_same_order():
  rng = np.random.default_rng(0)
  masks = np.zeros((30, 400, 500), bool)
  for mask in masks:
    top, left, height, width = rng.integers((0, 0, 40, 40), (300, 400, 100, 100))
    mask[top : top + height, left : left + width] = True
  scores = rng.uniform(0.5, 1, 30).astype(np.float32)
  ranked = [list(ranking.by_distinction(m, scores))[:8] for m in (masks, masks[:, ::3, ::3])]
  assert ranked[0] == ranked[1]


class WrongSize:
  """A detector that forgets to resize its masks to the image's size."""

  def __init__(self, argument):
    self._side = int(argument)

  def propose(self, images, image_ids):
    shape = (1, self._side, self._side)
    first = np.ones(1, np.float32)
    return [
      records.Instances(np.ones(shape, bool), first, np.zeros(1, np.int32), "x") for _ in images
    ]


def test_any_class_can_be_a_proposer_and_its_masks_are_checked():
  proposer = open_proposer(f"{__name__}.WrongSize:7")
  (proposals,) = proposer.propose([np.zeros((7, 7, 3), np.uint8)], [5])
  assert proposals.masks.all()
  assert proposals.trained_on == "unknown"
  with pytest.raises(
    InputError, match=r"proposals for image 5 are 7 x 7 pixels, but the image is 9 x 8"
  ):
    proposer.propose([np.zeros((8, 9, 3), np.uint8)], [5])


@pytest.mark.parametrize("spec", ["nowhere.Detector", f"{__name__}.Missing", "json.JSONDecoder:x"])
def test_an_invalid_proposer_is_named(spec):
  with pytest.raises(InputError, match=f"--instances {spec}"):
    open_proposer(spec)
