"""Checkpoints on S3: saved on the local disk, then copied to the bucket.

Orbax writes arrays to disks and to gs://, not to s3:// (0.12.8). This works for one machine;
several machines would have to exchange their parts.
"""

import tempfile
from collections.abc import Collection

import jax
from etils import epath

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from mail_jax.checkpoints import manifest


def is_needed(workdir: str) -> bool:
  """Returns whether Orbax cannot write to this workdir itself.

  Raises:
    InputError: it cannot, and there are several processes.
  """
  if not workdir.startswith("s3://"):
    return False
  if jax.process_count() > 1:
    raise InputError(
      f"{workdir}: several processes cannot save to s3://; mount the bucket as a shared folder, or "
      "use gs://"
    )
  return True


class S3Mirror:
  """A local folder of checkpoints, and its copy in a bucket.

  A checkpoint in the bucket is complete once it has its manifest, which is copied last.
  """

  def __init__(self, address: str):
    """Creates an empty local folder; copies nothing yet.

    Args:
      address: of the folder in the bucket.
    """
    self._files, self._root = buckets.locate(address, "--workdir")
    self._temporary = tempfile.TemporaryDirectory(prefix="mail_jax_")
    self.local = epath.Path(self._temporary.name)

  def list(self) -> None:
    """Creates a local folder, with just the manifest, for each checkpoint in the bucket."""
    if not self._files.isdir(self._root):
      return
    for path in self._files.ls(self._root, detail=False):
      name = path.rstrip("/").rpartition("/")[2]
      if name.isdigit() and self._files.exists(f"{path}/{manifest.FILE}"):
        (self.local / name).mkdir(parents=True, exist_ok=True)
        self._files.get(f"{path}/{manifest.FILE}", str(self.local / name / manifest.FILE))

  def fetch(self, step: int) -> None:
    """Copies the files of a checkpoint from the bucket."""
    for path in self._files.find(f"{self._root}/{step}"):
      inside = path.removeprefix(f"{self._root}/{step}/")
      self._files.get(path, str(self.local / str(step) / inside))

  def push(self, folder: epath.Path, step: int) -> None:
    """Copies a checkpoint to the bucket, the manifest last."""
    self._remove(str(step))
    for name in [*manifest.names(folder), manifest.FILE]:
      self._files.put(str(folder / name), f"{self._root}/{step}/{name}")

  def push_manifest(self, step: int) -> None:
    """Copies just the manifest of a checkpoint to the bucket."""
    self._files.put(
      str(self.local / str(step) / manifest.FILE), f"{self._root}/{step}/{manifest.FILE}"
    )

  def forget(self, step: int) -> None:
    """Removes the local folder of a checkpoint that is no longer in the bucket."""
    (self.local / str(step)).rmtree()

  def keep(self, steps: Collection[int]) -> None:
    """Removes all other checkpoints from the bucket."""
    if not self._files.isdir(self._root):
      return
    for path in self._files.ls(self._root, detail=False):
      name = path.rstrip("/").rpartition("/")[2]
      if name.isdigit() and int(name) not in steps:
        self._remove(name)

  def close(self) -> None:
    """Removes the local folder."""
    self._temporary.cleanup()

  def _remove(self, name: str) -> None:
    """Removes a checkpoint, the manifest first, so that a partial one does not count."""
    path = f"{self._root}/{name}"
    if self._files.exists(f"{path}/{manifest.FILE}"):
      self._files.rm(f"{path}/{manifest.FILE}")
    if self._files.exists(path):
      self._files.rm(path, recursive=True)
