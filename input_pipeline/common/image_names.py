"""Resolves the names that annotation tools give to images, and compares such names."""

import collections
import difflib
import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from input_pipeline.common import buckets, places

from .errors import InputError

Form = tuple[str, tuple[str, ...]]
"""A spelling of a name: a key of its last part, and its folders."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL_END = re.compile(r"[?#].*", re.DOTALL)
# /data/local-files/?d=folder/photo.jpg
_LOCAL_FILES = re.compile(r"local-files/\?d=([^&]*)")
_DRIVE = re.compile(r"/?[A-Za-z]:(?=/)")
_QUERY = re.compile(r"(.*\.[A-Za-z0-9]+)\?.*", re.DOTALL)
# Label Studio's prefix of the name of an uploaded file.
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
_COCO_FOLDER = re.compile(r"(?:train|val|test|unlabeled)201[457]")
_COCO_URL = re.compile(r"https?://images\.cocodataset\.org/")
_COCO_FILE = re.compile(r"(COCO_(?:train|val|test)201[457]_)?(\d{12}\.[a-z0-9]+)", re.IGNORECASE)
# Also as named in refs files (with an annotation's number), by uploads, or by Roboflow.
_COCO_NUMBER = re.compile(
  r"(?:[0-9a-f]{8}-)?(?:COCO_(?:train|val|test)201[457]_)?(\d{12})(?:_\d+)?"
  r"(?:_[a-z0-9]+\.rf\.[a-z0-9]+)?\.[a-z0-9]+",
  re.IGNORECASE,
)
_ROW_KEYS = ("file_name", "coco_url", "flickr_url", "path")
# Searching more names for similar ones is slow.
_MAX_COMPARED = 200
# Exceeds the number of parts of any path.
_EXACT = 1 << 20


class ImageNotFound(InputError):
  """No image has the name."""


class AmbiguousImage(InputError):
  """A name matches several images."""


class ImageNames:
  """A set of image names that can be looked up by other spellings.

  Two paths match if one is a suffix of the other: `clip_a/frame_0.png` does not match
  `clip_b/frame_0.png`, and `frame_0.png` matches both. An exact match takes precedence over names
  that differ in Unicode normalisation, in case or between COCO's 2014 and 2017 releases, and over
  Label Studio's names of uploaded files.
  """

  def __init__(self, names: Iterable[str], where: str):
    """Stores the names.

    Args:
      names: one per image.
      where: their source, for error messages.
    """
    self._names = tuple(dict.fromkeys(names))
    self._where = where
    self._indices: dict[int, Mapping[str, list[tuple[str, tuple[str, ...]]]]] = {}

  def find(self, name: str) -> str:
    """Returns the name that shares the longest path suffix with `name`.

    Args:
      name: a file name, a path (also of Windows or of another computer), or a URL.

    Raises:
      ImageNotFound: no name matches.
      AmbiguousImage: several match equally well.
    """
    for spelling in range(len(_SPELLINGS)):
      if best := self._best(name, spelling):
        if len(best) > 1:
          raise AmbiguousImage(
            f"{self._where}: {name} matches both {best[0]} and {best[1]}; add its folder to the "
            f"name, or {self._way_out(best)}"
          )
        return best[0]
    raise ImageNotFound(f"{self._where}: no image named {name}{self._hint(name)}")

  def _best(self, name: str, spelling: int) -> list[str]:
    """Returns the names that match `name` best in a spelling."""
    scores: dict[str, int] = {}
    for key, folders in _SPELLINGS[spelling](name, True):
      for candidate, others in self._index(spelling).get(key, ()):
        if _agree(folders, others):
          score = _EXACT if folders == others else min(len(folders), len(others))
          scores[candidate] = max(scores.get(candidate, 0), score)
    best = max(scores.values(), default=0)
    return self._distinct([candidate for candidate, score in scores.items() if score == best])

  def _index(self, spelling: int) -> Mapping[str, list[tuple[str, tuple[str, ...]]]]:
    if spelling not in self._indices:
      index = collections.defaultdict(list)
      for name in self._names:
        for key, folders in _SPELLINGS[spelling](name, False):
          index[key].append((name, folders))
      self._indices[spelling] = index
    return self._indices[spelling]

  def _distinct(self, names: list[str]) -> list[str]:
    return names

  def _way_out(self, names: Sequence[str]) -> str:
    return f"rename {names[0]}"

  def _hint(self, name: str) -> str:
    """Returns a hint about similar names."""
    last = [key for key, _ in _caseless(name, True)]
    if others := [other for other, _ in self._index(_CASELESS).get("".join(last), ())]:
      return f", but there is {others[0]}; if that is the image, {self._way_out(others[:1])}"
    if other := self._stems.get(_stem(name)):
      return f"; did you mean {other}? Names with different extensions are different images"
    few = self._names if len(self._names) <= _MAX_COMPARED else ()
    similar = difflib.get_close_matches(name, few, 1)
    return f"; the most similar name is {similar[0]}" if similar else ""

  @functools.cached_property
  def _stems(self) -> Mapping[str, str]:
    return {_stem(name): name for name in self._names}


class ImageFolder(ImageNames):
  """The files below a folder as relative POSIX paths; links are followed.

  The folder may have an address. Web servers list no folders: there, a name is taken as it is.
  """

  def __init__(self, folder: str):
    """Lists the folder.

    Raises:
      InputError: there is no such folder.
    """
    if not places.is_folder(folder):
      raise InputError(f"--images {folder}: no such folder")
    self._folder, self._listed = folder, not buckets.on_site(folder)
    names = places.names_below if buckets.is_remote(folder) else _walk
    super().__init__(sorted(names(folder)) if self._listed else (), f"--images {folder}")

  def find(self, name: str) -> str:
    """Returns the name of a file; see `ImageNames.find`.

    Raises:
      ImageNotFound: no name matches, or the name leaves the folder.
      AmbiguousImage: several match equally well.
    """
    if self._listed:
      return super().find(name)
    if not name or _URL.match(name) or name.startswith("/") or ".." in name.split("/"):
      raise ImageNotFound(f"{self._where}: {name} is not a path in this folder")
    return name

  def _distinct(self, names: list[str]) -> list[str]:
    """Returns one name per file: through links, a file may have several."""
    if buckets.is_remote(self._folder):
      return names
    files: dict[str, str] = {}
    for name in names:
      files.setdefault(os.path.realpath(os.path.join(self._folder, name)), name)
    return list(files.values())

  def _way_out(self, names: Sequence[str]) -> str:
    folder, *others = (os.path.dirname(name) for name in names)
    if folder in others:
      return super()._way_out(names)
    return f"narrow the folder: --images {os.path.join(self._folder, folder)}"


def same_image(name_a: str, name_b: str) -> bool:
  """Returns whether two names may denote the same image; see `ImageNames`."""
  return any(
    key == other and _agree(folders, others)
    for spell in _SPELLINGS
    for asked, listed in ((name_a, name_b), (name_b, name_a))
    for key, folders in spell(asked, True)
    for other, others in spell(listed, False)
  )


def same_spelling(name_a: str, name_b: str) -> bool:
  """Returns whether two names are the same path in different encodings."""
  return _parts(_decoded(name_a)) == _parts(_decoded(name_b))


def spelled(root: str, path: str) -> str | None:
  """Returns a path below a folder as spelled on disk; None if no or several files match.

  The path may come from Windows, or differ in Unicode normalisation or case.
  """
  if os.path.lexists(os.path.join(root, path)):
    return path
  if path.startswith(("/", "\\")):
    return None
  there: list[str] = []
  for part in path.replace("\\", "/").split("/"):
    if part not in ("", "."):
      folder = os.path.join(root, *there)
      names = _names_in(folder, _modified(folder)).get(_plain(part), ())
      nearest = [name for name in names if _nfc(name) == _nfc(part)] or names
      if len(nearest) != 1:
        return None
      there += nearest
  return "/".join(there) or None


def _modified(folder: str) -> int | None:
  try:
    return os.stat(folder).st_mtime_ns
  except (OSError, ValueError):
    return None


@functools.lru_cache(maxsize=1024)
def _names_in(folder: str, modified: int | None) -> Mapping[str, Sequence[str]]:
  """Returns the names in a folder by their case-folded spelling; `modified` keys the cache."""
  names = collections.defaultdict(list)
  for name in os.listdir(folder) if modified is not None and os.path.isdir(folder) else ():
    names[_plain(name)].append(name)
  return names


def _nfc(text: str) -> str:
  return unicodedata.normalize("NFC", text)


def _stem(name: str) -> str:
  return os.path.splitext(_plain(_decoded(name)).rpartition("/")[2])[0]


def _plain(text: str) -> str:
  return _nfc(text).casefold()


def coco_number(name: str) -> int | None:
  """Returns the number in the name, path or URL of a COCO image; None for other names."""
  parts = _parts(_decoded(name))
  match = _COCO_NUMBER.fullmatch(parts[-1]) if parts else None
  return int(match[1]) if match else None


def name_of_row(row: Mapping[str, Any]) -> str | None:
  """Returns the name in an image's row of a COCO file: `file_name`, else a URL or a path."""
  values = (row.get(key) for key in _ROW_KEYS)
  return next((value for value in values if isinstance(value, str) and value), None)


def _walk(root: str) -> Iterator[str]:
  """Yields the paths of all files below a folder; follows links, but no cycles."""
  waiting, seen = [root], {os.path.realpath(root)}
  while waiting:
    # Paths of files in a linked folder contain the link, not its target.
    start = waiting.pop()
    for base, folders, files in os.walk(start):
      for file in files:
        yield os.path.relpath(os.path.join(base, file), root).replace(os.sep, "/")
      for link in filter(os.path.islink, (os.path.join(base, folder) for folder in folders)):
        target = os.path.realpath(link)
        if start == root or target not in seen:
          waiting.append(link)
        seen.add(target)


def _agree(folders: Sequence[str], others: Sequence[str]) -> bool:
  """Returns whether one of two sequences of folders is a suffix of the other."""
  common = min(len(folders), len(others))
  return folders[len(folders) - common :] == others[len(others) - common :]


def _parts(path: str) -> tuple[str, ...]:
  parts = [part for part in path.split("/") if part not in ("", ".")]
  if ".." in parts:
    parts = parts[len(parts) - parts[::-1].index("..") :]
  return tuple(parts)


def _decoded(name: str) -> str:
  """Returns the path in a URL, a Label Studio local-files link or a Windows path, in NFC."""
  if local := _LOCAL_FILES.search(name):
    path = unquote(local[1])
  elif _URL.match(name):
    # `urlsplit` raises for brackets that are not part of a host.
    path = unquote(_URL_END.sub("", name.partition("://")[2].partition("/")[2]))
  else:
    query = _QUERY.fullmatch(name)
    path = unquote(query[1] if query else name)
  path = _DRIVE.sub("", path.replace("\\", "/"))
  return _nfc(path)


# Each yields the forms of a name: of the one that is searched for (`asked`), or of a listed one.


def _literal(name: str, asked: bool) -> Iterator[Form]:
  del asked
  if parts := _parts(name):
    yield parts[-1], parts[:-1]


def _readable(name: str, asked: bool) -> Iterator[Form]:
  return _literal(_decoded(name), asked)


def _caseless(name: str, asked: bool) -> Iterator[Form]:
  return _literal(_plain(_decoded(name)), asked)


def _other_release(name: str, asked: bool) -> Iterator[Form]:
  """Yields COCO's names: COCO_train2014_000000000009.jpg is 000000000009.jpg in 2017."""
  for last, folders in _readable(name, asked):
    if match := _COCO_FILE.fullmatch(last):
      other = tuple(folder for folder in folders if not _COCO_FOLDER.fullmatch(folder))
      # Names are only matched across releases: within one, folders matter.
      yield f"{bool(match[1]) != asked} {match[2].lower()}", other


def _from_server(name: str, asked: bool) -> Iterator[Form]:
  """Yields names, without the folders of COCO's server."""
  for last, folders in _readable(name, asked):
    yield last, () if _COCO_URL.match(name) else folders


def _uploaded(name: str, asked: bool) -> Iterator[Form]:
  """Yields names with Label Studio's prefix, without the folders of its server."""
  for last, _ in _readable(name, asked):
    if _UPLOAD.match(last):
      yield last, ()


def _before_upload(name: str, asked: bool) -> Iterator[Form]:
  """Yields the name before the upload to Label Studio, as normalised by Django."""
  for last, _ in _readable(name, asked):
    if not asked:
      for form in ("NFC", "NFD"):
        yield _valid_filename(unicodedata.normalize(form, last)), ()
    elif prefix := _UPLOAD.match(last):
      yield last[prefix.end() :], ()


def _valid_filename(name: str) -> str:
  """Returns the name that Django gives to an uploaded file (`get_valid_filename`), in NFC."""
  return _nfc(re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_")))


_SPELLINGS: tuple[Callable[[str, bool], Iterator[Form]], ...] = (
  _literal,
  _readable,
  _caseless,
  _from_server,
  _other_release,
  _uploaded,
  _before_upload,
)
_CASELESS = _SPELLINGS.index(_caseless)
