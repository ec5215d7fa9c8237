"""Folders on local disks and in buckets, gs:// and s3://."""

import importlib.util
import os
import pathlib

from etils import epath

from input_pipeline.common.errors import InputError

# Opens addresses with fsspec, for which etils would import TensorFlow otherwise. etils reads this
# once, when the first path is used, so it must be set before.
os.environ.setdefault("EPATH_USE_TF", "false")

# Scheme of an address: the package that opens it, and the extra of ours that installs it.
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}

REWRITE_EVERY = 60.0
"""Files in buckets cannot be appended to; logs are rewritten, at most once in these seconds."""


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether this is the address of a bucket rather than a local path."""
  return "://" in os.fspath(path)


def folder(path: str, option: str) -> epath.Path:
  """Opens a folder by its path or address; nothing is read or created.

  Args:
    path: a local path, `gs://bucket/...` or `s3://bucket/...`.
    option: the command-line option with the path, for error messages.

  Raises:
    InputError: another scheme, or the package for it is not installed.
  """
  if not is_remote(path):
    return epath.Path(pathlib.Path(path).absolute())
  scheme = path.partition("://")[0]
  if scheme not in _PACKAGES:
    raise InputError(f"{option} {path}: {scheme}:// is not supported; use gs:// or s3://")
  package, extra = _PACKAGES[scheme]
  if importlib.util.find_spec(package) is None:
    raise InputError(
      f"{option} {path}: {scheme}:// needs the package {package}; pip install 'mail_jax[{extra}]'"
    )
  _disable_listings_cache(scheme)
  return epath.Path(path.rstrip("/"))


def rename(path: epath.Path, target: epath.Path) -> None:
  """Renames a folder; in a bucket, by copying it on the server and removing the original."""
  if not is_remote(path):
    path.rename(target)
    return
  import fsspec

  files, old = fsspec.core.url_to_fs(str(path))
  new = fsspec.core.url_to_fs(str(target))[1]
  for name in files.find(old):
    files.copy(name, new + name.removeprefix(old))
  files.rm(old, recursive=True)


def _disable_listings_cache(scheme: str) -> None:
  """Keeps fsspec from caching folder contents: others write there too, such as TensorStore."""
  from fsspec.config import conf

  for protocol in (scheme, {"gs": "gcs"}.get(scheme, scheme)):
    conf.setdefault(protocol, {})["use_listings_cache"] = False
