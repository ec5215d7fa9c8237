"""What is stored for a record: the names of its fields and how each is written."""

from typing import Any

from input_pipeline import preprocess, records
from input_pipeline.errors import InputError


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
