"""A simulated instance detector: turns exact masks into the masks of a real detector."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image, ImageDraw, ImageFilter

from input_pipeline import records
from input_pipeline.common.errors import InputError

MAX_INSTANCES = 12


@dataclasses.dataclass(frozen=True)
class DetectorNoise:
  """Errors of the simulated detector; the defaults define the difficulty of the data set.

  Lengths are fractions of the image side (0.01 is about one pixel at 96), rates are probabilities.

  Attributes:
    jitter: standard deviation of a mask's shift, per axis.
    erosion: maximum uniform shift of the outline, inwards or outwards.
    raggedness: standard deviation of the outline's waviness.
    miss_rate: probability that an object has no mask.
    merge_rate: probability that an object's mask includes its nearest neighbour.
    spurious_rate: expected number of masks per image that belong to no object.
    score_noise: standard deviation of a score around the mask's true IoU.
  """

  jitter: float = 0.004
  erosion: float = 0.0055
  raggedness: float = 0.005
  miss_rate: float = 0.041
  merge_rate: float = 0.03
  spurious_rate: float = 0.6
  score_noise: float = 0.08

  @classmethod
  def oracle(cls) -> "DetectorNoise":
    """Returns a perfect detector: exactly the visible masks, all scores 1."""
    return cls(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

  @classmethod
  def parse(cls, value: str) -> "DetectorNoise":
    """Parses the value of `prepare --noise`.

    Args:
      value: `default`; `oracle`; `nothing`, which detects nothing; `xF`, F times the default
        lengths and rates (`x0.5`, `x2`); `missR`, the default with the miss rate R (`miss0.2`).

    Raises:
      InputError: it is none of these.
    """
    presets = {
      "default": cls(),
      "oracle": cls.oracle(),
      "nothing": cls(miss_rate=1.0, spurious_rate=0.0),
    }
    if value in presets:
      return presets[value]
    if value.startswith("x") and 0 <= (factor := _number(value[1:])) < math.inf:
      scaled = {name: factor * size for name, size in dataclasses.asdict(cls()).items()}
      rates = {name: min(scaled[name], 1.0) for name in ("miss_rate", "merge_rate")}
      return cls(**scaled | rates)
    if value.startswith("miss") and 0 <= (rate := _number(value[4:])) <= 1:
      return cls(miss_rate=rate)
    raise InputError(
      f"--noise {value}: use default, oracle, nothing, x with a factor such as x0.5, or miss with "
      "a rate such as miss0.2"
    )

  @property
  def keeps_outlines(self) -> bool:
    """Whether detected masks are exact."""
    return not (self.jitter or self.erosion or self.raggedness)


def _number(text: str) -> float:
  """Parses a number; returns NaN if it is not one."""
  try:
    return float(text)
  except ValueError:
    return math.nan


def _distort(
  masks: Bool[np.ndarray, "n h w"], noise: DetectorNoise, rng: np.random.Generator
) -> Bool[np.ndarray, "n h w"]:
  """Shifts masks, moves their outlines in or out, and makes them wavy.

  Each mask is cropped with a margin, and the crops are processed as a single tall image: the number
  of calls, not of pixels, dominates the time.
  """
  if noise.keeps_outlines:
    return masks
  count, height, width = masks.shape
  side = max(height, width)
  pad = 3 + int(4 * max(noise.jitter, noise.erosion, noise.raggedness) * side)
  rows, columns = np.any(masks, axis=2), np.any(masks, axis=1)
  top, left = rows.argmax(1), columns.argmax(1)
  spans = (
    height - rows[:, ::-1].argmax(1) - top,
    width - columns[:, ::-1].argmax(1) - left,
  )
  cut = int(max(spans[0].max(), spans[1].max())) + 2 * pad
  # The whole pixels of a shift are applied when a piece is pasted back, the fraction here.
  shift = rng.standard_normal((count, 2)) * (noise.jitter * side)
  whole = np.floor(shift).astype(int).clip(-pad, pad)
  part = (shift - whole).clip(0, 1).astype(np.float32)[:, :, None, None]
  pieces = np.zeros((count, cut + 1, cut + 1), np.uint8)
  corners = list(zip((top - pad).tolist(), (left - pad).tolist(), strict=True))
  for piece, mask, (y, x) in zip(pieces, masks, corners, strict=True):
    inside = mask[max(y, 0) : y + cut, max(x, 0) : x + cut]
    y, x = max(-y, 0) + 1, max(-x, 0) + 1
    np.multiply(inside, np.uint8(255), out=piece[y : y + inside.shape[0], x : x + inside.shape[1]])

  # A blurred edge is a ramp, so a threshold other than one half moves the outline. A threshold that
  # varies smoothly makes it wavy without isolated pixels.
  reach = max(0.8, 1.3 * (noise.erosion + noise.raggedness) * side)
  tall = Image.fromarray(pieces.reshape(-1, cut + 1))
  soft = np.asarray(tall.filter(ImageFilter.BoxBlur(reach)), np.float32)
  soft = soft.reshape(pieces.shape)
  soft = soft[:, 1:] + part[:, 0] * (soft[:, :-1] - soft[:, 1:])
  soft = soft[:, :, 1:] + part[:, 1] * (soft[:, :, :-1] - soft[:, :, 1:])
  grid = rng.standard_normal((count, 6, 6), np.float32) * np.float32(noise.raggedness)
  grid += rng.uniform(-noise.erosion, noise.erosion, (count, 1, 1)).astype(np.float32)
  place = np.linspace(0, 5, cut, dtype=np.float32)[:, None]
  weight = 0.5 + 0.5 * np.cos(np.pi * np.minimum(abs(place - np.arange(6, dtype=np.float32)), 1))
  outward = weight @ grid @ weight.T
  # The ramp of an edge is as wide as the box, 2 * reach + 1.
  distorted = soft > (127.5 - outward * (255 * side / (2 * reach + 1))).clip(20, 235)

  out = np.zeros_like(masks)
  for target, piece, (y, x), (dy, dx) in zip(out, distorted, corners, whole.tolist(), strict=True):
    y, x = y + dy, x + dx
    inside = piece[max(-y, 0) : height - y, max(-x, 0) : width - x]
    y, x = max(y, 0), max(x, 0)
    target[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
  return out


def _blob(height: int, width: int, rng: np.random.Generator) -> Bool[np.ndarray, "1 h w"]:
  """Returns a random ellipse."""
  x, y, a, b = rng.random(4).tolist()
  x, y, a, b = (
    x * width,
    y * height,
    (0.05 + 0.1 * a) * width,
    (0.05 + 0.1 * b) * height,
  )
  canvas = Image.new("L", (width, height))
  ImageDraw.Draw(canvas).ellipse((x - a, y - b, x + a, y + b), fill=255)
  return (np.asarray(canvas) > 0)[None]


def _nearest(masks: Bool[np.ndarray, "n h w"]) -> list[int]:
  """Returns the index of each mask's nearest neighbour; its own if it is alone."""
  covered = masks.astype(np.float32)
  rows, columns = covered.sum(2), covered.sum(1)
  area = np.maximum(rows.sum(1), 1)
  y = rows @ np.arange(masks.shape[1]) / area
  x = columns @ np.arange(masks.shape[2]) / area
  distance = np.hypot(x[:, None] - x, y[:, None] - y)
  if len(masks) > 1:
    np.fill_diagonal(distance, np.inf)
  return distance.argmin(1).tolist()


def _iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
  return np.count_nonzero(a & b) / max(np.count_nonzero(a | b), 1)


def detect(
  visible: Bool[np.ndarray, "n h w"],
  categories: Int32[np.ndarray, "n"],
  noise: DetectorNoise,
  rng: np.random.Generator,
) -> records.Instances:
  """Simulates an instance detector.

  Args:
    visible: exact visible masks of the objects, n >= 1.
    categories: their categories.
    noise: errors of the detector.
    rng: source of randomness.

  Returns:
    Up to MAX_INSTANCES non-empty masks, best score first.
  """
  count, height, width = visible.shape
  extra = min(int(rng.poisson(noise.spurious_rate)), MAX_INSTANCES - count)
  blobs = [_blob(height, width, rng) for _ in range(extra)]
  outlines = _distort(np.concatenate([visible, *blobs]), noise, rng)
  fate = rng.random((2, count))
  merged = fate[1] < noise.merge_rate
  neighbours = _nearest(visible) if merged.any() else []
  detections: list[tuple[float, int, np.ndarray]] = []
  for index, mask in enumerate(outlines[:count]):
    if fate[0, index] < noise.miss_rate:
      continue
    if merged[index]:
      mask = mask | outlines[neighbours[index]]
    detections.append((_iou(mask, visible[index]), int(categories[index]), mask))
  for mask in outlines[count:]:
    category = categories[int(rng.integers(count))]
    detections.append((float(rng.uniform(0.2, 0.6)), int(category), mask))

  detections = [item for item in detections if item[2].any()]
  quality = np.array([item[0] for item in detections])
  scores = np.clip(quality + noise.score_noise * rng.standard_normal(len(detections)), 0.01, 1)
  order = np.argsort(-scores, kind="stable")
  return records.Instances(
    masks=np.stack([detections[i][2] for i in order])
    if detections
    else np.zeros((0, height, width), bool),
    scores=scores[order].astype(np.float32),
    categories=np.array([detections[i][1] for i in order], np.int32),
    source="shapes",
  )
