"""The dialects of COCO's segmentations: the same mask in each, or an error that says why not."""

import json
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from input_pipeline.masks import segmentation
from input_pipeline.masks.segmentation import (
  CLIPPED,
  EMPTY_PART,
  TOO_FEW_POINTS,
  EmptySegmentation,
  OtherSize,
  OutsideImage,
  SegmentationError,
  read_segmentation,
)

HEIGHT, WIDTH = 30, 44


def rectangle(left, top, right, bottom):
  return [left, top, right, top, right, bottom, left, bottom]


def pixels(left, top, right, bottom) -> np.ndarray:
  mask = np.zeros((HEIGHT, WIDTH), bool)
  mask[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
  return mask


def run_lengths(mask: np.ndarray) -> list[int]:
  flat = mask.ravel(order="F")
  edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
  return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def compressed(mask: np.ndarray) -> dict:
  runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"size": list(mask.shape), "counts": runs["counts"]}


A, B = (4, 6, 20, 18), (24, 3, 40, 25)
MASK_A, MASK_B = pixels(*A), pixels(*B)


def pairs(flat):
  return [list(point) for point in zip(flat[::2], flat[1::2], strict=True)]


ONE = {
  "a list of one polygon": [rectangle(*A)],
  "a polygon without the outer list": rectangle(*A),
  "points as pairs": pairs(rectangle(*A)),
  "a list of points as pairs": [pairs(rectangle(*A))],
  "a list of lists of points": [[tuple(point) for point in pairs(rectangle(*A))]],
  "run lengths": {"size": [HEIGHT, WIDTH], "counts": run_lengths(MASK_A)},
  "a list of run lengths": [compressed(MASK_A)],
  "bytes": compressed(MASK_A),
  "text": compressed(MASK_A) | {"counts": compressed(MASK_A)["counts"].decode()},
  "the text of bytes": compressed(MASK_A) | {"counts": str(compressed(MASK_A)["counts"])},
}
BOTH = {
  "polygons": [rectangle(*A), rectangle(*B)],
  "polygons of points": [pairs(rectangle(*A)), pairs(rectangle(*B))],
  "polygons of either kind": [pairs(rectangle(*A)), rectangle(*B)],
  "run lengths of each": [compressed(MASK_A), compressed(MASK_B)],
  "run lengths of either kind": [
    {"size": [HEIGHT, WIDTH], "counts": run_lengths(MASK_A)},
    compressed(MASK_B),
  ],
  "a polygon and run lengths": [rectangle(*A), compressed(MASK_B)],
}


@pytest.mark.parametrize("value", ONE.values(), ids=ONE)
def test_one_part_is_the_same_mask_in_every_dialect(value):
  read = read_segmentation(value, HEIGHT, WIDTH)
  np.testing.assert_array_equal(read.mask(), MASK_A)
  assert read.notes == () and len(read.parts) == 1


@pytest.mark.parametrize("value", BOTH.values(), ids=BOTH)
def test_several_parts_are_their_union_in_every_dialect(value):
  read = read_segmentation(value, HEIGHT, WIDTH)
  np.testing.assert_array_equal(read.mask(), MASK_A | MASK_B)
  assert len(read.parts) == 2


@pytest.mark.parametrize("value", [*ONE.values(), *BOTH.values()], ids=[*ONE, *BOTH])
def test_parts_are_json_that_is_read_alike_and_by_pycocotools(value):
  read = read_segmentation(value, HEIGHT, WIDTH)
  parts = json.loads(json.dumps(read.parts))
  again = [part["rle"] if "rle" in part else part["polygons"] for part in parts]
  union = np.zeros((HEIGHT, WIDTH), bool)
  for part in again:
    np.testing.assert_array_equal(
      (alone := read_segmentation(part, HEIGHT, WIDTH)).mask(), _by_pycocotools(part)
    )
    union |= alone.mask()
  np.testing.assert_array_equal(union, read.mask())


def _by_pycocotools(value) -> np.ndarray:
  runs = coco_mask.frPyObjects(value, HEIGHT, WIDTH) if isinstance(value, list) else None
  if isinstance(value, dict):
    raw = isinstance(value["counts"], list)
    runs = [coco_mask.frPyObjects(value, HEIGHT, WIDTH) if raw else value]
  return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


_corners = st.tuples(
  st.integers(0, 20), st.integers(0, 14), st.integers(2, 22), st.integers(2, 14)
).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


@settings(max_examples=100, deadline=None)
@given(st.lists(_corners, min_size=1, max_size=4), st.data())
def test_any_dialect_of_any_parts_gives_their_union(boxes, data):
  """Each part in a dialect of its own, with parts that enclose nothing between them."""
  union = np.zeros((HEIGHT, WIDTH), bool)
  value, notes = [], []
  for box in boxes:
    dialect = data.draw(st.sampled_from(["flat", "points", "runs", "text"]))
    mask = pixels(*box)
    union |= mask
    value.append(
      {
        "flat": rectangle(*box),
        "points": pairs(rectangle(*box)),
        "runs": {"size": [HEIGHT, WIDTH], "counts": run_lengths(mask)},
        "text": compressed(mask),
      }[dialect]
    )
    nothing, note = data.draw(
      st.sampled_from([(None, EMPTY_PART), ([], EMPTY_PART), ([3, 4, 5, 6], TOO_FEW_POINTS)])
    )
    if data.draw(st.booleans()):
      value.insert(data.draw(st.integers(0, len(value))), nothing)
      notes.append(note)
  read = read_segmentation(value, HEIGHT, WIDTH)
  np.testing.assert_array_equal(read.mask(), union)
  assert sorted(read.notes) == sorted(notes)


@pytest.mark.parametrize(
  "value",
  [
    None,
    [],
    [[]],
    [None],
    [[], None],
    [[5, 5]],
    [[5, 5, 9, 9]],
    [5, 5, 9, 9],
    [[5, 5], [9, 9]],
    [[[5, 5], [9, 9]]],
  ],
  ids=repr,
)
def test_what_encloses_nothing_is_an_error_of_its_own(value):
  with pytest.raises(EmptySegmentation):
    read_segmentation(value, HEIGHT, WIDTH)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ([run_lengths(MASK_A)], "looks like run lengths"),
    (run_lengths(MASK_A), "looks like run lengths"),
    ([[*rectangle(*A), 7]], "has 9 numbers"),
    ([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], "not a point"),
    ({"counts": "T1"}, "size is missing"),
    ({"size": [HEIGHT, WIDTH]}, "counts is missing"),
    ({}, "`size` and `counts`"),
    ("[[1, 2, 3, 4, 5, 6]]", "got str"),
    (7, "got int"),
    ([[1, 2, 3, 4, 5, None]], "not a list of numbers"),
    ({"size": [HEIGHT, WIDTH], "counts": "b'\\x'"}, r"write counts\.decode\(\)"),
  ],
  ids=lambda value: f"{value!r:.24}",
)
def test_what_cannot_be_read_is_told(value, message):
  with pytest.raises(SegmentationError, match=message):
    read_segmentation(value, HEIGHT, WIDTH)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
def test_run_lengths_in_a_polygons_place_are_never_a_polygon(seed, share):
  """Bands across the image have runs that are all shorter than its sides."""
  rng = np.random.default_rng(seed)
  mask = np.repeat(rng.random((HEIGHT, 1)) < share, WIDTH, 1) ^ (rng.random((HEIGHT, WIDTH)) < 0.02)
  lengths = run_lengths(mask)
  lengths = lengths[:-1] if lengths[-1] == 0 else lengths  # of an even number, too
  assume(len(lengths) >= 16)
  with pytest.raises(SegmentationError, match="looks like run lengths"):
    read_segmentation([lengths], HEIGHT, WIDTH)


@settings(deadline=None)
@given(_corners)
def test_shares_of_the_sides_are_never_pixels(box):
  left, top, right, bottom = box
  shares = rectangle(left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT)
  shares = [value * 1.09 - 0.04 for value in shares]  # a slip beyond the border
  for value in ([shares], shares, [pairs(shares)], [shares, [0.1, 0.1]]):
    with pytest.raises(SegmentationError, match="fractions of the sides"):
      read_segmentation(value, HEIGHT, WIDTH)


def test_the_whole_image_in_shares_is_asked_about_and_a_part_in_its_corner_is_not():
  with pytest.raises(SegmentationError, match="fractions"):
    read_segmentation([rectangle(0, 0, 1, 1)], HEIGHT, WIDTH)
  read = read_segmentation([rectangle(0, 0, 1, 1), rectangle(*A)], HEIGHT, WIDTH)
  np.testing.assert_array_equal(read.mask(), MASK_A | pixels(0, 0, 1, 1))
  # COCO has annotations whose points are all in one place.
  assert not read_segmentation([[0, 0, 0, 0, 0, 0]], HEIGHT, WIDTH).mask().any()


@settings(max_examples=150, deadline=None)
@given(
  st.tuples(st.integers(-3, 20), st.integers(-3, 14)),
  st.tuples(st.integers(24, WIDTH + 3), st.integers(16, HEIGHT + 3)),
)
def test_what_is_a_little_beyond_the_border_is_clipped_and_told(low, high):
  box = (*low, *high)
  read = read_segmentation([rectangle(*box)], HEIGHT, WIDTH)
  np.testing.assert_array_equal(read.mask(), pixels(*box))
  # Tools round, so a pixel is not worth a word.
  beyond = max(-min(low), high[0] - WIDTH, high[1] - HEIGHT)
  assert read.notes == ((CLIPPED,) if beyond > 1 else ())


@settings(max_examples=100, deadline=None)
@given(
  st.lists(st.tuples(st.floats(-3, WIDTH + 3), st.floats(-3, HEIGHT + 3)), min_size=3, max_size=6)
)
def test_clipping_gives_the_pixels_of_the_same_polygon_on_a_larger_canvas(points):
  assume(not all(-0.1 <= value <= 1.1 for point in points for value in point))
  moved = [value + 8 for point in points for value in point]
  canvas = coco_mask.frPyObjects([moved], HEIGHT + 16, WIDTH + 16)
  larger = coco_mask.decode(canvas)[8:-8, 8:-8, 0].astype(bool)
  mask = read_segmentation([[v for point in points for v in point]], HEIGHT, WIDTH).mask()
  # pycocotools rounds an edge that starts elsewhere to other pixels here and there.
  edge = _outline(points)
  np.testing.assert_array_equal(mask[~edge], larger[~edge])


def _outline(points) -> np.ndarray:
  """Returns the pixels within about two of the edges, drawn by Pillow."""
  image = Image.new("1", (WIDTH, HEIGHT))
  draw = ImageDraw.Draw(image)
  draw.line([*points, points[0]], fill=1, width=5)
  for x, y in points:
    draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=1)
  return np.asarray(image)


@settings(max_examples=100, deadline=None)
@given(_corners, st.sampled_from([2, 3, 4, 0.5]))
def test_a_polygon_for_another_size_is_never_silently_clipped_away(box, scale):
  """Twice as large: within the image, if the object is in its corner, or an error that names it."""
  scaled = [value * scale for value in rectangle(*box)]
  assume(max(scaled) > 1.1)
  try:
    read = read_segmentation([scaled], HEIGHT, WIDTH)
  except OutsideImage as error:
    assert f"{WIDTH} x {HEIGHT}" in str(error) and "another size" in str(error)
    assert max(scaled[::2]) > WIDTH + 3 or max(scaled[1::2]) > HEIGHT + 3
  else:
    assert max(scaled[::2]) <= WIDTH + 3 and max(scaled[1::2]) <= HEIGHT + 3
    assert (CLIPPED in read.notes) == (
      max(scaled[::2]) > WIDTH + 1 or max(scaled[1::2]) > HEIGHT + 1
    )


@pytest.mark.parametrize(("side", "pixels_beyond"), [(44, 3), (60, 3), (100, 5), (1000, 50)])
def test_the_tolerance_is_three_pixels_or_a_twentieth(side, pixels_beyond):
  inside = [rectangle(2, 2, side + pixels_beyond, 20)]
  assert read_segmentation(inside, 30, side).mask().sum() == 18 * (side - 2)
  with pytest.raises(OutsideImage):
    read_segmentation([rectangle(2, 2, side + pixels_beyond + 0.5, 20)], 30, side)


@pytest.mark.parametrize("kind", ["counts", "bytes"])
def test_run_lengths_for_a_turned_or_another_image_name_both_sizes(kind):
  turned = np.zeros((WIDTH, HEIGHT), bool)
  turned[3:9, 4:20] = True
  value = compressed(turned)
  if kind == "counts":
    value["counts"] = run_lengths(turned)
  with pytest.raises(OtherSize, match=re.escape("[44, 30], but the image has [30, 44]")) as caught:
    read_segmentation(value, HEIGHT, WIDTH)
  assert "swapped" in str(caught.value)
  with pytest.raises(OtherSize, match=re.escape("[44, 30], but the image has [30, 45]")):
    read_segmentation([value], HEIGHT, WIDTH + 1)


def test_a_segmentation_is_not_evaluated():
  """Text of bytes is a literal; anything else in its place is text."""
  for text in ("b'x' + open('/etc/passwd').read()", "__import__('os').getcwd()", "b'1' 'é'"):
    with pytest.raises(SegmentationError):
      read_segmentation({"size": [HEIGHT, WIDTH], "counts": text}, HEIGHT, WIDTH)
  assert segmentation.MAX_POLYGONS < 100_000
