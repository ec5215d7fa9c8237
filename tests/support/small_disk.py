"""A file system of a few megabytes, to be filled."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator


@contextlib.contextmanager
def mounted(folder: pathlib.Path, megabytes: int) -> Iterator[bool]:
  """Mounts one in memory; yields whether that was possible, which needs root."""
  folder.mkdir(parents=True, exist_ok=True)
  command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
  try:
    is_there = os.geteuid() == 0 and not subprocess.run(command, capture_output=True).returncode
  except FileNotFoundError:
    is_there = False
  try:
    yield is_there
  finally:
    if is_there:
      subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: pathlib.Path, left: int = 0) -> pathlib.Path:
  """Fills it until `left` bytes are free, with one file, which is returned."""
  stat = os.statvfs(folder)
  filler = folder / "filler"
  with filler.open("wb") as file:
    os.posix_fallocate(file.fileno(), 0, max(1, stat.f_bavail * stat.f_frsize - left))
  return filler
