"""Refs of any data set in this layout: any bytes are refs (pickle or JSON) or an `InputError`."""

import atexit
import contextlib
import json
import pathlib
import pickle
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from input_pipeline.common import untrusted_pickle
from input_pipeline.common.errors import InputError
from input_pipeline.sources import refer

COVERED = (
  "input_pipeline/common/untrusted_pickle.py",
  "input_pipeline/sources/refs_file.py",
  "input_pipeline/sources/refer.py",
)
MAX_BYTES = 2048

_SIZE = {"height": 4, "width": 5}
_INSTANCES = {
  "images": [{"id": 1, "file_name": "COCO_train2014_000000000001.jpg", **_SIZE}],
  "annotations": [
    {"id": number, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}
    for number in (1, 2)
  ],
  "categories": [{"id": 1, "name": "cup"}],
}


def _ref(number: int, split: str) -> dict:
  sentence = {"tokens": ["left", "cup"], "raw": "Left cup", "sent_id": number, "sent": "left cup"}
  return {
    "sent_ids": [number], "file_name": "COCO_train2014_000000000001_1.jpg", "ann_id": number,
    "ref_id": number,
    "image_id": 1, "split": split, "sentences": [sentence], "category_id": 1,
  }  # fmt: skip


def _folder() -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="fuzzing-"))
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  (root / "refcoco").mkdir()
  (root / "refcoco" / "instances.json").write_text(json.dumps(_INSTANCES))
  return root


_ROOT = _folder()


def seeds(realdata: pathlib.Path) -> Iterator[bytes]:
  """Yields refs in every pickle protocol, and the first ones of real files."""
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    yield pickle.dumps([_ref(1, "train"), _ref(2, "testA")], protocol)
  several = _ref(3, "testAB") | {"ann_id": [1, 2], "category_id": [1, 1]}
  nothing = _ref(4, "val") | {"ann_id": (-1,), "no_target": True, "source": "zero"}
  scalars = {"ref_id": np.int64(5), "ann_id": "2", "image_id": np.float32(1), "sentences": ()}
  rows = [several, nothing, _ref(5, "train") | scalars]
  rows[0]["sentences"].append({"raw": "a cat", "exist": False})
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    yield pickle.dumps(rows, protocol)
  for encoding in ("utf-8", "utf-8-sig", "utf-16"):
    yield json.dumps(rows[:2]).encode(encoding)
  yield pickle.dumps([{"a": (1, 2.5, None, True), "b": [[-3, 2**40], "é", ()]}], 2)
  for path in sorted(realdata.glob("refer/*/refs*.p")):
    with path.open("rb") as file:
      found = pickle.load(file, encoding="utf-8")
    yield pickle.dumps([{**found[0], "image_id": 1, "ann_id": 1, "category_id": 1}], 2)


def one_input(data: bytes) -> None:
  """Reads the bytes as a pickle, as the refs of RefCOCO, and as those of another data set."""
  with contextlib.suppress(InputError):
    repr(untrusted_pickle.loads(data, "refs"))  # must not contain itself or grow exponentially
  (_ROOT / "refcoco" / "refs(unc).p").write_bytes(data)
  for read in (
    lambda: refer.RefReader("refcoco_unc", str(_ROOT)),
    lambda: refer.RefReader("any", str(_ROOT / "refcoco"), layout=refer.layout_of("unc")),
  ):
    with contextlib.suppress(InputError):
      reader = read()
      for row in reader.rows:
        assert set(row.ann_ids) <= {1, 2} and row.image_id == 1 and all(row.sentences)
      for split, image_ids in reader.splits.items():
        for image_id in image_ids:
          assert reader.annotated_image(split, image_id, str(_ROOT)).refs
      json.dumps([reader.warnings(), reader.more_metadata()])
