"""A file of masks of another model.

A row per expression with counts that masks of the image's size can have, or an `InputError`.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline import records
from input_pipeline.common.errors import InputError
from input_pipeline.masks.segmentation import encode_segmentation
from mail_jax.evaluate import given_masks, predictions, protocols
from mail_jax.evaluate.matching import Question

COVERED = ("mail_jax/evaluate/predictions.py", "mail_jax/evaluate/matching.py")
MAX_BYTES = 2048
_SIZE = (12, 9)
_TARGET = np.indices(_SIZE).sum(0) % 5 < 2
_QUESTIONS = [
  Question("pets/val", 7, "a/b.jpg", 3, 0, "the left cup"),
  Question("pets/val", 7, "a/b.jpg", 3, 1, "cup"),
  Question("pets/val", 8, "c.jpg", 4, 0, "dog"),
]


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields lists, lines and wrapped lists, with every way to name an expression and a mask."""
  del realdata
  runs = encode_segmentation(_TARGET[:, ::-1])
  listed = {"size": list(_SIZE), "counts": [0, 5, 100, 3]}
  names: list[dict[str, Any]] = [
    {"ref_id": 3, "expression_index": 0},
    {"ref_id": "3", "sentence": "Cup"},
    {"ref_id": 4, "sent_id": 90},
    {"image": "b.jpg", "expression": "the left cup", "line": 1, "number": 0},
    {"file_name": "http://x/a/b.jpg?y", "sent": "cup"},
    {"image_id": 8, "sentence": "dog"},
  ]
  masks: list[dict[str, Any]] = [
    {"mask": runs},
    {"segmentation": [[1, 1, 8, 1, 8, 8]]},
    {"rle": listed, "no_target_probability": 0.75},
    {"segmentation": []},
    {"mask": [[0, 1, 0.5], [0, 0, 1]]},
  ]
  for mask in masks:
    rows = [name | mask for name in names]
    for start in (0, 3):
      yield json.dumps(rows[start : start + 3]).encode()
      yield "\n".join(map(json.dumps, rows[start : start + 3])).encode()
      yield json.dumps({"predictions": rows[start : start + 3]}).encode()


def one_input(data: bytes) -> None:
  """Judges the predictions by two protocols."""
  targets = [records.encode_target(_TARGET)] * len(_QUESTIONS)
  for name in ("original", "oneref"):
    try:
      found = predictions.parse(data, "p.json")
      rows, _ = given_masks.evaluate(
        found, _QUESTIONS, targets, protocols.find(name), "p.json", allow_missing=True
      )
    except InputError as error:
      assert "p.json" in str(error) and "\n" not in str(error)
      continue
    assert len(rows) == len(_QUESTIONS)
    for row in rows:
      assert 0 <= row["intersection"] <= row["union"] and row["area"] == _TARGET.sum()
