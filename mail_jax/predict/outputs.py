"""Answers as files: rows of JSON, and a folder of pictures that can be gone on with."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.common import atomic_files, drawing, untrusted_paths
from input_pipeline.common.errors import InputError
from mail_jax.predict.segmenter import Segmentation

ROWS, SETTINGS = "predictions.jsonl", "settings.json"

Key = tuple[str, int | None, int]
"""Of an answer: the photo as the input names it, its line, the number of the sentence."""


def describe(result: Segmentation) -> dict[str, Any]:
  """What a row says of an answer (docs/reference/formats.md has the table)."""
  from pycocotools import mask as coco_mask

  encoded: Any = coco_mask.encode(np.asfortranarray(result.mask.astype(np.uint8)))
  area = int(result.mask.sum())
  return {
    "expression": result.expression,
    "size": list(result.mask.shape),
    "mask": {"size": list(result.mask.shape), "counts": encoded["counts"].decode()},
    "area": area,
    "confidence": float(result.probability[result.mask].mean()) if area else 0.0,
    "instances": len(result.instances),
    "instance_probability": [float(p) for p in result.instance_probability],
    "selected": result.selected,
    "no_target_probability": result.no_target_probability,
    "was_cut": result.was_cut,
  }


class AnswerFolder:
  """A folder with a picture an answer, and `predictions.jsonl` with a row an answer.

  A row is written when its picture is there, so that whatever ended a run, the next one goes on behind the last row.
  """

  def __init__(self, folder: pathlib.Path, handle: Any, rows: list[dict[str, Any]]):
    """For `open_folder`."""
    self._folder, self._file = folder, handle
    self.done: set[Key] = {(row["image"], row.get("line"), row["number"]) for row in rows}

  def add(self, key: Key, picture: str, result: Segmentation) -> None:
    """Writes the picture of an answer, and then its row."""
    image, line, number = key
    path = self._folder / picture
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(Image.fromarray(result.overlay()), str(path))
    where = {"image": image} | ({} if line is None else {"line": line}) | {"number": number}
    self._file.write(json.dumps(where | {"picture": picture} | describe(result)) + "\n")
    self._file.flush()
    self.done.add(key)


@contextlib.contextmanager
def open_folder(out: str, settings: Mapping[str, Any], overwrite: bool) -> Iterator[AnswerFolder]:
  """Opens a folder of answers, and keeps others from writing into it.

  Args:
    out: the folder; it is made where there is none.
    settings: what its answers depend on; those that are there must have come of the same.
    overwrite: removes what an earlier run has left in it.

  Raises:
    InputError: it holds something else, answers of other settings, or another command writes into it.
  """
  folder = pathlib.Path(out)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"--out {out}: the folder cannot be made ({error.strerror})") from error
  with atomic_files.locked(out) as free:
    if not free:
      raise InputError(
        f"--out {out}: another command writes into this folder; wait, or name another"
      )
    if overwrite and (folder / SETTINGS).exists():
      _clear(folder)
      rows = []
    else:
      rows = _read(folder, out, dict(settings))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    atomic_files.write_whole(folder / ROWS, text)  # without what was half written
    atomic_files.write_whole(folder / SETTINGS, json.dumps(dict(settings), indent=2) + "\n")
    try:
      with open(folder / ROWS, "a", encoding="utf-8") as file:
        yield AnswerFolder(folder, file, rows)
    except OSError as error:
      if error.errno not in atomic_files.FULL:
        raise
      raise InputError(
        f"--out {out} cannot be written: {atomic_files.describe_error(error, out)}; fix this and "
        "run the same command again"
      ) from error


def _read(folder: pathlib.Path, out: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
  if not (folder / SETTINGS).exists():
    if any(path.name != atomic_files.LOCK for path in folder.iterdir()):
      raise InputError(f"--out {out}: the folder holds other files; name an empty or a new one")
    return []
  try:
    before = json.loads((folder / SETTINGS).read_text())
    if not isinstance(before, dict):
      raise ValueError("it is no object")
  except ValueError as error:
    raise InputError(
      f"--out {out}: {SETTINGS} cannot be read ({error}); add --overwrite to begin anew"
    ) from error
  for name in sorted(before.keys() | settings.keys()):
    if before.get(name) != settings.get(name):
      raise InputError(
        f"--out {out} holds answers of another run: its `{name}` was {before.get(name)!r} and is now "
        f"{settings.get(name)!r}; name another folder, or add --overwrite to begin anew"
      )
  return _whole_rows(folder / ROWS)


def _whole_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows up to one that was only half written."""
  rows = []
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      break
    if (
      not isinstance(row, dict)
      or not {"image", "number", "picture"} <= row.keys()
      or (not isinstance(row["picture"], str))
    ):
      raise InputError(f"{path}: not a file of answers; name another folder for --out")
    rows.append(row)
  return rows


def _clear(folder: pathlib.Path) -> None:
  """Removes what an earlier run has written, and nothing else."""
  for row in _whole_rows(folder / ROWS):
    path = pathlib.Path(untrusted_paths.inside(str(folder), row["picture"], f"{ROWS}: picture"))
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
      if path.parent != folder.resolve():
        path.parent.rmdir()
  for name in (ROWS, SETTINGS):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(folder / name)
