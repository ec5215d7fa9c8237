"""The record: one image, its instance masks and its expressions; and how it is stored.

Instance masks are stored as bit planes (`preprocess/bit_planes.py`), targets as 1-bit PNGs.
"""

import dataclasses
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.preprocess import bit_planes, images


@dataclasses.dataclass(frozen=True)
class Instances:
  """Instance masks of one image, best first (`proposers/ranking.py`). They may overlap."""

  masks: Bool[np.ndarray, "k h w"]
  """At the size of the image."""
  scores: Float32[np.ndarray, "k"]
  """Confidence of the proposer; higher is better."""
  categories: Int32[np.ndarray, "k"]
  """Category ids of the proposer; not used by the model."""
  source: str
  """The proposer: `coco`, `results`, `shapes`, `none` and so on."""
  trained_on: str = "nothing"
  """The proposer's training data, as `proposers/leakage.py` names it."""
  notes: tuple[str, ...] = ()
  """Notes on what the proposer left out or changed; not stored."""


@dataclasses.dataclass(frozen=True)
class Ref:
  """One target and every expression that refers to it."""

  ref_id: int
  ann_ids: tuple[int, ...]
  target: Bool[np.ndarray, "h w"]
  sentences: tuple[str, ...]
  """Expressions as people wrote them; the record stores them normalised as well."""


@dataclasses.dataclass(frozen=True)
class ImageRecord:
  """One image with the refs of one split."""

  image: bytes
  """JPEG or PNG, unchanged."""
  image_id: int
  file_name: str
  height: int
  width: int
  instances: Instances
  refs: tuple[Ref, ...]


OBJECT_SIZES = {"small": 32**2, "medium": 96**2, "large": math.inf}
"""COCO's object sizes: each has an area below the given number of pixels of the image."""


def object_size(area: int) -> str:
  """Returns the COCO size of an object with this area in pixels."""
  return next(size for size, limit in OBJECT_SIZES.items() if area < limit)


def no_instances(height: int, width: int) -> Instances:
  """Returns the instances of an image without proposals."""
  return Instances(
    masks=np.zeros((0, height, width), bool),
    scores=np.zeros(0, np.float32),
    categories=np.zeros(0, np.int32),
    source="none",
  )


def encode_record(record: ImageRecord) -> dict[str, Any]:
  """Returns the fields of a record as they are stored; `builder.record_features` has their types.

  Raises:
    InputError: an expression is empty.
  """
  return {
    "image": record.image,
    "image_id": record.image_id,
    "file_name": record.file_name,
    "height": record.height,
    "width": record.width,
    "instances": bit_planes.encode_png(bit_planes.packbits(record.instances.masks)),
    "instance_score": record.instances.scores,
    "instance_category": record.instances.categories,
    "instances_from": record.instances.source,
    "instances_trained_on": record.instances.trained_on,
    "refs": [_encode_ref(ref) for ref in record.refs],
  }


def decode_record(fields: Mapping[str, Any]) -> ImageRecord:
  """Undoes `encode_record`; the image stays encoded.

  Raises:
    InputError: a mask cannot be decoded, or differs from the image in size.
  """
  try:
    return _decode_record(fields)
  except Exception as error:  # Pillow raises nearly anything for damaged files
    raise InputError(
      f"image {fields['file_name']} (image_id {fields['image_id']}): one of its masks cannot be "
      f"decoded ({error}); prepare the data set again with --overwrite"
    ) from error


def _decode_record(fields: Mapping[str, Any]) -> ImageRecord:
  height, width = int(fields["height"]), int(fields["width"])
  scores = np.asarray(fields["instance_score"], np.float32)
  if height * width > images.MAX_PIXELS:
    raise ValueError(f"an image of {width} x {height} pixels")
  planes = bit_planes.decode_png(fields["instances"], height, width)
  return ImageRecord(
    image=fields["image"],
    image_id=int(fields["image_id"]),
    file_name=fields["file_name"],
    height=height,
    width=width,
    instances=Instances(
      masks=bit_planes.unpackbits(planes, len(scores)),
      scores=scores,
      categories=np.asarray(fields["instance_category"], np.int32),
      source=fields["instances_from"],
      trained_on=fields["instances_trained_on"],
    ),
    refs=tuple(_decode_ref(ref, (height, width)) for ref in fields["refs"]),
  )


def _decode_ref(fields: Mapping[str, Any], size: tuple[int, int]) -> Ref:
  return Ref(
    ref_id=int(fields["ref_id"]),
    ann_ids=tuple(map(int, fields["ann_ids"])),
    target=decode_target(fields["target"], size),
    sentences=tuple(fields["sentences"]),
  )


def _encode_ref(ref: Ref) -> dict[str, Any]:
  try:
    normalised = [preprocess.normalise_text(sentence) for sentence in ref.sentences]
  except InputError as error:
    raise InputError(f"ref {ref.ref_id}: {error}") from error
  return {
    "ref_id": ref.ref_id,
    "ann_ids": list(ref.ann_ids),
    "target": encode_target(ref.target),
    "sentences": list(ref.sentences),
    "normalised": normalised,
  }


def encode_target(target: Bool[np.ndarray, "h w"]) -> bytes:
  """Encodes a mask as a 1-bit PNG."""
  return images.encode_png(Image.fromarray(target))


def decode_target(png: bytes, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "h w"]:
  """Undoes `encode_target`.

  Args:
    png: an encoded mask.
    size: height and width that it must have.

  Raises:
    Exception: what Pillow raises for invalid PNGs; a ValueError for a PNG that is not a mask of
      that size.
  """
  with images.open_header(io.BytesIO(png), formats=("PNG",)) as image:
    if size is not None and image.size != size[::-1]:
      raise ValueError(
        f"a target of {image.width} x {image.height} for {size[1]} x {size[0]} pixels"
      )
    if image.mode not in ("1", "L"):
      raise ValueError(f"a target of mode {image.mode}, expected 1 bit")
    return np.asarray(image).astype(bool)
