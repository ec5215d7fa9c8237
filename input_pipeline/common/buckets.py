"""Folders on this machine's disk and in buckets, gs:// and s3://, by the same name on the command line."""

import importlib.util
import os
import pathlib

from etils import epath

from input_pipeline.common.errors import InputError

# Opens addresses with fsspec, where TensorFlow would be imported for it otherwise. etils looks at this once, when any
# path is first used, so it has to be said before.
os.environ.setdefault("EPATH_USE_TF", "false")

# Scheme of an address: the package that opens it, which is also the name of our extra for it.
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def is_remote(path: str | os.PathLike) -> bool:
  """Whether this is an address of a bucket and not a path on this machine."""
  return "://" in os.fspath(path)


def folder(path: str, option: str) -> epath.Path:
  """Opens a folder by its path or address; nothing is read or made.

  Args:
    path: a path on this machine, `gs://bucket/...` or `s3://bucket/...`.
    option: of the command line that named it, for the message.

  Raises:
    InputError: another kind of address, or the package for it is not installed.
  """
  if not is_remote(path):
    return epath.Path(pathlib.Path(path).absolute())
  scheme = path.partition("://")[0]
  if scheme not in _PACKAGES:
    raise InputError(f"{option} {path}: {scheme}:// is not a place we know; use gs:// or s3://")
  package, extra = _PACKAGES[scheme]
  if importlib.util.find_spec(package) is None:
    raise InputError(
      f"{option} {path}: {scheme}:// needs the package {package}; pip install 'mail_jax[{extra}]'"
    )
  _look_anew(scheme)
  return epath.Path(path.rstrip("/"))


def rename(path: epath.Path, target: epath.Path) -> None:
  """Renames a folder; in a bucket all of it is copied first, by the bucket itself, and then removed."""
  if not is_remote(path):
    path.rename(target)
    return
  import fsspec

  files, old = fsspec.core.url_to_fs(str(path))
  new = fsspec.core.url_to_fs(str(target))[1]
  for name in files.find(old):
    files.copy(name, new + name.removeprefix(old))
  files.rm(old, recursive=True)


def _look_anew(scheme: str) -> None:
  """Keeps fsspec from remembering what is in a folder: others write there too, such as TensorStore."""
  from fsspec.config import conf

  for protocol in (scheme, {"gs": "gcs"}.get(scheme, scheme)):
    conf.setdefault(protocol, {})["use_listings_cache"] = False
