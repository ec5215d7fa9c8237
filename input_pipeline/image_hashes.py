"""Finds copies of images by COCO id, by their bytes and by a perceptual hash.

Equal bytes are the same file: data sets share COCO's photos, and COCO 2017 has the files of 2014.
Looks are those of a copy that was resized, compressed again or slightly cropped: a perceptual hash
(imagehash's `phash`) of 256 bits.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Bool, Int64, UInt64
from PIL import Image, ImageOps

from input_pipeline import preprocess
from input_pipeline.common import fingerprint
from input_pipeline.common.errors import InputError

MAX_DISTANCE = 48
"""Bits that the looks of two copies differ in at most. Of 451 COCO photos, copies at half size, of
quality 30 or with 2 % cropped differ in up to 36 bits, two photos in 92 or more, and random looks
in 128 (docs/reports/reliability.md)."""
_ORIENTATION = 0x0112
_SIDE = 16
_WORDS = _SIDE * _SIDE // 64
# The hash is made of an image of this side; JPEG is decoded at the smallest scale above it.
_PIXELS = 4 * _SIDE
# In grey levels. The hash of an almost uniform image would only reflect its noise.
_MIN_CONTRAST = 4.0
# Number of rows compared with all others at once.
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class ImageHash:
  """Hashes of an image, as hexadecimal digits."""

  image_id: int
  content: str
  """64 bits of the SHA-256 of its bytes."""
  looks: str = ""
  """256 bits; empty for an image without structure, or if it was not computed."""


def hash_image(image_id: int, data: bytes, *, looks: bool = True) -> ImageHash:
  """Hashes an image.

  Args:
    image_id: its id.
    data: the bytes of its file.
    looks: whether to compute the perceptual hash; not for generated images, which look alike.

  Raises:
    Exception: what Pillow or `preprocess.decode_image` raises for a damaged image.
  """
  return ImageHash(image_id, fingerprint.of_bytes(data), hash_looks(data) if looks else "")


def hash_looks(data: bytes) -> str:
  """Returns the perceptual hash of an upright image; empty for one without structure."""
  import imagehash  # with SciPy, which predicting does not need

  with preprocess.open_header(io.BytesIO(data)) as image:
    if image.format in ("JPEG", "MPO"):
      orientation = preprocess.read_orientation(image)
      image.draft("L", (_PIXELS, _PIXELS))
      # A new image: the EXIF data of a file may be damaged.
      small = Image.fromarray(np.asarray(_shrink(image)))
      small.getexif()[_ORIENTATION] = orientation
      small = ImageOps.exif_transpose(small)
    else:
      small = _shrink(Image.fromarray(preprocess.decode_image(data, "to hash")))
  if np.std(np.asarray(small, np.float32)) < _MIN_CONTRAST:
    return ""
  return str(imagehash.phash(small, hash_size=_SIDE))


def _shrink(image: Image.Image) -> Image.Image:
  return image.convert("L").resize((_PIXELS, _PIXELS), Image.Resampling.LANCZOS)


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Identifiers of the images of a split; row i of each array is image i."""

  coco_ids: Int64[np.ndarray, "n"]
  """-1 for an image that is not known to be COCO's."""
  contents: UInt64[np.ndarray, "n"]
  looks: UInt64[np.ndarray, "n 4"]
  """Zeros for an image without."""
  image_ids: Int64[np.ndarray, "n"] | None = None
  """As in the records of the split; None for images of several splits."""

  @classmethod
  def of(cls, hashes: Sequence[ImageHash], coco_ids: Mapping[int, int]) -> "ImageSet":
    """Collects hashes.

    Args:
      hashes: of the images, in any order.
      coco_ids: image id -> COCO id.
    """
    hashes = sorted(hashes, key=lambda row: row.image_id)
    return cls(
      np.array([coco_ids.get(row.image_id, -1) for row in hashes], np.int64),
      np.array([int(row.content, 16) for row in hashes], np.uint64),
      as_words([row.looks for row in hashes]),
      np.array([row.image_id for row in hashes], np.int64),
    )

  def take(self, rows: Bool[np.ndarray, "n"]) -> "ImageSet":
    """Returns some of the images, without their ids."""
    return ImageSet(self.coco_ids[rows], self.contents[rows], self.looks[rows])

  def __len__(self) -> int:
    return len(self.contents)


def as_words(looks: Sequence[str]) -> UInt64[np.ndarray, "n 4"]:
  """Returns looks as integers; zeros for an empty one."""
  digits = "".join(text or "0" * (16 * _WORDS) for text in looks)
  words = np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)
  return words.reshape(len(looks), _WORDS)


def nearest(
  looks: UInt64[np.ndarray, "n 4"], others: UInt64[np.ndarray, "m 4"]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
  """Finds the most similar image for each image.

  Args:
    looks: of the images.
    others: of those to compare with.

  Returns:
    The index of the nearest of `others` and the number of different bits; -1 and 256 without any.
  """
  index, distance = np.full(len(looks), -1), np.full(len(looks), 64 * _WORDS)
  there = np.flatnonzero(others.any(1))
  if not len(there):
    return index, distance
  columns = np.ascontiguousarray(others[there].T)
  for first in range(0, len(looks), _BLOCK):
    rows = looks[first : first + _BLOCK]
    differing = np.zeros((len(rows), len(there)), np.uint16)
    for word in range(_WORDS):
      differing += np.bitwise_count(rows[:, word, None] ^ columns[word])
    best = differing.argmin(1)
    index[first : first + _BLOCK] = there[best]
    distance[first : first + _BLOCK] = differing[np.arange(len(rows)), best]
  missing = ~looks.any(1)
  index[missing], distance[missing] = -1, 64 * _WORDS
  return index, distance


def union(*sets: Mapping[str, ImageSet] | None) -> dict[str, ImageSet] | None:
  """Joins sets of images by the name of their split; None if all are unknown."""
  known = [named for named in sets if named is not None]
  joined: dict[str, ImageSet] = {}
  for name, images in (item for named in known for item in named.items()):
    joined[name] = join([joined[name], images]) if name in joined else images
  return joined if known else None


def join(sets: Sequence[ImageSet]) -> ImageSet:
  """Returns the images of at least one set, each once."""
  rows = [np.column_stack([s.coco_ids.astype(np.uint64), s.contents, s.looks]) for s in sets]
  unique = np.unique(np.concatenate(rows), axis=0)
  return ImageSet(unique[:, 0].astype(np.int64), unique[:, 1], unique[:, 2:])


def to_bytes(sets: Mapping[str, ImageSet]) -> bytes:
  """Returns the bytes of a `.safetensors` file: SPLIT:coco_ids, SPLIT:contents and so on."""
  arrays = {
    f"{name}:{field}": np.ascontiguousarray(value)  # safetensors stores other layouts wrongly
    for name, images in sets.items()
    for field, value in vars(images).items()
    if value is not None and (field != "looks" or value.any())
  }
  return safetensors.numpy.save(arrays)


def from_bytes(data: bytes, where: str) -> dict[str, ImageSet]:
  """Undoes `to_bytes`.

  Args:
    data: the file.
    where: its name in error messages.

  Raises:
    InputError: it is damaged.
  """
  try:
    arrays = safetensors.numpy.load(data)
    names = [key.removesuffix(":contents") for key in arrays if key.endswith(":contents")]
    return {name: _from_arrays(arrays, name) for name in names}
  except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    raise InputError(f"{where}: not a file of image hashes ({error}); is it damaged?") from error


def _from_arrays(arrays: Mapping[str, np.ndarray], name: str) -> ImageSet:
  contents, coco_ids = arrays[f"{name}:contents"], arrays[f"{name}:coco_ids"]
  looks = arrays.get(f"{name}:looks", np.zeros((len(contents), _WORDS), np.uint64))
  image_ids = arrays.get(f"{name}:image_ids")
  known = coco_ids if image_ids is None else image_ids
  types = (contents.dtype, coco_ids.dtype, looks.dtype, known.dtype)
  shapes = (contents.shape, coco_ids.shape, looks.shape, known.shape)
  count = contents.size
  right = types == (np.uint64, np.int64, np.uint64, np.int64)
  if not right or shapes != ((count,), (count,), (count, _WORDS), (count,)):
    raise ValueError(f"{name} has arrays of {shapes}")
  return ImageSet(coco_ids, contents, looks, image_ids)


def find_copies(
  images: ImageSet, others: ImageSet
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
  """Finds the images that are among others.

  Returns:
    Which of the images have the same COCO id or the same bytes as one of the others; and which of
    the rest look the same.
  """
  same = _are_same(images, others)
  alike = np.zeros(len(images), bool)
  alike[~same] = nearest(images.looks[~same], others.looks)[1] <= MAX_DISTANCE
  return same, alike


def find_seen(trained_on: Mapping[str, ImageSet], images: ImageSet) -> dict[str, Any]:
  """Compares the images of a split with a model's training images.

  Args:
    trained_on: by DATASET/SPLIT.
    images: of the split.

  Returns:
    The number of `images`; how many were `seen` (same COCO id or same file); how many others are
    `similar`; and the keys of `trained_on` that they are `from`.
  """
  found = {name: find_copies(images, others) for name, others in trained_on.items()}
  nothing = np.zeros(len(images), bool)
  seen = np.any([nothing, *(same for same, _ in found.values())], axis=0)
  similar = np.any([nothing, *(alike for _, alike in found.values())], axis=0) & ~seen
  return {
    "images": len(images),
    "seen": int(seen.sum()),
    "similar": int(similar.sum()),
    "from": [n for n, (same, alike) in found.items() if same.any() or (alike & ~seen).any()],
  }


def _are_same(images: ImageSet, others: ImageSet) -> Bool[np.ndarray, "n"]:
  known = images.coco_ids >= 0
  return np.isin(images.contents, others.contents) | (
    known & np.isin(images.coco_ids, others.coco_ids)
  )
