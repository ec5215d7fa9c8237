"""The JSON of an export that is one JSON file, also inside the zip that most tools hand over."""

from typing import Any

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters.collect import Export
from input_pipeline.custom.converters.export_files import ExportFiles

_SHOWN = 4


def load(path: str, export: Export) -> Any:
  """Parses the JSON of an export; NaN, which pandas writes for a missing value, is None.

  Args:
    path: of a JSON file, or of a zip or folder with one JSON file.
    export: takes note of images in a zip, which are not read.

  Raises:
    InputError: it cannot be read, or there is no JSON file or several.
  """
  with ExportFiles(path) as files:
    if files.whole:
      return files.read_json(files.names[0])
    found = [name for name in files.names if name.lower().endswith(".json")]
    if len(found) != 1:
      few = ", ".join(found[:_SHOWN]) + ", ..." * (len(found) > _SHOWN)
      what = f"{len(found)} JSON files ({few}); name one, or several as parts of one data set"
      first = "; unpack it first" if found and files.zipped else ""
      raise InputError(f"{path}: it has {what if found else 'no JSON file'}{first}")
    note_images(files, export)
    return files.read_json(found[0])


def note_images(files: ExportFiles, export: Export) -> None:
  """Takes note of images in a zip, which are not read."""
  images = sum(name.lower().endswith(preprocess.EXTENSIONS) for name in files.names)
  if images and files.zipped:
    export.noted["images in the zip are not read; unpack it and name --images"] = images
