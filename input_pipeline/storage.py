"""Where a prepared data set is stored, and how it is written whole or not at all.

`DATA_DIR/referring_segmentation/CONFIG/VERSION`, the layout of TFDS. A data set is written to a
temporary folder and renamed when it is complete.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from input_pipeline import image_hashes
from input_pipeline.common import atomic_files, buckets, fingerprint, places
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageSet

BUILDER_NAME = "referring_segmentation"
VERSION = "1.2.0"
CONFIGS = {
  "shapes": "shapes",
  "refcoco_unc": "refcoco_unc",
  "refcoco+_unc": "refcocoplus_unc",
  "refcocog_umd": "refcocog_umd",
  "refcocog_google": "refcocog_google",
  "grefcoco_unc": "grefcoco_unc",
  "phrasecut": "phrasecut",
}
"""TFDS's names by ours: it allows no plus in a name."""

_INFO = "dataset_info.json"
_HASHES = "image_hashes.safetensors"
_CUSTOM_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def config_name(name: str) -> str:
  """Returns TFDS's name of a data set; any name that is not one of ours may be that of custom data.

  Raises:
    InputError: a data set cannot have that name.
  """
  if name in CONFIGS:
    return CONFIGS[name]
  if not _CUSTOM_NAME.fullmatch(name) or name in CONFIGS.values():
    raise InputError(
      f"data set {name!r}: unknown; known: {', '.join(CONFIGS)}, and custom data, whose name "
      f"consists of letters, digits and _{did_you_mean(name)}"
    )
  return name


def did_you_mean(name: str) -> str:
  """Returns a hint for incomplete names, such as refcoco."""
  similar = [known for known in CONFIGS if known.startswith(f"{name}_")]
  return f"; did you mean {' or '.join(similar)}?" if similar else ""


def dataset_dir(data_dir: str, name: str) -> str:
  """Returns the folder of a data set; it need not exist.

  Raises:
    InputError: a data set cannot have that name.
  """
  return os.path.join(data_dir, BUILDER_NAME, config_name(name), VERSION)


def not_prepared(data_dir: str, name: str) -> InputError:
  """Returns the error for a data set that does not exist."""
  if name in CONFIGS:
    return InputError(
      f"--data_dir {data_dir}: {name} is not prepared there; run "
      f"`python -m input_pipeline.prepare --dataset {name} --data_dir {data_dir}` first "
      "(docs/guides/datasets.md has its other arguments)"
    )
  custom = [other for other in prepared(data_dir) if other not in CONFIGS]
  also = f", and custom data in {data_dir}: {', '.join(custom)}" if custom else ""
  return InputError(
    f"data set {name!r}: unknown; known: {', '.join(CONFIGS)}{also} (docs/guides/custom-data.md)"
    f"{did_you_mean(name)}"
  )


def open_dir(data_dir: str, name: str) -> epath.Path:
  """Opens the folder of a data set, local or in a bucket; it need not exist.

  Raises:
    InputError: a data set cannot have that name, or the address is not one of a bucket.
  """
  return buckets.folder(dataset_dir(data_dir, name), "--data_dir")


def read_metadata(data_dir: str, name: str) -> dict[str, Any] | None:
  """Returns the metadata of a prepared data set, None if it does not exist."""
  folder = open_dir(data_dir, name)
  if not (folder / _INFO).is_file():
    return None
  try:
    metadata = json.loads((folder / "metadata.json").read_text())
    if not isinstance(metadata, dict):
      raise ValueError("expected an object")
    return metadata
  except (OSError, ValueError) as error:
    raise InputError(
      f"{folder}/metadata.json cannot be read ({error}); prepare {name} again with --overwrite"
    ) from error


def write_timing(data_dir: str, name: str, seconds: dict[str, float]) -> None:
  """Writes the time per image for instance masks, by split.

  It is a file beside the records, which are reproducible; time is not.
  """
  path = pathlib.Path(dataset_dir(data_dir, name)) / "timing.json"
  path.write_text(json.dumps({split: round(value, 6) for split, value in seconds.items()}))


def write_hashes(data_dir: str, name: str, hashes: Mapping[str, ImageSet]) -> None:
  """Writes the hashes of the images of all splits to a file beside the records."""
  path = pathlib.Path(dataset_dir(data_dir, name)) / _HASHES
  path.write_bytes(image_hashes.to_bytes(hashes))


def read_hashes(data_dir: str, name: str, split: str) -> ImageSet | None:
  """Returns the hashes of the images of a split; None if not written.

  Raises:
    InputError: the file is damaged.
  """
  return read_all_hashes(data_dir, name).get(split)


def read_all_hashes(data_dir: str, name: str) -> dict[str, ImageSet]:
  """Returns the hashes of the images of all splits, by split; empty if not written.

  Raises:
    InputError: the file is damaged.
  """
  path = open_dir(data_dir, name) / _HASHES
  if not path.is_file():
    return {}
  try:
    return image_hashes.from_bytes(path.read_bytes(), str(path))
  except (OSError, InputError) as error:
    raise InputError(f"{path} cannot be read ({error}); prepare {name} again") from error


def prepared(data_dir: str) -> list[str]:
  """Returns the names of the data sets that are prepared in a folder."""
  folders = {name: open_dir(data_dir, name) for name in CONFIGS}
  known = [name for name, path in folders.items() if (path / _INFO).is_file()]
  base = folders["shapes"].parent.parent
  infos = base.glob(f"*/{VERSION}/{_INFO}")
  names = sorted(path.parent.parent.name for path in infos)
  return known + [name for name in names if name not in CONFIGS.values()]


def read_timing(data_dir: str, name: str) -> dict[str, float]:
  """Returns the time per image for instance masks in seconds, by split; empty if not measured.

  Raises:
    InputError: the file is damaged.
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


def fingerprint_split(data_dir: str, name: str, split: str) -> str:
  """Returns a fingerprint of the records of a split and of their files.

  Raises:
    InputError: the split has no records, or they cannot be read.
  """
  folder = open_dir(data_dir, name)
  digest = hashlib.sha256()
  try:
    paths = sorted(folder.glob(f"{BUILDER_NAME}-{split}.tfrecord-*"))
    if not paths:
      raise InputError(f"{folder}: {split} has no record files; prepare {name} again")
    for path in paths:
      digest.update(f"{path.name}\n".encode())
      with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())  # pyright: ignore
  except OSError as error:
    raise InputError(f"{folder}: {error.strerror or error}") from error
  return fingerprint.of_digest(digest)


@contextlib.contextmanager
def staging(data_dir: str, name: str) -> Iterator[str]:
  """Yields a temporary data folder; the data set gets its final place if no error occurs.

  After an error or an interrupt nothing of it is left in `data_dir`. The leftovers of a killed
  process are removed by the next one.

  For a bucket the folder is in `TMPDIR`, and copied at the end, the file that makes it a data set
  last.

  Args:
    data_dir: created if it is missing.
    name: of the data set.

  Yields:
    What to use for `data_dir` while writing.
  """
  if buckets.is_remote(data_dir):
    open_dir(data_dir, name)  # an address of another kind is an error
    with (
      tempfile.TemporaryDirectory(prefix="mail_jax-") as temporary,
      staging(temporary, name) as folder,
    ):
      yield folder
      places.upload(dataset_dir(folder, name), dataset_dir(data_dir, name), _INFO)
    return
  path = pathlib.Path(data_dir)
  created = [folder for folder in (path, *path.parents) if not folder.exists()]
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
    reason = atomic_files.describe_error(error, data_dir, needed)
    raise InputError(f"--data_dir {data_dir}: {name} cannot be written: {reason}") from error
  finally:
    atomic_files.remove_folder(folder)  # workers of a failed run may not have stopped yet
    for parent in created:
      with contextlib.suppress(OSError):
        parent.rmdir()  # succeeds only if it is empty


def _replace(new: str, final: str, folder: str) -> None:
  os.makedirs(os.path.dirname(final), exist_ok=True)
  if os.path.exists(final):
    os.rename(final, os.path.join(folder, "replaced"))
  os.rename(new, final)
