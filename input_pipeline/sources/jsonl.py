"""Custom data, one JSON object per line (docs/guides/custom-data.md), as a reader of refs."""

import os
import re
from typing import Any

from input_pipeline.common import image_names
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.custom import across_lines, line_files, masks, scan, schema
from input_pipeline.custom.check import LineSummary
from input_pipeline.custom.schema import LineError
from input_pipeline.sources.annotated_images import AnnotatedImage

PREFIX = "jsonl:"
"""Prefix of `--dataset`."""


class JsonlReader:
  """The lines of a file, all checked before anything is written.

  Attributes:
    dataset: name of the data set.
    annotations_path: always empty, since there is no list of categories.
    splits: for each split, its image ids, ascending.
    left_out: errors of the lines that are left out.
    has_instances: whether any line has instances.
    no_targets: number of lines without a target in each split.
    has_ids: whether every line has an `image_id`; otherwise image ids are numbers of this reader.
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
      images: the folder that paths of images are relative to; the file's own by default.
      annotations: the COCO file that `ann_id` refers to, if no line names it.
      skip: whether lines with errors are left out; otherwise they are an error.
      workers: number of processes that check it.

    Raises:
      InputError: a line has an error, or no line can be used.
    """
    self.dataset, self.annotations_path = name, ""
    self._scan = scan.scan(path, images, annotations, workers=workers)
    self.left_out = self._scan.errors()
    if self.left_out and (not skip or not self._scan.lines):
      raise _refusal(path, images, self.left_out)
    self._lines = self._scan.lines
    self.no_targets = {
      split: self._lines.one("SELECT sum(area = 0) FROM lines WHERE split = ?", split)
      for split in self._scan.splits()
    }
    images = "SELECT id FROM images JOIN (SELECT DISTINCT image FROM lines WHERE split = ?)"
    self.splits = {
      split: [i for (i,) in self._lines.query(f"{images} USING (image) ORDER BY id", split)]
      for split in self._scan.splits()
    }
    self.has_instances = bool(self._lines.one("SELECT 1 FROM lines WHERE instances_hash != ''"))
    self.has_ids = not self._lines.one("SELECT 1 FROM lines WHERE image_id ISNULL")

  def coco_ids(self) -> dict[str, dict[int, int]]:
    """Returns, for each split, image id -> COCO id of the images with COCO's file names."""
    return {
      split: {
        i: number for i in ids if (number := image_names.coco_number(self._name(i))) is not None
      }
      for split, ids in self.splits.items()
    }

  def warnings(self) -> list[str]:
    """Returns the number of warnings and of lines left out, if any."""
    leakage, lines = self._scan.leakage(), []
    kinds = {problem.kind for problem in leakage}
    warnings = [problem for problem in self._scan.warnings() if problem.kind not in kinds]
    if leakage:
      count = len({problem.message for problem in leakage})
      lines.append(
        f"{self._scan.path}: {counted(count, 'image')} with a copy in another split; the first is: "
        f"{leakage[0]}"
      )
    if warnings:
      lines.append(
        f"{self._scan.path}: {counted(len(warnings), 'warning')}; the first is: {warnings[0]}"
      )
    if self.left_out:
      count = len({problem.line for problem in self.left_out})
      lines.append(
        f"{counted(count, 'line')} of {self._scan.path} left out; the first is: {self.left_out[0]}"
      )
    return lines

  def more_metadata(self) -> dict[str, Any]:
    """Returns further metadata of the data set: lines without a target, and lines left out."""
    left_out = [[problem.line, problem.message] for problem in self.left_out]
    return {"no_targets": self.no_targets} | ({"lines_left_out": left_out} if left_out else {})

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the path of an image; `images` is the folder that the constructor has."""
    del images
    return self._scan.paths.resolve(self._name(image_id))

  def annotated_image(self, split: str, image_id: int, images: str) -> AnnotatedImage:
    """Returns an image with its refs in a split, and its instances.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of images.
    """
    name = self._name(image_id)
    lines = list(self._lines.where("image = ? AND split = ?", name, split))
    size = lines[0].size
    assert size is not None
    with_instances = next(self._lines.where("image = ? AND instances_hash != ''", name), None)
    return AnnotatedImage(
      self.image_path(images, image_id),
      image_id,
      *size,
      annotations=self._scan.path,
      refs=[self._ref(self._read(line)) for line in lines],
      rule="custom",
      upright=True,
      name=name,
      has_id=self.has_ids,
      instances=self._resolve_instances(self._read(with_instances)) if with_instances else None,
    )

  def _name(self, image_id: int) -> str:
    return self._lines.one("SELECT image FROM images WHERE id = ?", image_id)

  def _read(self, summary: LineSummary) -> schema.Annotation:
    data = line_files.read_line(self._scan.path, summary.offset)
    line, _ = schema.parse(summary.number, data)
    if line is None:
      raise InputError(f"{self._scan.path} changed while it was read; run the command again")
    return line

  def _ref(self, line: schema.Annotation) -> dict[str, Any]:
    ref_id = across_lines.ref_id(line.ref_id, line.number)
    parts = [part for mask in line.target for part in self._resolve(mask, line)]
    ids = [i for mask in line.target for i in mask.get("ann_ids", [mask.get("ann_id")])]
    if None in ids:
      # Masks that are not COCO annotations have no ids.
      ids = [ref_id] if parts else []
    return {
      "ref_id": ref_id,
      "ann_ids": ids,
      "segmentations": parts,
      "sentences": list(line.sentences),
    }

  def _resolve_instances(self, line: schema.Annotation) -> list[dict[str, Any]]:
    return [
      self._resolve(mask, line)[0] | {key: mask[key] for key in schema.INSTANCE_KEYS if key in mask}
      for mask in line.instances or ()
    ]

  def _resolve(self, mask: schema.Mask, line: schema.Annotation) -> list[schema.Mask]:
    try:
      return masks.resolve(mask, line.image, self._scan.paths)
    except LineError as error:
      raise InputError(f"{self._scan.path}, {error.at(line.number)}") from error


def _refusal(path: str, images: str | None, errors: list[schema.Problem]) -> InputError:
  count = len({problem.line for problem in errors})
  option = f" --images {images}" if images is not None else ""
  return InputError(
    f"{path}: {counted(len(errors), 'error')} in {counted(count, 'line')}; "
    f"the first is: {errors[0]}; `python -m input_pipeline.custom validate {path}{option}` lists "
    "them all, and --on_error skip leaves such lines out"
  )


def name_of(path: str, name: str | None) -> str:
  """Returns the name of a data set: the given one, or the file name without its extension.

  In the latter, characters that a name cannot have become `_`.
  """
  if name is not None:
    return name
  stem = os.path.splitext(os.path.basename(path))[0]
  return re.sub(r"\W", "_", stem, flags=re.ASCII)
