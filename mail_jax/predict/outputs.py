"""Writes predictions: rows of JSON, and a folder of overlays in which a run can be resumed."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from input_pipeline.common import atomic_files, drawing, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.masks.segmentation import encode_segmentation
from mail_jax.predict.segmenter import Segmentation

ROWS, SETTINGS = "predictions.jsonl", "settings.json"

Key = tuple[str, int | None, int]
"""Of a prediction: the image as the input names it, its line, the number of the expression."""


def to_row(result: Segmentation) -> dict[str, Any]:
  """Returns the keys of a row that describe a result (docs/reference/formats.md)."""
  area = int(result.mask.sum())
  return {
    "expression": result.expression,
    "size": list(result.mask.shape),
    "mask": encode_segmentation(result.mask),
    "area": area,
    "confidence": float(result.probability[result.mask].mean()) if area else 0.0,
    "instances": len(result.instances),
    "instance_probability": [float(p) for p in result.instance_probability],
    "selected": result.selected,
    "no_target_probability": result.no_target_probability,
    "was_cut": result.was_cut,
  }


class PredictionWriter:
  """A folder with an overlay and a row in `predictions.jsonl` per prediction.

  A row is written after its overlay, so that a run that was stopped at any point can be resumed
  after the last row.
  """

  def __init__(self, folder: pathlib.Path, handle: Any, rows: list[dict[str, Any]]):
    """Called by `open_writer`."""
    self._folder, self._file = folder, handle
    self.done: set[Key] = {(row["image"], row.get("line"), row["number"]) for row in rows}

  def add(self, key: Key, overlay: str, result: Segmentation) -> None:
    """Writes the overlay of a prediction, and then its row."""
    image, line, number = key
    path = self._folder / overlay
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(Image.fromarray(result.overlay()), str(path))
    row = {"image": image} | ({} if line is None else {"line": line}) | {"number": number}
    self._file.write(json.dumps(row | {"overlay": overlay} | to_row(result)) + "\n")
    self._file.flush()
    self.done.add(key)


@contextlib.contextmanager
def open_writer(
  out: str, settings: Mapping[str, Any], overwrite: bool
) -> Iterator[PredictionWriter]:
  """Opens a folder of predictions and locks it.

  Args:
    out: the folder; created if it does not exist.
    settings: what predictions depend on; must equal those of the predictions in the folder.
    overwrite: removes the predictions of an earlier run.

  Raises:
    InputError: the folder holds other files or predictions with other settings, or another command
      is writing to it.
  """
  folder = pathlib.Path(out)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"--out {out}: the folder cannot be created ({error.strerror})") from error
  with _locked(out) as free:
    if not free:
      raise InputError(
        f"--out {out}: another command is writing to this folder; wait, or name another"
      )
    if overwrite and (folder / SETTINGS).exists():
      _clear(folder)
      rows = []
    else:
      rows = _read(folder, out, dict(settings))
    # Drops a last row that was only half written.
    atomic_files.write_whole(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    atomic_files.write_whole(folder / SETTINGS, json.dumps(dict(settings), indent=2) + "\n")
    try:
      with open(folder / ROWS, "a", encoding="utf-8") as file:
        yield PredictionWriter(folder, file, rows)
    except OSError as error:
      if error.errno not in atomic_files.FULL:
        raise
      raise InputError(
        f"--out {out} cannot be written: {atomic_files.describe_error(error, out)}; fix this and "
        "run the same command again"
      ) from error


@contextlib.contextmanager
def _locked(out: str) -> Iterator[bool]:
  with contextlib.ExitStack() as stack:
    try:
      free = stack.enter_context(atomic_files.locked(out))
    except OSError as error:
      reason = atomic_files.describe_error(error, out)
      raise InputError(
        f"--out {out}: the folder cannot be written to ({reason}); name another"
      ) from error
    yield free


def _read(folder: pathlib.Path, out: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
  if not (folder / SETTINGS).exists():
    if any(path.name != atomic_files.LOCK for path in folder.iterdir()):
      raise InputError(f"--out {out}: the folder holds other files; name an empty or a new one")
    return []
  try:
    earlier = json.loads((folder / SETTINGS).read_text())
    if not isinstance(earlier, dict):
      raise ValueError("not a JSON object")
  except ValueError as error:
    raise InputError(
      f"--out {out}: {SETTINGS} cannot be read ({error}); add --overwrite to start over"
    ) from error
  for name in sorted(earlier.keys() | settings.keys()):
    if earlier.get(name) != settings.get(name):
      raise InputError(
        f"--out {out} holds predictions of another run: `{name}` was {earlier.get(name)!r} and is "
        f"now {settings.get(name)!r}; name another folder, or add --overwrite to start over"
      )
  return _whole_rows(folder / ROWS)


def _whole_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows before one that was only half written."""
  rows = []
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      break
    if (
      not isinstance(row, dict)
      or not {"image", "number", "overlay"} <= row.keys()
      or not isinstance(row["overlay"], str)
    ):
      raise InputError(f"{path}: not a file of predictions; name another folder for --out")
    rows.append(row)
  return rows


def _clear(folder: pathlib.Path) -> None:
  """Removes the files of an earlier run, and nothing else."""
  for row in _whole_rows(folder / ROWS):
    path = pathlib.Path(
      untrusted_files.resolve_inside(str(folder), row["overlay"], f"{ROWS}: overlay")
    )
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
      if path.parent != folder.resolve():
        path.parent.rmdir()
  for name in (ROWS, SETTINGS):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(folder / name)
