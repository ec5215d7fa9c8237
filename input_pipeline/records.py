"""The record: one image, its instance masks and the expressions that refer to it.

Instance masks are kept as **bit planes**: pixel bit `k % 16` of plane `k // 16` is set where
instance k covers the pixel. Overlaps survive, a mask costs one bit, and the planes are a plain
16-bit PNG that `tf.io.decode_png` and Pillow both read.
"""

import dataclasses
import io

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt16
from PIL import Image

from input_pipeline import preprocess

PLANE_BITS = 16
MAX_PLANES = 64
"""Of a record; those that `prepare` writes have up to four."""


@dataclasses.dataclass(frozen=True)
class Instances:
  """Instance masks of one image, sorted by score, best first. They may overlap."""

  masks: Bool[np.ndarray, "k h w"]
  """At the size of the image."""
  scores: Float32[np.ndarray, "k"]
  """Confidence of the proposer; higher is better."""
  categories: Int32[np.ndarray, "k"]
  """Category ids of the proposer; not used by the model."""
  source: str
  """Who made the masks: `coco`, `results`, `shapes`, `none` and so on."""
  trained_on: str = "nothing"
  """What whoever made them had learned from, as `instances/leakage.py` names it."""


@dataclasses.dataclass(frozen=True)
class Ref:
  """One referred object and every sentence that means it."""

  ref_id: int
  ann_ids: tuple[int, ...]
  target: Bool[np.ndarray, "h w"]
  sentences: tuple[str, ...]
  """As a person wrote them; normalised when they are stored."""


@dataclasses.dataclass(frozen=True)
class ImageRecord:
  """One image with the refs of one split."""

  image: bytes
  """JPEG or PNG, untouched."""
  image_id: int
  file_name: str
  height: int
  width: int
  instances: Instances
  refs: tuple[Ref, ...]


def no_instances(height: int, width: int) -> Instances:
  """Returns the instances of an image for which nobody proposed any."""
  return Instances(
    masks=np.zeros((0, height, width), bool),
    scores=np.zeros(0, np.float32),
    categories=np.zeros(0, np.int32),
    source="none",
  )


def num_planes(count: int) -> int:
  """Returns how many bit planes hold so many masks; at least one."""
  return max(1, -(-count // PLANE_BITS))


def pack_planes(masks: Bool[np.ndarray, "k h w"]) -> UInt16[np.ndarray, "g h w"]:
  """Packs k masks into max(1, ceil(k / 16)) planes of 16 bits."""
  count, height, width = masks.shape
  planes = np.zeros((max(1, -(-count // PLANE_BITS)), height, width), np.uint16)
  for k in range(count):
    planes[k // PLANE_BITS] |= masks[k].astype(np.uint16) << np.uint16(k % PLANE_BITS)
  return planes


def unpack_planes(
  planes: UInt16[np.ndarray, "g h w"], count: int
) -> Bool[np.ndarray, "{count} h w"]:
  """Returns the first `count` masks of the planes."""
  if count > planes.shape[0] * PLANE_BITS:
    raise ValueError(f"{count} masks do not fit into {planes.shape[0]} planes")
  masks = np.zeros((count, *planes.shape[1:]), bool)
  for k in range(count):
    masks[k] = (planes[k // PLANE_BITS] >> np.uint16(k % PLANE_BITS)) & 1
  return masks


def encode_planes(planes: UInt16[np.ndarray, "g h w"]) -> bytes:
  """Writes the planes, one below the other, as one 16-bit grayscale PNG of [g * h, w]."""
  return _encode_png(Image.fromarray(planes.reshape(-1, planes.shape[2])))


def decode_planes(
  png: bytes, height: int, width: int | None = None
) -> UInt16[np.ndarray, "g {height} w"]:
  """Reads the planes of an image of that size.

  Raises:
    Exception: what Pillow raises of what is no PNG, and ValueError where it is none of planes of that size.
  """
  most = MAX_PLANES * (preprocess.MAX_PIXELS if width is None else height * width)
  with preprocess.open_head(io.BytesIO(png), most, ("PNG",)) as image:
    if height < 1 or image.height % height or width not in (None, image.width):
      raise ValueError(
        f"bit planes of {image.width} x {image.height} for {width} x {height} pixels"
      )
    if not image.mode.startswith("I"):
      raise ValueError(f"bit planes of the mode {image.mode}, not of 16 bits")
    stacked = np.asarray(image).astype(np.uint16)
  return stacked.reshape(-1, height, stacked.shape[1])


def encode_target(target: Bool[np.ndarray, "h w"]) -> bytes:
  """Writes a mask as a 1-bit PNG."""
  return _encode_png(Image.fromarray(target))


def decode_target(png: bytes, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "h w"]:
  """Reads a mask written by `encode_target`.

  Args:
    png: what it wrote.
    size: height and width that it must have.

  Raises:
    Exception: what Pillow raises of what is no PNG, and ValueError where it is none of a mask of that size.
  """
  with preprocess.open_head(io.BytesIO(png), formats=("PNG",)) as image:
    if size is not None and image.size != size[::-1]:
      raise ValueError(
        f"a target of {image.width} x {image.height} for {size[1]} x {size[0]} pixels"
      )
    if image.mode not in ("1", "L"):
      raise ValueError(f"a target of the mode {image.mode}, not of 1 bit")
    return np.asarray(image).astype(bool)


def _encode_png(image: Image.Image) -> bytes:
  buffer = io.BytesIO()
  # Masks are runs: zlib's run-length strategy is half the time of the default and a tenth smaller.
  image.save(buffer, format="PNG", compress_type=Image.RLE)
  return buffer.getvalue()
