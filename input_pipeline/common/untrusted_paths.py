"""Untrusted paths: they must stay inside a folder."""

import os

from input_pipeline.common.errors import InputError


def inside(root: str, path: str, name: str) -> str:
  """Returns the real path of `path` inside `root`; it need not exist.

  Args:
    root: a folder.
    path: relative to it.
    name: of the path, for error messages.

  Raises:
    InputError: the path is absolute, leaves the folder by `..` or through a link, or is not a valid
      file name.
  """
  if not path or "\0" in path or os.path.isabs(path) or not _is_encodable(path):
    raise InputError(f"{name} {path!r}: write a path relative to {root}")
  real_root = os.path.realpath(root)
  real = os.path.realpath(os.path.join(real_root, path))
  if os.path.commonpath([real_root, real]) != real_root:
    raise InputError(f"{name} {path!r} leaves the folder {root}")
  return real


def stays_inside(path: str) -> bool:
  """Tells from a path's text alone whether it stays inside the folder that it is relative to.

  For buckets, and for folders that may have links: Hugging Face's caches consist of them.
  """
  parts = path.replace("\\", "/").split("/")
  return (
    bool(path) and "\0" not in path and ".." not in parts and bool(parts[0]) and ":" not in parts[0]
  )


def _is_encodable(path: str) -> bool:
  try:
    os.fsencode(path)
  except UnicodeEncodeError:
    return False
  return True
