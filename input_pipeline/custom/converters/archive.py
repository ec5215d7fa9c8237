"""Exports that consist of a single JSON file, alone or in a zip or folder."""

from typing import Any

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters.collect import Export
from input_pipeline.custom.converters.export_files import ExportFiles

_SHOWN = 4


def load(path: str, export: Export) -> Any:
  """Parses the JSON of an export; NaN, as written by pandas for missing values, becomes None.

  Args:
    path: of a JSON file, or of a zip or folder with one JSON file.
    export: notes images in a zip, which are not read.

  Raises:
    InputError: it cannot be read, or does not have exactly one JSON file.
  """
  with ExportFiles(path) as files:
    if files.whole:
      return files.read_json(files.names[0])
    found = [name for name in files.names if name.lower().endswith(".json")]
    if len(found) != 1:
      few = ", ".join(found[:_SHOWN]) + ", ..." * (len(found) > _SHOWN)
      unpack = "unpack it and " if files.zipped else ""
      several = f"{len(found)} JSON files ({few}); {unpack}name one, or all splits of one data set"
      raise InputError(f"{path}: contains {several if found else 'no JSON file'}")
    note_images(files, export)
    return files.read_json(found[0])


def note_images(files: ExportFiles, export: Export) -> None:
  """Notes images in a zip, which are not read."""
  images = sum(name.lower().endswith(preprocess.EXTENSIONS) for name in files.names)
  if images and files.zipped:
    export.noted["images in the zip are not read; unpack it and set --images"] = images
