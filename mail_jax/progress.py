"""What a run tells while it works: lines on the terminal, rows in `metrics.jsonl`."""

import json
import pathlib
import time
from typing import Any

from input_pipeline import writing


class Progress:
  """Writes the log of a run; a resumed run drops the rows that it makes again."""

  def __init__(self, workdir: str, start_step: int):
    """Opens `workdir/metrics.jsonl` and keeps its rows up to `start_step`."""
    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    kept = []
    if self._path.exists():
      for line in self._path.read_text().splitlines():
        try:
          row = json.loads(line)
        except json.JSONDecodeError:  # the process died while it wrote this line
          continue
        if row["step"] <= start_step:
          kept.append(line)
    writing.write_whole(self._path, "".join(line + "\n" for line in kept))
    self._file = self._path.open("a")
    self._began = time.monotonic()

  def row(self, step: int, values: dict[str, Any]) -> None:
    """Appends one row."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()

  def line(self, text: str) -> None:
    """Prints one line, with the minutes since the start."""
    seconds = time.monotonic() - self._began
    print(f"[{int(seconds) // 60:3d}:{int(seconds) % 60:02d}] {text}", flush=True)

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def duration(seconds: float) -> str:
  """Seconds as people say them: `42 s`, `3 min`, `2 h 05 min`."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
