"""Where a prepared data set lies, and how it gets there in one piece.

`DATA_DIR/referring_segmentation/CONFIG/VERSION`, as TFDS has it. A data set is written to a folder
of its own first and renamed when it is complete: what is under its final name is whole.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from input_pipeline.common import atomic_files, buckets
from input_pipeline.common.errors import InputError

BUILDER_NAME = "referring_segmentation"
VERSION = "1.1.0"
# TFDS allows no plus in a name, so the users' names and its own differ.
CONFIGS = {
  "shapes": "shapes",
  "refcoco_unc": "refcoco_unc",
  "refcoco+_unc": "refcocoplus_unc",
  "refcocog_umd": "refcocog_umd",
  "refcocog_google": "refcocog_google",
  "grefcoco_unc": "grefcoco_unc",
  "phrasecut": "phrasecut",
}


_OWN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def config_name(name: str) -> str:
  """Returns TFDS's name of a data set by the name that users know it by: any name but ours may be that of their own.

  Raises:
    InputError: no data set can have that name.
  """
  if name in CONFIGS:
    return CONFIGS[name]
  if not _OWN_NAME.fullmatch(name) or name in CONFIGS.values():
    raise InputError(
      f"data set {name!r}: unknown; the known ones are {', '.join(CONFIGS)}, and data of your own has a name of "
      "letters, digits and _"
    )
  return name


def dataset_dir(data_dir: str, name: str) -> str:
  """Returns the folder of a data set by the name that users know it by; it need not be there.

  Raises:
    InputError: no data set can have that name.
  """
  return os.path.join(data_dir, BUILDER_NAME, config_name(name), VERSION)


def not_prepared(data_dir: str, name: str) -> InputError:
  """The error for a data set that is not there."""
  if name in CONFIGS:
    return InputError(
      f"--data_dir {data_dir}: {name} is not prepared there; run "
      f"`python -m input_pipeline.prepare --dataset {name} --data_dir {data_dir}` first "
      "(docs/guides/datasets.md has its other arguments)"
    )
  own = [other for other in prepared(data_dir) if other not in CONFIGS]
  there = f", and of your own in {data_dir} {', '.join(own)}" if own else ""
  return InputError(
    f"data set {name!r}: unknown; the known ones are {', '.join(CONFIGS)}{there} (docs/guides/custom-data.md)"
  )


def open_dir(data_dir: str, name: str) -> epath.Path:
  """Opens the folder of a data set, on this machine or in a bucket of Google's; it need not be there.

  Raises:
    InputError: there is no data set of that name, or records cannot be read from such a place.
  """
  if data_dir.startswith("s3://"):
    raise InputError(
      f"--data_dir {data_dir}: TensorFlow reads no records from s3://; copy them to a disk first, as in "
      f"`aws s3 sync {data_dir} data`"
    )
  return buckets.folder(dataset_dir(data_dir, name), "--data_dir")


def read_metadata(data_dir: str, name: str) -> dict[str, Any] | None:
  """Returns what a prepared data set says of itself, None where there is none."""
  folder = open_dir(data_dir, name)
  if not (folder / "dataset_info.json").is_file():
    return None
  try:
    found = json.loads((folder / "metadata.json").read_text())
    if not isinstance(found, dict):
      raise ValueError("it is no object")
    return found
  except (OSError, ValueError) as error:
    raise InputError(
      f"{folder}/metadata.json cannot be read ({error}); prepare {name} again with --overwrite"
    ) from error


def write_timing(data_dir: str, name: str, seconds: dict[str, float]) -> None:
  """Writes how long the instance masks of an image took, beside the records: no two runs take the same time."""
  path = pathlib.Path(dataset_dir(data_dir, name)) / "timing.json"
  path.write_text(json.dumps({split: round(value, 6) for split, value in seconds.items()}))


def prepared(data_dir: str) -> list[str]:
  """Returns the names of the data sets that are prepared in a folder, as users know them."""
  folders = {name: open_dir(data_dir, name) for name in CONFIGS}
  known = [name for name, path in folders.items() if (path / "dataset_info.json").is_file()]
  base = folders["shapes"].parent.parent
  found = sorted(path.parent.parent.name for path in base.glob(f"*/{VERSION}/dataset_info.json"))
  return known + [name for name in found if name not in CONFIGS.values()]


def read_timing(data_dir: str, name: str) -> dict[str, float]:
  """Returns how long the instance masks of an image took, in seconds, by split.

  Empty where that was not measured.

  Raises:
    InputError: the file of the measurements is damaged.
  """
  path = open_dir(data_dir, name) / "timing.json"
  if not path.is_file():
    return {}
  try:
    return {split: float(seconds) for split, seconds in json.loads(path.read_text()).items()}
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise InputError(
      f"{path} cannot be read ({error}); remove it, or prepare {name} again with --overwrite"
    ) from error


def fingerprint(path: str) -> str:
  """Returns the first 64 bits of a file's SHA-256: whether it is still the same file.

  Raises:
    InputError: there is no such file.
  """
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()[:16]
  except OSError as error:
    raise InputError(
      f"{path}: {error.strerror}; docs/guides/datasets.md says which files go where"
    ) from error


def fingerprint_split(data_dir: str, name: str, split: str) -> str:
  """Returns the first 64 bits of a SHA-256 over the records of a split: equal ones, equal records in equal files.

  Raises:
    InputError: there are no such records, or they cannot be read.
  """
  folder = open_dir(data_dir, name)
  digest = hashlib.sha256()
  try:
    paths = sorted(folder.glob(f"{BUILDER_NAME}-{split}.tfrecord-*"))
    if not paths:
      raise InputError(f"{folder}: there is no file of records of {split}; prepare {name} again")
    for path in paths:
      digest.update(f"{path.name}\n".encode())
      with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())  # pyright: ignore[reportArgumentType]
  except OSError as error:
    raise InputError(f"{folder}: {error.strerror or error}") from error
  return digest.hexdigest()[:16]


@contextlib.contextmanager
def staging(data_dir: str, name: str) -> Iterator[str]:
  """A folder to write a data set to; it takes its final place when the block ends without error.

  After an error or an interrupt nothing of it is left under `data_dir`. What a killed process
  left is removed by the next one.

  Args:
    data_dir: made if it is not there.
    name: of the data set, as users know it.

  Yields:
    What to use for `data_dir` while writing.
  """
  path = pathlib.Path(data_dir)
  made = [folder for folder in (path, *path.parents) if not folder.exists()]
  try:
    os.makedirs(data_dir, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=atomic_files.STAGING, dir=data_dir)
  except OSError as error:
    raise InputError(
      f"--data_dir {data_dir}: {error.strerror}; name a folder that can be written to"
    ) from error
  try:
    with atomic_files.locked(folder):
      atomic_files.remove_abandoned(data_dir)
      yield folder
      _replace(dataset_dir(folder, name), dataset_dir(data_dir, name), folder)
  except OSError as error:
    if error.errno not in atomic_files.FULL:
      raise
    needed = atomic_files.size_of(pathlib.Path(folder))
    shutil.rmtree(folder, ignore_errors=True)
    raise InputError(
      f"--data_dir {data_dir}: {name} cannot be written: {atomic_files.refused(error, data_dir, needed)}"
    ) from error
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    for parent in made:
      with contextlib.suppress(OSError):
        parent.rmdir()  # Succeeds only where it is empty.


def _replace(new: str, final: str, folder: str) -> None:
  os.makedirs(os.path.dirname(final), exist_ok=True)
  if os.path.exists(final):
    os.rename(final, os.path.join(folder, "replaced"))
  os.rename(new, final)
