"""A terminal for tests: a pair of devices, and what a person would see on it."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

_TOKENS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
  """A terminal of so many columns; programs write to `device`."""

  def __init__(self, columns: int = 160):
    self._reader, self.device = pty.openpty()
    fcntl.ioctl(self.device, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    self.sent = ""  # all that was written, as it was

  def read(self, seconds: float = 0.3) -> str:
    """Reads until nothing comes for so long, or for a second.

    Returns all that was written until now.
    """
    began = time.monotonic()
    while time.monotonic() - began < 1 and select.select([self._reader], [], [], seconds)[0]:
      try:
        data = os.read(self._reader, 65536)
      except OSError:  # nobody has the device open any more
        break
      if not data:
        break
      self.sent += data.decode()
    return self.sent

  def read_until(self, text: str, seconds: float) -> str:
    """Reads until a text was written."""
    began = time.monotonic()
    while text not in self.read(0.05):
      assert time.monotonic() - began < seconds, f"{text!r} did not come: {self.sent}"
    return self.sent

  def read_until_ended(self, process: subprocess.Popen, seconds: float) -> int:
    """Reads until a program has ended, which would block otherwise; returns its code."""
    began = time.monotonic()
    while process.poll() is None:
      self.read(0.05)
      assert time.monotonic() - began < seconds, f"it did not end: {self.sent}"
    return process.returncode

  @contextlib.contextmanager
  def as_stdout(self) -> Iterator["Screen"]:
    """Makes it the standard output of this process, for Python's own code."""
    with open(os.dup(self.device), "w") as stream, contextlib.redirect_stdout(stream):
      yield self

  def close(self) -> None:
    os.close(self._reader)
    os.close(self.device)


def seen(sent: str) -> list[str]:
  """Returns the lines on the screen after all of this, with overwritten ones replaced."""
  lines, row, column = [""], 0, 0
  for match in _TOKENS.finditer(sent):
    count, letter, character = match.groups()
    if letter == "A":
      row = max(0, row - int(count or 1))
    elif letter == "K":
      lines[row] = lines[row][:column]
    elif letter:
      raise AssertionError(f"an escape that was not expected: {match.group()!r}")
    elif character == "\r":
      column = 0
    elif character == "\n":
      row += 1
      lines += [""] * (row + 1 - len(lines))
    else:
      line = lines[row].ljust(column)
      lines[row] = line[:column] + character + line[column + 1 :]
      column += 1
  return [line.rstrip() for line in lines]
