"""A user's own data, a line of JSON each (docs/guides/custom-data.md), as a source of photos with refs."""

import os
import re
from typing import Any

from input_pipeline.common.errors import InputError
from input_pipeline.custom import masks, scan, schema
from input_pipeline.custom.schema import LineError
from input_pipeline.sources import annotated_images

PREFIX = "jsonl:"
"""What `--dataset` begins with."""
_BY_ID = ("coco", "results")  # proposers that look masks up by the ids of images
# Photos that are COCO's are recognised by COCO's own names: a stock detector has seen them.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)201[45]_)?(\d{12})\.jpe?g", re.IGNORECASE)


class JsonlReader:
  """The lines of a file, all checked before anything is written.

  Attributes:
    dataset: its name, as users know it.
    annotations_path: empty: its objects are of no list of categories.
    splits: for each split, its image ids, ascending.
    left_out: what is wrong with the lines that are left out.
    has_instances: whether any line comes with instances.
    no_targets: how many lines of each split mean nothing.
  """

  def __init__(
    self,
    path: str,
    name: str,
    images: str | None = None,
    annotations: str | None = None,
    *,
    skip: bool = False,
    workers: int | None = None,
  ):
    """Reads and checks the whole file.

    Args:
      path: of the file.
      name: of the data set.
      images: the folder that paths of images start in; the file's own by default.
      annotations: the COCO file that `ann_id` looks into, where no line names it.
      skip: whether lines with which something is wrong are left out; otherwise they are an error.
      workers: processes that check it.

    Raises:
      InputError: something is wrong with the file, or no line of it can be used.
    """
    self.dataset, self.annotations_path = name, ""
    self._scan = scan.scan(path, images, annotations, workers=workers)
    self.left_out = self._scan.errors()
    if self.left_out and (not skip or not self._scan.lines):
      raise _refusal(path, images, self.left_out)
    self._lines: dict[tuple[str, int], list[int]] = {}
    self._instances: dict[int, int] = {}
    self.no_targets: dict[str, int] = {}
    for row in self._scan.lines:
      image_id = self._scan.image_ids[row.image]
      self._lines.setdefault((row.split, image_id), []).append(row.offset)
      if row.instances_hash:
        self._instances.setdefault(image_id, row.offset)
      self.no_targets[row.split] = self.no_targets.get(row.split, 0) + (row.area == 0)
    self._sizes = {self._scan.image_ids[row.image]: row.size for row in self._scan.lines}
    self._paths = {self._scan.image_ids[row.image]: row.image for row in self._scan.lines}
    self.splits = {
      split: sorted({self._scan.image_ids[row.image] for row in facts})
      for split, facts in self._scan.splits().items()
    }
    self._number_of = {row.offset: row.number for row in self._scan.lines}
    self.has_instances = bool(self._instances)
    self._ids_given = all(row.image_id is not None for row in self._scan.lines)

  def coco_ids(self) -> dict[str, list[int]]:
    """Returns the COCO ids of the photos that have COCO's names."""
    named = {i: _COCO_NAME.fullmatch(os.path.basename(p)) for i, p in self._paths.items()}
    return {
      split: [int(match[1]) for i in ids if (match := named[i]) is not None]
      for split, ids in self.splits.items()
    }

  def warning(self) -> str | None:
    """Returns what looks wrong and can be used all the same, None where nothing does."""
    found = self._scan.warnings()
    parts = []
    if found:
      parts.append(f"{self._scan.path}: {len(found):,} warnings, the first: {found[0]}")
    if self.left_out:
      count = len({problem.line for problem in self.left_out})
      parts.append(
        f"{count:,} lines of {self._scan.path} are left out, the first: {self.left_out[0]}"
      )
    return "; ".join(parts) or None

  def more_metadata(self) -> dict[str, Any]:
    """Returns what the data set's metadata keeps besides: what means nothing, and what was left out."""
    left_out = [[problem.line, problem.message] for problem in self.left_out]
    return {"no_targets": self.no_targets} | ({"lines_left_out": left_out} if left_out else {})

  def check_proposer(self, spec: str) -> None:
    """Refuses masks that are looked up by ids that the images have not been given.

    Raises:
      InputError: the proposer knows images by their ids, and a line says none.
    """
    if spec.partition(":")[0] in _BY_ID and not self._ids_given:
      raise InputError(
        f"--instances {spec}: it finds images by their ids, and lines of {self._scan.path} have no image_id; give them "
        "those of that file"
      )

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the file of an image; `images` is the folder that was given before."""
    del images
    return self._scan.paths.resolve(self._paths[image_id])

  def photo(self, split: str, image_id: int, images: str) -> annotated_images.Photo:
    """Returns one photo with the refs that it has in a split, and its own instances.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of photos.
    """
    found = [self._read(offset) for offset in self._lines[split, image_id]]
    size = self._sizes[image_id]
    assert size is not None
    owner = self._instances.get(image_id)
    return annotated_images.Photo(
      self.image_path(images, image_id),
      image_id,
      *size,
      annotations=self._scan.path,
      refs=[self._ref(line) for line in found],
      rule="custom",
      upright=True,
      instances=None if owner is None else self._own_instances(self._read(owner)),
    )

  def _read(self, offset: int) -> schema.Annotation:
    with open(self._scan.path, "rb") as file:
      file.seek(offset)
      data = file.readline()
    data = data.removeprefix(b"\xef\xbb\xbf") if offset == 0 else data
    line, _ = schema.parse(self._number_of[offset], data.strip())
    if line is None:
      raise InputError(f"{self._scan.path} was changed while it was read; start again")
    return line

  def _ref(self, line: schema.Annotation) -> dict[str, Any]:
    ref_id = self._scan.ref_ids[line.number]
    parts = [part for mask in line.target for part in self._resolve(mask, line)]
    ids = [i for mask in line.target for i in mask.get("ann_ids", [mask.get("ann_id")])]
    own = [ref_id] if parts else []
    return {
      "ref_id": ref_id,
      "ann_ids": own if None in ids else ids,
      "segmentations": parts,
      "sentences": list(line.sentences),
    }

  def _own_instances(self, line: schema.Annotation) -> list[dict[str, Any]]:
    kept = [
      {key: mask[key] for key in schema.INSTANCE_KEYS if key in mask}
      for mask in line.instances or ()
    ]
    return [
      self._resolve(mask, line)[0] | more
      for mask, more in zip(line.instances or (), kept, strict=True)
    ]

  def _resolve(self, mask: schema.Mask, line: schema.Annotation) -> list[schema.Mask]:
    try:
      return masks.resolve(mask, line.image, self._scan.paths)
    except LineError as error:
      raise InputError(f"{self._scan.path}, {error.at(line.number)}") from error


def _refusal(path: str, images: str | None, found: list[schema.Problem]) -> InputError:
  count = len({problem.line for problem in found})
  more = f" --images {images}" if images is not None else ""
  return InputError(
    f"{path}: {len(found):,} error{'s' * (len(found) > 1)} in {count:,} line{'s' * (count > 1)}, the first: "
    f"{found[0]}; `python -m input_pipeline.custom validate {path}{more}` lists them all, and --on_error skip leaves "
    "such lines out"
  )


def name_of(path: str, name: str | None) -> str:
  """Returns the name of a data set: what the user says, else the file's own without its ending.

  Characters that a name may not have become `_`, where the user said nothing.
  """
  if name is not None:
    return name
  stem = os.path.splitext(os.path.basename(path))[0]
  return re.sub(r"\W", "_", stem, flags=re.ASCII)
