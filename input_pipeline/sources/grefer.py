"""gRefCOCO, whose expressions mean several objects, one, or none: the layout of github.com/henghuiding/gRefCOCO.

`ROOT/grefcoco/grefs(unc).json` and `ROOT/grefcoco/instances.json`; photos are COCO train2014. It is RefCOCO's layout as
JSON, with a list of annotations a ref, and `[-1]` for none. As in the authors' toolkit the target is the union of the
annotations, crowds left out.
"""

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

from input_pipeline.common import untrusted_json
from input_pipeline.common.errors import InputError
from input_pipeline.sources import refer

NO_TARGET = -1
"""The one id in the list of a ref that means nothing."""

# The authors publish the number of all expressions, 259,859 (arXiv 2601.05244), and none a split that we have found.
LAYOUTS = {
  "grefcoco_unc": refer.Layout(
    "grefcoco", "grefs(unc).json", dict.fromkeys(("train", "val", "testA", "testB"))
  )
}


class GRefReader(refer.RefReader):
  """The refs of gRefCOCO, checked against their annotations; what means nothing has no annotation."""

  layouts: ClassVar[Mapping[str, refer.Layout]] = LAYOUTS

  def _load(self, path: str) -> Any:
    try:
      return untrusted_json.load_file(path)
    except InputError as error:
      raise InputError(f"{error}; docs/guides/datasets.md says where to get it") from error

  def _ids(self, where: str, fields: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ann_ids = _whole_numbers(where, "ann_id", fields.get("ann_id"))
    empty = ann_ids == (NO_TARGET,)
    if not ann_ids or (NO_TARGET in ann_ids and not empty) or len(set(ann_ids)) < len(ann_ids):
      raise InputError(
        f"{where}: ann_id is {reprlib.repr([*ann_ids])}; it must be different annotations, or [-1] for none"
      )
    said = fields.get("no_target", empty)
    if said is not empty:
      raise InputError(
        f"{where}: no_target is {reprlib.repr(said)}, but ann_id is {reprlib.repr(list(ann_ids))}; is the file damaged?"
      )
    if empty:
      return (), ()
    if "category_id" not in fields:
      return ann_ids, ()
    return ann_ids, _whole_numbers(where, "category_id", fields["category_id"])

  def _meant(self, row: refer.Row) -> list[dict[str, Any]]:
    meant = [annotation for annotation in super()._meant(row) if not annotation.get("iscrowd")]
    if row.ann_ids and not meant:
      raise InputError(
        f"{self.refs_path}, ref {row.ref_id}: every annotation it names is a crowd in {self.annotations_path}; do the "
        "two files belong together?"
      )
    return meant


def _whole_numbers(where: str, key: str, value: Any) -> tuple[int, ...]:
  """One number or a list of them: the authors' toolkit takes either."""
  values = value if isinstance(value, list) else [value]
  if any(not refer.is_whole(number) for number in values):
    raise InputError(
      f"{where}: {key} is {reprlib.repr(value)}, not a list of whole numbers; is this the refs of another data set?"
    )
  return tuple(values)
