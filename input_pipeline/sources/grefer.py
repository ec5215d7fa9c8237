"""gRefCOCO, whose expressions refer to any number of objects: github.com/henghuiding/gRefCOCO.

The files are `ROOT/grefcoco/grefs(unc).json` and `ROOT/grefcoco/instances.json`; the images are
COCO train2014. The layout is RefCOCO's as JSON, with a list of annotations per ref, `[-1]` for
none. As in the authors' toolkit, the target is the union of the annotations without crowds.
"""

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.sources import refer

NO_TARGET = -1
"""The only id of a ref without a target."""

# The authors only publish the total number of expressions, 259,859 (arXiv 2601.05244).
LAYOUTS = {
  "grefcoco_unc": refer.Layout(
    "grefcoco", "grefs(unc).json", dict.fromkeys(("train", "val", "testA", "testB"))
  )
}


class GRefReader(refer.RefReader):
  """The refs of gRefCOCO, checked against their annotations; a ref may have none."""

  layouts: ClassVar[Mapping[str, refer.Layout]] = LAYOUTS

  def _load(self, path: str) -> Any:
    try:
      return untrusted_json.load_file(path)
    except InputError as error:
      raise InputError(f"{error}; docs/guides/datasets.md says where to get it") from error

  def _ids(self, where: str, fields: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ann_ids = _integers(where, "ann_id", fields.get("ann_id"))
    empty = ann_ids == (NO_TARGET,)
    if not ann_ids or (NO_TARGET in ann_ids and not empty) or len(set(ann_ids)) < len(ann_ids):
      raise InputError(
        f"{where}: ann_id is {reprlib.repr([*ann_ids])}; it must be distinct annotations, or [-1] "
        "for no target"
      )
    no_target = fields.get("no_target", empty)
    if no_target is not empty:
      raise InputError(
        f"{where}: no_target is {reprlib.repr(no_target)}, but ann_id is "
        f"{reprlib.repr(list(ann_ids))}; is the file damaged?"
      )
    if empty:
      return (), ()
    if "category_id" not in fields:
      return ann_ids, ()
    return ann_ids, _integers(where, "category_id", fields["category_id"])

  def _target_annotations(self, row: refer.Row) -> list[dict[str, Any]]:
    annotations = super()._target_annotations(row)
    objects = [annotation for annotation in annotations if not annotation.get("iscrowd")]
    if row.ann_ids and not objects:
      raise InputError(
        f"{self.refs_path}, ref {row.ref_id}: all of its annotations are crowds in "
        f"{self.annotations_path}; do the two files belong together?"
      )
    return objects


def _integers(where: str, key: str, value: Any) -> tuple[int, ...]:
  """Returns a number or a list of numbers as a tuple; the authors' toolkit accepts either."""
  values = value if isinstance(value, list) else [value]
  if any(not refer.is_int64(number) for number in values):
    raise InputError(
      f"{where}: {key} is {reprlib.repr(value)}, not a list of integers; is this the refs file of "
      "another data set?"
    )
  return tuple(values)
