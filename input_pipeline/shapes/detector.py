"""A simulated instance detector: exact masks in, the masks a real one would have given out."""

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
  """How far a simulated detector is from perfect. The defaults are the project's difficulty.

  Lengths are fractions of the image side (0.01 is about one pixel at 96), rates are probabilities.

  Attributes:
    jitter: standard deviation of a mask's shift, per axis.
    erosion: the outline is moved in or out by up to this much, the same all around.
    raggedness: standard deviation of the outline's own waviness.
    miss_rate: an object gets no mask.
    merge_rate: an object's mask also takes in its nearest neighbour.
    spurious_rate: expected number of masks an image that belong to nothing.
    score_noise: standard deviation of a score about the mask's true quality.
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
    """A perfect detector: exactly the visible masks, all scores 1."""
    return cls(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

  @classmethod
  def parse(cls, words: str) -> "DetectorNoise":
    """What `--noise` of `prepare` asks for.

    Args:
      words: `default`; `oracle`; `nothing`, which finds nothing at all; `xF`, F times the default's lengths and rates
        (`x0.5`, `x2`); `missR`, the default but for its rate of misses (`miss0.2`).

    Raises:
      InputError: it is none of these.
    """
    plain = {
      "default": cls(),
      "oracle": cls.oracle(),
      "nothing": cls(miss_rate=1.0, spurious_rate=0.0),
    }
    if words in plain:
      return plain[words]
    if words.startswith("x") and 0 <= (factor := _number(words[1:])) < math.inf:
      scaled = {name: factor * size for name, size in dataclasses.asdict(cls()).items()}
      rates = {name: min(scaled[name], 1.0) for name in ("miss_rate", "merge_rate")}
      return cls(**scaled | rates)
    if words.startswith("miss") and 0 <= (rate := _number(words[4:])) <= 1:
      return cls(miss_rate=rate)
    raise InputError(
      f"--noise {words}: write default, oracle, nothing, x and a factor as in x0.5, or miss and a rate as in miss0.2"
    )

  @property
  def keeps_outlines(self) -> bool:
    """Whether masks that are found are exact."""
    return not (self.jitter or self.erosion or self.raggedness)


def _number(text: str) -> float:
  """What a text says; NaN where that is no number."""
  try:
    return float(text)
  except ValueError:
    return math.nan


def _distort(
  masks: Bool[np.ndarray, "n h w"], noise: DetectorNoise, rng: np.random.Generator
) -> Bool[np.ndarray, "n h w"]:
  """Shifts masks, moves their outlines in or out, and makes them wavy.

  Each mask is cut out with room to spare, and the pieces are worked on as one tall image: the
  calls, not the pixels, are what takes the time.
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
  # Moved by whole pixels where a piece is put back, by the rest of the way here.
  shift = rng.standard_normal((count, 2)) * (noise.jitter * side)
  whole = np.floor(shift).astype(int).clip(-pad, pad)
  part = (shift - whole).clip(0, 1).astype(np.float32)[:, :, None, None]
  pieces = np.zeros((count, cut + 1, cut + 1), np.uint8)
  corners = list(zip((top - pad).tolist(), (left - pad).tolist(), strict=True))
  for piece, mask, (y, x) in zip(pieces, masks, corners, strict=True):
    inside = mask[max(y, 0) : y + cut, max(x, 0) : x + cut]
    y, x = max(-y, 0) + 1, max(-x, 0) + 1
    np.multiply(inside, np.uint8(255), out=piece[y : y + inside.shape[0], x : x + inside.shape[1]])

  # A blurred edge is a ramp, so a threshold off one half moves the outline; a threshold that
  # varies smoothly from place to place makes it wavy without loose pixels.
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
  found = soft > (127.5 - outward * (255 * side / (2 * reach + 1))).clip(20, 235)

  out = np.zeros_like(masks)
  for target, piece, (y, x), (dy, dx) in zip(out, found, corners, whole.tolist(), strict=True):
    y, x = y + dy, x + dx
    inside = piece[max(-y, 0) : height - y, max(-x, 0) : width - x]
    y, x = max(y, 0), max(x, 0)
    target[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
  return out


def _blob(height: int, width: int, rng: np.random.Generator) -> Bool[np.ndarray, "1 h w"]:
  """A mask of nothing in particular."""
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
  """For each mask the one whose centre is nearest; itself where it is alone."""
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
    noise: how far from perfect it is.
    rng: where the randomness comes from.

  Returns:
    At most MAX_INSTANCES masks, best score first; none is empty.
  """
  count, height, width = visible.shape
  extra = min(int(rng.poisson(noise.spurious_rate)), MAX_INSTANCES - count)
  blobs = [_blob(height, width, rng) for _ in range(extra)]
  outlines = _distort(np.concatenate([visible, *blobs]), noise, rng)
  fate = rng.random((2, count))
  merged = fate[1] < noise.merge_rate
  neighbours = _nearest(visible) if merged.any() else []
  found: list[tuple[float, int, np.ndarray]] = []
  for index, mask in enumerate(outlines[:count]):
    if fate[0, index] < noise.miss_rate:
      continue
    if merged[index]:
      mask = mask | outlines[neighbours[index]]
    found.append((_iou(mask, visible[index]), int(categories[index]), mask))
  for mask in outlines[count:]:
    category = categories[int(rng.integers(count))]
    found.append((float(rng.uniform(0.2, 0.6)), int(category), mask))

  found = [item for item in found if item[2].any()]
  quality = np.array([item[0] for item in found])
  scores = np.clip(quality + noise.score_noise * rng.standard_normal(len(found)), 0.01, 1)
  order = np.argsort(-scores, kind="stable")
  return records.Instances(
    masks=np.stack([found[i][2] for i in order]) if found else np.zeros((0, height, width), bool),
    scores=scores[order].astype(np.float32),
    categories=np.array([found[i][1] for i in order], np.int32),
    source="shapes",
  )
