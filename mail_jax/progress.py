"""What a run tells while it works: lines on the terminal, rows in `metrics.jsonl`."""

import json
import time
from typing import Any

from input_pipeline import remote, writing
from mail_jax import distributed

# What is in a bucket cannot be appended to; the file is written anew, not more often than this (seconds).
_REWRITE_EVERY = 60.0


class Progress:
  """Writes the log of a run; a resumed run drops the rows that it makes again.

  Only process 0 prints and writes; on the others nothing happens.
  """

  def __init__(self, workdir: str, start_step: int):
    """Opens `workdir/metrics.jsonl` and keeps its rows up to `start_step`."""
    self._began = self._written = time.monotonic()
    self._is_main = distributed.is_main()
    self._rows, self._file = [], None
    self._path = remote.folder(workdir, "--workdir") / "metrics.jsonl"
    if not self._is_main:
      return
    self._rows = _rows_until(start_step, self._path.read_text() if self._path.exists() else "")
    if remote.is_remote(workdir):
      self._path.write_text("".join(self._rows))
    else:
      writing.write_whole(self._path, "".join(self._rows))
      self._file = self._path.open("a")

  def row(self, step: int, values: dict[str, Any]) -> None:
    """Adds one row."""
    if not self._is_main:
      return
    row = json.dumps({"step": step, **values}) + "\n"
    if self._file:
      self._file.write(row)
      self._file.flush()
      return
    self._rows.append(row)
    if time.monotonic() - self._written > _REWRITE_EVERY:
      self.flush()

  def flush(self) -> None:
    """Makes sure that all rows are in the file: a checkpoint is not to be ahead of the log."""
    if self._is_main and self._file is None:
      self._path.write_text("".join(self._rows))
      self._written = time.monotonic()

  def line(self, text: str) -> None:
    """Prints one line, with the minutes since the start."""
    if not self._is_main:
      return
    seconds = time.monotonic() - self._began
    print(f"[{int(seconds) // 60:3d}:{int(seconds) % 60:02d}] {text}", flush=True)

  def close(self) -> None:
    """Closes the file, with all rows in it."""
    self.flush()
    if self._file:
      self._file.close()


def _rows_until(step: int, text: str) -> list[str]:
  """The whole rows of a log, each with its end of line, up to a step."""
  kept = []
  for line in text.splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:  # the process died while it wrote this line
      continue
    if row["step"] <= step:
      kept.append(line + "\n")
  return kept


def duration(seconds: float) -> str:
  """Seconds as people say them: `42 s`, `3 min`, `2 h 05 min`."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
