"""The folder that `mail_jax.export` writes: what is in it, and whether it is what was written."""

import hashlib
import json
import pathlib
import reprlib
from typing import Any

from etils import epath

from input_pipeline.common import untrusted_paths
from input_pipeline.common.errors import InputError

ABOUT = "config.json"
README = "README.md"
FORMAT = "mail_jax"
VERSION = 1  # of what lies in a folder; a version reads what older ones wrote
# A format, and where it lies in the folder; the first is what `mail_jax` itself loads, the others run elsewhere.
PLACES = {
  "safetensors": "model.safetensors",
  "stablehlo": "model.stablehlo",
  "saved_model": "saved_model",
  "onnx": "model.onnx",
}
# What is read of `config.json`, beside its format; the rest is for people.
_KEYS = {"config": dict, "files": dict, "step": int, "metrics": dict, "tokenizer": dict}
TOKENIZERS = {"wordpiece": "vocab.txt", "sentencepiece": "tokenizer.model"}


def find(place: epath.Path, named: str) -> tuple[epath.Path, str] | None:
  """Says which exported model a path means: its folder and the format; None where it is no such thing.

  Args:
    place: an exported folder, or what lies in one under a name of `PLACES`.
    named: the same as the user wrote it.

  Raises:
    InputError: the folder does not have that format, or a file of such a name has no folder around it.
  """
  if (place / ABOUT).is_file():
    return place, "safetensors"
  formats = {name: key for key, name in PLACES.items()}
  beside = (place.parent / ABOUT).is_file()
  if place.name not in formats:
    if beside and place.is_file():
      raise InputError(f"--checkpoint {named}: it is none of {', '.join(formats)}")
    return None
  if beside:
    return place.parent, formats[place.name]
  if place.is_file() or (place / "saved_model.pb").is_file():
    raise InputError(
      f"--checkpoint {named}: there is no {ABOUT} beside it; an exported model is its whole folder"
    )
  return None


def read_about(folder: epath.Path) -> dict[str, Any]:
  """Reads what a folder says of itself.

  Raises:
    InputError: it cannot be read, is not ours, or is of a version to come.
  """
  path = folder / ABOUT
  try:
    about = json.loads(path.read_text())
    ours = about["format"] == FORMAT
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise InputError(f"{path}: it is not of a model that mail_jax exported ({error!r})") from error
  if not ours:
    raise InputError(f"{path}: it is not of a model that mail_jax exported")
  version = about.get("format_version")
  if not isinstance(version, int) or version > VERSION:
    raise InputError(
      f"{path}: format_version is {version}, this mail_jax reads up to {VERSION}; install a newer one"
    )
  for key, kind in _KEYS.items():
    if not isinstance(about.get(key), kind):
      what = f"its {key!r} is {reprlib.repr(about[key])}" if key in about else f"it lacks {key!r}"
      raise InputError(f"{path}: {what}; copy it again, whole")
  for name, said in about["files"].items():
    if not untrusted_paths.stays_inside(name):
      raise InputError(f"{path}: it names the file {name!r}, which leaves the folder")
    if not isinstance(said, list) or [type(x) for x in said] != [int, str]:
      raise InputError(
        f"{path}: it does not say size and SHA-256 of {name!r}; copy it again, whole"
      )
  if not all(isinstance(about["tokenizer"].get(key), str) for key in ("kind", "file")):
    raise InputError(f"{path}: it does not say which file the tokenizer is; copy it again, whole")
  return about


def read_file(folder: epath.Path, about: dict[str, Any], name: str) -> bytes:
  """Reads a file of the folder.

  Raises:
    InputError: it is missing, or has other bytes than were written.
  """
  path = folder / name
  if name not in about["files"]:
    raise InputError(f"{path}: {ABOUT} does not name it; {_formats(folder, about)}")
  try:
    data = path.read_bytes()
  except OSError as error:
    raise InputError(f"{path}: {error.strerror or error}; copy the folder again, whole") from error
  if [len(data), hashlib.sha256(data).hexdigest()] != about["files"][name]:
    raise InputError(f"{path}: it has other bytes than were exported; copy it again")
  return data


def check_place(folder: epath.Path, about: dict[str, Any], form: str) -> epath.Path:
  """Where the model of a format lies, whose every file is what was written.

  Raises:
    InputError: the folder does not have that format, or a file of it is missing or has other bytes.
  """
  place, names = PLACES[form], names_of(about, form)
  if not names:
    raise InputError(f"{folder / place}: not exported; {_formats(folder, about)}")
  for name in names:
    read_file(folder, about, name)
  return folder / place


def names_of(about: dict[str, Any], form: str) -> list[str]:
  """The files that the model of a format is made of."""
  place = PLACES[form]
  return [name for name in about["files"] if name == place or name.startswith(f"{place}/")]


def _formats(folder: epath.Path, about: dict[str, Any]) -> str:
  there = [
    form for form, place in PLACES.items() if any(n.startswith(place) for n in about["files"])
  ]
  return (
    f"the folder has {', '.join(there) or 'no model'}; "
    f"python -m mail_jax.export --checkpoint {folder} makes others from safetensors"
  )


def list_files(folder: pathlib.Path) -> dict[str, list[Any]]:
  """Size and SHA-256 of every file that others may rely on; the card may be edited."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name not in (README, ABOUT):
      data = path.read_bytes()
      found[name] = [len(data), hashlib.sha256(data).hexdigest()]
  return found
