"""Recognises the tool that wrote an export by its content."""

import contextlib
from typing import Any

from input_pipeline.common.errors import InputError
from input_pipeline.custom.converters import (
  coco,
  cvat,
  datumaro,
  export_files,
  labelme,
  parquet,
  supervisely,
  via,
  yolo,
)

OWN = ("labelme", "via", "yolo", "supervisely", "datumaro", "parquet")
"""Formats unrelated to COCO's."""

# Number of files of a folder or zip that are examined.
_LOOKED_AT = 20
_ENDINGS = (".json", ".xml", ".csv", ".parquet")
# The first bytes of a parquet file.
_PARQUET = b"PAR1"


def recognise(path: str) -> str | None:
  """Returns the format of an export, a value of `--from`; None if unknown or unreadable.

  Args:
    path: of a file, a folder or a zip.
  """
  try:
    with export_files.ExportFiles(path) as files:
      if any(name.lower().endswith(".parquet") for name in files.names) or (
        files.whole and parquet.is_parquet(path)
      ):
        return "parquet"
      return _recognise_files(files)
  except InputError:
    return None


def _recognise_files(files: export_files.ExportFiles) -> str | None:
  likely = [name for name in files.names if name.lower().endswith(_ENDINGS)]
  for name in (files.names if files.whole else likely)[:_LOOKED_AT]:
    with contextlib.suppress(InputError):
      if format_name := _recognise_file(files, name):
        return format_name
  labels = any(name.endswith(".txt") for name in files.names)
  return "yolo" if labels and yolo.settings_file(files.names) else None


def _recognise_file(files: export_files.ExportFiles, name: str) -> str | None:
  lower = name.lower()
  if lower.endswith((".yaml", ".yml")):
    return "yolo"
  if lower.endswith(".txt"):
    return "yolo" if yolo.is_labels(files.read_text(name)) else None
  if lower.endswith(".csv"):
    return "via" if via.CSV_COLUMN in files.read_text(name)[:4096] else None
  data = files.read(name)
  if data.startswith(_PARQUET):
    return "parquet"
  if cvat.is_xml(data):
    return "cvat" if b"<annotations" in data[:4096] else None
  return recognise_content(files.read_json(name))


def recognise_content(content: Any) -> str | None:
  """Returns the format of parsed JSON; see `recognise`."""
  for name, is_format in _JSON_FORMATS.items():
    if is_format(content):
      return name
  return None


def _is_label_studio(content: Any) -> bool:
  return (
    isinstance(content, list)
    and bool(content)
    and all(isinstance(task, dict) and {"data", "annotations"} <= set(task) for task in content)
  )


_JSON_FORMATS = {
  "coco": coco.is_coco,
  "labelme": labelme.is_labelme,
  "datumaro": datumaro.is_datumaro,
  "supervisely": supervisely.is_supervisely,
  "label-studio": _is_label_studio,
  "via": via.is_via,
}
