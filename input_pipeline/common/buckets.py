"""Folders on local disks and in buckets, gs:// and s3://, and what opens any address."""

import importlib.util
import os
import pathlib
from typing import TYPE_CHECKING

from etils import epath

from input_pipeline.common.errors import InputError

if TYPE_CHECKING:
  import fsspec

# Opens addresses with fsspec, for which etils would import TensorFlow otherwise. etils reads this
# once, when the first path is used, so it must be set before.
os.environ.setdefault("EPATH_USE_TF", "false")

# Scheme of an address: the package that opens it, and the extra of ours that installs it.
_BUCKETS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_SITES = {"http": ("aiohttp", "http"), "https": ("aiohttp", "http")}

REWRITE_EVERY = 60.0
"""Files in buckets cannot be appended to; logs are rewritten, at most once in these seconds."""


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether this is an address rather than a local path."""
  return "://" in os.fspath(path)


def on_site(path: str | os.PathLike) -> bool:
  """Returns whether this is an address on a web server, whose folders cannot be listed."""
  return os.fspath(path).partition("://")[0] in _SITES and is_remote(path)


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
  if on_site(path):
    raise InputError(f"{option} {path}: only read from; use a folder, gs:// or s3://")
  locate(path, option)
  return epath.Path(path.rstrip("/"))


def locate(address: str, option: str) -> "tuple[fsspec.AbstractFileSystem, str]":
  """Returns what opens an address, and the file or folder as it spells it; nothing is read.

  Args:
    address: `gs://`, `s3://`, `http://` or `https://`.
    option: what has the address, for error messages.

  Raises:
    InputError: another scheme, or the package for it is not installed.
  """
  scheme, known = address.partition("://")[0], _BUCKETS | _SITES
  if scheme not in known:
    schemes = ", ".join(f"{name}://" for name in known)
    raise InputError(f"{option} {address}: {scheme}:// is not supported; use {schemes}")
  package, extra = known[scheme]
  if importlib.util.find_spec(package) is None:
    raise InputError(
      f"{option} {address}: {scheme}:// needs the package {package}; pip install "
      f"'mail_jax[{extra}]'"
    )
  _disable_listings_cache(scheme)
  import fsspec

  return fsspec.core.url_to_fs(address)


def rename(path: epath.Path, target: epath.Path) -> None:
  """Renames a folder; in a bucket, by copying it on the server and removing the original."""
  if not is_remote(path):
    path.rename(target)
    return
  files, old = locate(str(path), "the folder")
  _, new = locate(str(target), "the folder")
  for name in files.find(old):
    files.copy(name, new + name.removeprefix(old))
  files.rm(old, recursive=True)


def _disable_listings_cache(scheme: str) -> None:
  """Keeps fsspec from caching folder contents: others write there too, such as TensorStore."""
  from fsspec.config import conf

  for protocol in (scheme, {"gs": "gcs"}.get(scheme, scheme)):
    conf.setdefault(protocol, {})["use_listings_cache"] = False
