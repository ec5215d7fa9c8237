"""What a table remembers between starts: its settings, its lengths, and the time of each step."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError
from mail_jax.reproduce.budget import Length
from mail_jax.reproduce.runs import Run
from mail_jax.reproduce.timing import Speed

_FILE, _TIMES, _RUNNING = "reproduce.json", "times.jsonl", "running.json"
_POLL_SECONDS = 0.2
# Settings that records depend on; the others only change runs.
_OF_MASKS = ("instances", "trained_on", "rank", "max_instances")


@dataclasses.dataclass
class State:
  """What is decided at the first start.

  Attributes:
    settings: what one table has one of, such as its recipe.
    speeds: of the runs, by `timing.key_of` their config.
    decided: steps and minutes of each run, by its name.
    command: the arguments of the last start.
  """

  settings: Mapping[str, Any]
  speeds: dict[str, Speed] = dataclasses.field(default_factory=dict)
  decided: dict[str, dict[str, int | float]] = dataclasses.field(default_factory=dict)
  command: str = ""

  def decide(self, lengths: Sequence[Length]) -> None:
    """Remembers the lengths of runs."""
    for length in lengths:
      self.decided[length.run.name] = {"steps": length.steps, "minutes": length.minutes}

  def as_decided(self, whole: Sequence[Length]) -> list[Length]:
    """Returns the runs that were kept, with their lengths, given all runs at full length."""
    kept = []
    for length in whole:
      if found := self.decided.get(length.run.name):
        changed = dataclasses.replace(
          length, steps=int(found["steps"]), minutes=float(found["minutes"])
        )
        kept.append(dataclasses.replace(changed, seconds=length.seconds * changed.share))
    return kept


def read(out: pathlib.Path, settings: Mapping[str, Any]) -> State:
  """Returns the state of a table; a new one if there is none.

  Raises:
    InputError: the folder has a table with other settings, or the file is damaged.
  """
  path = out / _FILE
  if not path.is_file():
    return State(settings)
  try:
    found = json.loads(path.read_text())
    speeds = {key: Speed(**speed) for key, speed in found["speeds"].items()}
    earlier, decided = dict(found["settings"]), dict(found["decided"])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{path} cannot be read ({error}); name another --out") from error
  for key in dict.fromkeys((*earlier, *settings)):
    if earlier.get(key, "") != settings.get(key, ""):
      way_out = "" if key in _OF_MASKS else f", or remove {path} and the runs and metrics beside it"
      raise InputError(
        f"--out {out}: holds a table with another {key}: {earlier.get(key, '')!r}, not "
        f"{settings.get(key, '')!r}; name another folder{way_out}"
      )
  return State(settings, speeds, decided)


def write(out: pathlib.Path, state: State) -> None:
  """Writes the state of a table."""
  text = json.dumps(dataclasses.asdict(state), indent=2) + "\n"
  atomic_files.write_whole(out / _FILE, text)


@contextlib.contextmanager
def alone(out: pathlib.Path) -> Iterator[None]:
  """Makes the folder of a table, and keeps other processes out of it.

  Raises:
    InputError: it cannot be written, or another process makes a table there.
  """
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"--out {out}: cannot write there ({error.strerror})") from error
  with atomic_files.locked(str(out)) as free:
    if not free:
      raise InputError(f"--out {out}: another process makes this table; wait for its end")
    yield


def note_running(out: pathlib.Path, process: subprocess.Popen | None) -> None:
  """Remembers the process of a step, or that there is none."""
  path = out / _RUNNING
  if process is None:
    path.unlink(missing_ok=True)
    return
  row = {"pid": process.pid, "words": list(map(str, cast(Sequence[str], process.args)))}
  atomic_files.write_whole(path, json.dumps(row))


def end_orphan(out: pathlib.Path) -> None:
  """Asks the process of a step to save and waits for it, if its parent was killed and it runs on.

  It is found by its command line, which Linux shows.
  """
  path = out / _RUNNING
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    row = json.loads(path.read_text())
    shown = pathlib.Path("/proc", str(int(row["pid"])), "cmdline")
    words = "".join(f"{word}\0" for word in row["words"]).encode()
    if shown.read_bytes() == words:
      print(f"ending what an earlier start left: process {row['pid']}", flush=True)
      os.killpg(row["pid"], signal.SIGTERM)
      while shown.read_bytes() == words:
        time.sleep(_POLL_SECONDS)
  path.unlink(missing_ok=True)


def note(out: pathlib.Path, name: str, seconds: float, code: int) -> None:
  """Adds how long a step took, and its exit code."""
  row = {"name": name, "seconds": round(seconds, 2), "code": code}
  with (out / _TIMES).open("a") as file:
    file.write(json.dumps(row) + "\n")


def seconds_by_step(out: pathlib.Path) -> dict[str, float]:
  """Returns how long each step took, over all starts that ended by themselves."""
  total: dict[str, float] = {}
  path = out / _TIMES
  for line in path.read_text().splitlines() if path.is_file() else ():
    # A killed process may have cut the last line.
    with contextlib.suppress(ValueError, KeyError):
      row = json.loads(line)
      total[row["name"]] = total.get(row["name"], 0.0) + row["seconds"]
  return total


def remarks(state: State, lengths: Sequence[Length], made: Sequence[Run]) -> list[str]:
  """Returns what the budget has changed, a line each; to be said beside the numbers."""
  budget, lines = state.settings.get("budget"), []
  dropped = [run for run in made if run.name not in {length.run.name for length in lengths}]
  if dropped:
    left = len({length.run.seed for length in lengths})
    wanted = len({run.seed for run in made})
    lines.append(f"because of --budget {budget}, {left} of {wanted} seeds are trained")
  if lengths and lengths[0].share < 1:
    lines.append(
      f"because of --budget {budget}, every run is trained for {lengths[0].share:.1%} of its "
      "recipe's length: its numbers are not those of the recipe"
    )
  return lines
