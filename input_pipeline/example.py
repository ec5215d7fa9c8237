"""What is stored for a record: the names of its fields, how each is written, and how it is read again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline import preprocess, records
from input_pipeline.common.errors import InputError


def encode_record(record: records.ImageRecord) -> dict[str, Any]:
  """Returns the fields of a record as they are stored; `builder.record_features` names their types.

  Raises:
    InputError: a sentence is empty.
  """
  return {
    "image": record.image,
    "image_id": record.image_id,
    "file_name": record.file_name,
    "height": record.height,
    "width": record.width,
    "instances": records.encode_planes(records.pack_planes(record.instances.masks)),
    "instance_score": record.instances.scores,
    "instance_category": record.instances.categories,
    "instances_from": record.instances.source,
    "instances_trained_on": record.instances.trained_on,
    "refs": [_encode_ref(ref) for ref in record.refs],
  }


def decode_record(fields: Mapping[str, Any]) -> records.ImageRecord:
  """Returns the record whose fields `encode_record` gave; the photo stays as it is.

  Raises:
    InputError: its masks cannot be decoded, or are of another size than it.
  """
  try:
    return _decode_record(fields)
  except Exception as error:  # Pillow raises nearly anything of damaged files.
    raise InputError(
      f"image {fields['file_name']} (image_id {fields['image_id']}): one of its masks cannot be decoded ({error}); "
      "prepare the data set again with --overwrite"
    ) from error


def _decode_record(fields: Mapping[str, Any]) -> records.ImageRecord:
  height, width = int(fields["height"]), int(fields["width"])
  scores = np.asarray(fields["instance_score"], np.float32)
  if height * width > preprocess.MAX_PIXELS:
    raise ValueError(f"an image of {width} x {height} pixels")
  planes = records.decode_planes(fields["instances"], height, width)
  return records.ImageRecord(
    image=fields["image"],
    image_id=int(fields["image_id"]),
    file_name=fields["file_name"],
    height=height,
    width=width,
    instances=records.Instances(
      masks=records.unpack_planes(planes, len(scores)),
      scores=scores,
      categories=np.asarray(fields["instance_category"], np.int32),
      source=fields["instances_from"],
      trained_on=fields["instances_trained_on"],
    ),
    refs=tuple(_decode_ref(ref, (height, width)) for ref in fields["refs"]),
  )


def _decode_ref(fields: Mapping[str, Any], size: tuple[int, int]) -> records.Ref:
  return records.Ref(
    ref_id=int(fields["ref_id"]),
    ann_ids=tuple(map(int, fields["ann_ids"])),
    target=records.decode_target(fields["target"], size),
    sentences=tuple(fields["sentences"]),
  )


def _encode_ref(ref: records.Ref) -> dict[str, Any]:
  try:
    normalised = [preprocess.normalise_text(sentence) for sentence in ref.sentences]
  except InputError as error:
    raise InputError(f"ref {ref.ref_id}: {error}") from error
  return {
    "ref_id": ref.ref_id,
    "ann_ids": list(ref.ann_ids),
    "target": records.encode_target(ref.target),
    "sentences": list(ref.sentences),
    "normalised": normalised,
  }
