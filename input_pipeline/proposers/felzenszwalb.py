"""Masks from colours alone, for those who have neither a detector nor a network: graph-based segments and their unions.

Felzenszwalb and Huttenlocher, IJCV 2004, find the segments; they are joined neighbour by neighbour, most alike first,
as in Uijlings et al., "Selective search for object recognition", IJCV 2013. What joins is each time a proposal.
"""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from input_pipeline import records
from input_pipeline.common.errors import InputError

try:
  from skimage import color, segmentation  # pyright: ignore[reportMissingImports]
except ImportError as error:
  raise InputError(
    '--instances felzenszwalb needs scikit-image: pip install "mail_jax[felzenszwalb]"'
  ) from error

SCALES = (100.0, 300.0)
"""Larger ones give larger segments. A third takes half as much again and, measured, finds no more with 16 masks."""
SIDE = 192
"""The longer side of the picture in which segments are sought; 256 takes nearly twice as long."""
MIN_SEGMENT = 20
"""Pixels of that picture; smaller segments join a neighbour at once."""
MIN_AREA = 0.002
"""A share of the image; smaller proposals are not worth a place among 16."""
MAX_PROPOSALS = 64
"""As many as a record can hold."""
COLOUR_BINS = 12


@dataclasses.dataclass
class _Region:
  """A segment, or several that were joined."""

  segments: list[int]
  area: int
  border: int
  """Pixels along the border of the image."""
  box: tuple[int, int, int, int]
  """top, left, bottom, right"""
  colours: Float[np.ndarray, "bins"]
  """A histogram that sums to 1."""
  neighbours: set[int]


class FelzenszwalbInstances:
  """Segments at several scales and what they join to; the scores are nothing but an order.

  The order is such that the first masks stand for all others as well as they can, those most of which are inside the
  image and which fill their box foremost.
  """

  trained_on = "nothing"
  parallel = True

  def __init__(self, argument: str = ""):
    """Reads the scales.

    Args:
      argument: scales with commas between, such as `100,300`; nothing for the default.
    """
    self._scales = _read_scales(argument) if argument else SCALES

  def propose(
    self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[int]
  ) -> list[records.Instances]:
    """Returns up to 64 masks of each image, with scores that fall from 1 and category 0."""
    del image_ids
    return [self._propose(image) for image in images]

  def _propose(self, image: UInt8[np.ndarray, "h w 3"]) -> records.Instances:
    height, width = image.shape[:2]
    shrink = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    masks, merits = [], []
    for scale in self._scales:
      segments = _segments(small, scale)
      for region in _join(segments, _colour_bins(small)):
        if region.area >= MIN_AREA * segments.size:
          masks.append(np.isin(segments, region.segments))
          merits.append(_merit(region, *segments.shape))
    if not masks:
      masks, merits = [np.ones(size[::-1], bool)], [1.0]
    order = _representatives(np.stack(masks), np.asarray(merits))
    return records.Instances(
      masks=np.stack([_enlarge(masks[k], height, width) for k in order]),
      scores=(1 - np.arange(len(order)) / len(order)).astype(np.float32),
      categories=np.zeros(len(order), np.int32),
      source="felzenszwalb",
    )


def _read_scales(argument: str) -> tuple[float, ...]:
  try:
    scales = tuple(float(scale) for scale in argument.split(","))
  except ValueError as error:
    raise InputError(
      f"--instances felzenszwalb:{argument}: scales are numbers with commas between, such as 100,300"
    ) from error
  if not all(0 < scale < float("inf") for scale in scales):
    raise InputError(f"--instances felzenszwalb:{argument}: a scale is a number above 0")
  return scales


def _segments(image: UInt8[np.ndarray, "h w 3"], scale: float) -> Int[np.ndarray, "h w"]:
  """Numbers from 0, none left out."""
  found = segmentation.felzenszwalb(image, scale=scale, sigma=0.8, min_size=MIN_SEGMENT)
  return np.unique(found, return_inverse=True)[1].reshape(image.shape[:2])


def _colour_bins(image: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w 3"]:
  """The bin of each pixel in each channel of CIE Lab."""
  unit = (color.rgb2lab(image) + np.array([0, 100, 100])) / [100, 200, 200]
  return (unit * COLOUR_BINS).astype(int).clip(0, COLOUR_BINS - 1)


def _join(segments: Int[np.ndarray, "h w"], colour_bins: Int[np.ndarray, "h w 3"]) -> list[_Region]:
  """The segments, and each union on the way to one region of all."""
  regions = _regions(segments, colour_bins)
  heap = [
    (-_likeness(region, regions[other], segments.size), k, other)
    for k, region in enumerate(regions)
    for other in sorted(region.neighbours)
    if k < other
  ]
  heapq.heapify(heap)
  gone: set[int] = set()
  while heap:
    _, a, b = heapq.heappop(heap)
    if a in gone or b in gone:
      continue
    gone |= {a, b}
    union = _union(regions[a], regions[b])
    union.neighbours -= {a, b}
    for k in sorted(union.neighbours):
      regions[k].neighbours -= {a, b}
      regions[k].neighbours.add(len(regions))
      heapq.heappush(heap, (-_likeness(regions[k], union, segments.size), k, len(regions)))
    regions.append(union)
  return regions


def _regions(
  segments: Int[np.ndarray, "h w"], colour_bins: Int[np.ndarray, "h w 3"]
) -> list[_Region]:
  height, width = segments.shape
  count = int(segments.max()) + 1
  area = np.bincount(segments.ravel(), minlength=count)
  edge = np.zeros((height, width), bool)
  edge[[0, -1]] = edge[:, [0, -1]] = True
  border = np.bincount(segments[edge], minlength=count)
  rows, columns = np.indices(segments.shape)
  first = np.full((2, count), max(height, width))
  last = np.zeros((2, count), int)
  for axis, index in enumerate((rows, columns)):
    np.minimum.at(first[axis], segments, index)
    np.maximum.at(last[axis], segments, index + 1)
  colours = np.concatenate(
    [
      np.bincount(
        (segments * COLOUR_BINS + colour_bins[..., channel]).ravel(), minlength=count * COLOUR_BINS
      ).reshape(count, COLOUR_BINS)
      for channel in range(3)
    ],
    axis=1,
  ) / (3 * area[:, None])
  neighbours: list[set[int]] = [set() for _ in range(count)]
  for one, next_to_it in ((segments[:, :-1], segments[:, 1:]), (segments[:-1], segments[1:])):
    pairs = np.stack([one.ravel(), next_to_it.ravel()], axis=1)
    for a, b in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist():
      neighbours[a].add(b)
      neighbours[b].add(a)
  boxes = np.concatenate([first, last]).T.tolist()
  return [
    _Region([k], int(area[k]), int(border[k]), tuple(boxes[k]), colours[k], neighbours[k])
    for k in range(count)
  ]


def _union(a: _Region, b: _Region) -> _Region:
  area = a.area + b.area
  return _Region(
    segments=a.segments + b.segments,
    area=area,
    border=a.border + b.border,
    box=_box_of_both(a, b),
    colours=(a.colours * a.area + b.colours * b.area) / area,
    neighbours=a.neighbours | b.neighbours,
  )


def _box_of_both(a: _Region, b: _Region) -> tuple[int, int, int, int]:
  return (
    min(a.box[0], b.box[0]),
    min(a.box[1], b.box[1]),
    max(a.box[2], b.box[2]),
    max(a.box[3], b.box[3]),
  )


def _likeness(a: _Region, b: _Region, pixels: int) -> float:
  """In colour, less the box of both: small ones join first, and those that fit into each other."""
  top, left, bottom, right = _box_of_both(a, b)
  box = (bottom - top) * (right - left)
  return float(np.minimum(a.colours, b.colours).sum()) - box / pixels


def _merit(region: _Region, height: int, width: int) -> float:
  """How much a region looks like something that people refer to: filling its box, large, not along the border."""
  top, left, bottom, right = region.box
  fill = region.area / ((bottom - top) * (right - left))
  size = (region.area / (height * width)) ** 0.25
  return fill * size * np.exp(-4 * region.border / (2 * (height + width)))


def _representatives(masks: Bool[np.ndarray, "k h w"], merits: Float[np.ndarray, "k"]) -> list[int]:
  """The order in which masks stand for all: each next one adds most to the best IoU with every mask, by merit."""
  # Every other row and column tells them apart as well, at a quarter of the time.
  flat = masks[:, ::2, ::2].reshape(len(masks), -1).astype(np.float32)
  areas = flat.sum(1)
  shared = flat @ flat.T
  iou = shared / np.maximum(areas[:, None] + areas - shared, 1)
  best = np.zeros(len(masks), np.float32)
  order: list[int] = []
  while len(order) < MAX_PROPOSALS:
    gains = np.maximum(iou - best, 0) @ merits
    k = int(gains.argmax())
    if gains[k] <= 0:
      break
    order.append(k)
    best = np.maximum(best, iou[k])
  return order or [int(merits.argmax())]


def _enlarge(mask: Bool[np.ndarray, "_ _"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """To the image's size, with straight outlines rather than stairs."""
  if mask.shape == (height, width):
    return mask
  soft = Image.fromarray(mask.astype(np.uint8) * 255)
  return np.asarray(soft.resize((width, height), Image.Resampling.BILINEAR)) > 127
