"""What a run tells, as TensorBoard reads it: event files in `WORKDIR/tensorboard`.

They are written with TensorBoard's own package: the other writers (clu, tensorboardX, torch, flax) bring a second
framework into the process.
"""

# protobuf makes the classes of its modules as they are imported.
# pyright: reportAttributeAccessIssue=false

import importlib.util
import io
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from input_pipeline.common import atomic_files, buckets, drawing
from input_pipeline.common.errors import InputError
from mail_jax.train.logging.samples import Picture

FOLDER = "tensorboard"
# In a bucket a file cannot be appended to; it is written anew, not more often than this (seconds).
_REWRITE_EVERY = 60.0


def check_installed() -> None:
  """Looks whether TensorBoard is there.

  Raises:
    InputError: it is not.
  """
  if importlib.util.find_spec("tensorboard") is None:
    raise InputError(
      'config.log.tensorboard needs the package tensorboard: pip install "mail_jax[tensorboard]"'
    )


class TensorBoard:
  """Writes scalars, pictures and the config; whatever goes beyond the step that a run resumes at is dropped first."""

  def __init__(
    self,
    workdir: str,
    start_step: int,
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
  ):
    """Opens a new file beside those of earlier starts.

    Args:
      workdir: of the run, on a disk or in a bucket.
      start_step: where the run goes on; 0 removes all that is there.
      config: of the run, plain data.
      rows: of the log until then; written where there are no event files yet, as it was not asked for before.
    """
    folder = buckets.folder(workdir, "--workdir") / FOLDER
    if not buckets.is_remote(workdir):
      folder.mkdir(parents=True, exist_ok=True)
    kept = [drop_after(path, start_step if start_step else -1) for path in find(folder)]
    self._file = _open(folder / _new_name())
    self._write(file_version="brain.Event:2")
    if start_step:
      self._restart(start_step + 1)
    if not any(kept):
      self._describe(config)
      for row in rows:
        self.row(row["step"], {name: value for name, value in row.items() if name != "step"})
    self._file.flush()

  def row(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes a row of the log, a scalar a number."""
    from tensorboard.compat.proto import summary_pb2  # pyright: ignore[reportMissingImports]

    found = [
      summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(values)
    ]
    self._write(step, summary=summary_pb2.Summary(value=found))
    self._file.flush()

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Writes each picture with its caption below it."""
    from tensorboard.compat.proto import summary_pb2  # pyright: ignore[reportMissingImports]

    found = []
    for picture in pictures:
      side = max(picture.pixels.shape[:2])
      sheet = drawing.contact_sheet([picture.pixels], [picture.caption], columns=1, side=side)
      image = summary_pb2.Summary.Image(
        width=sheet.width, height=sheet.height, colorspace=3, encoded_image_string=_encode(sheet)
      )
      found.append(summary_pb2.Summary.Value(tag=picture.name, image=image))
    self._write(step, summary=summary_pb2.Summary(value=found))
    self._file.flush()

  def flush(self) -> None:
    """Makes sure that all is in the file, in a bucket too."""
    self._file.sync()

  def close(self, failed: bool = False) -> None:
    """Closes the file."""
    del failed
    self._file.sync()
    self._file.close()

  def _describe(self, config: Mapping[str, Any]) -> None:
    """The config, as text and as what runs are compared by."""
    from tensorboard.compat.proto import (  # pyright: ignore[reportMissingImports]
      summary_pb2,
      tensor_pb2,
      types_pb2,
    )
    from tensorboard.plugins.hparams import summary_v2  # pyright: ignore[reportMissingImports]
    from tensorboard.plugins.text import metadata  # pyright: ignore[reportMissingImports]

    text = "    " + json.dumps(config, indent=2).replace("\n", "\n    ")  # a block of code
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
    value = summary_pb2.Summary.Value(
      tag="config", tensor=tensor, metadata=metadata.create_summary_metadata("config", "")
    )
    self._write(0, summary=summary_pb2.Summary(value=[value]))
    self._write(0, summary=summary_v2.hparams_pb(_settings(config)))

  def _restart(self, step: int) -> None:
    """Makes a TensorBoard that is open forget what it has read from `step` on."""
    from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]

    self._write(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def _write(self, step: int = 0, **what: Any) -> None:
    from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]
    from tensorboard.summary.writer import record_writer  # pyright: ignore[reportMissingImports]

    event = event_pb2.Event(wall_time=time.time(), step=step, **what)
    record_writer.RecordWriter(self._file).write(event.SerializeToString())


def scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """Names and numbers of a row: an evaluation's as they are, those of training below `train`.

  Both kinds of rows say what the time was spent on, and may be of the same step; that of training counts.
  """
  trained = "lr" in values
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from ((f"{name}/{k}", float(v)) for k, v in value.items() if trained)
    elif type(value) in (int, float):
      yield (f"train/{name}" if trained else name), float(value)


def find(folder: epath.Path) -> list[epath.Path]:
  """The event files of a folder, the oldest first; none where it does not exist."""
  if not folder.exists():  # in a bucket there are no empty ones
    return []
  return sorted(path for path in folder.iterdir() if ".tfevents." in path.name)


def drop_after(path: epath.Path, step: int) -> int:
  """Rewrites an event file with what it says up to a step, or removes it; returns how many events are left.

  What a killed process did not write to its end is dropped too.
  """
  from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]

  data, kept, found = path.read_bytes(), [], 0
  for record, message in split_records(data):
    event = event_pb2.Event.FromString(message)
    if event.step <= step:
      kept.append(record)
      found += event.HasField("summary")
  whole = b"".join(kept)
  if not found:
    path.unlink()
  elif whole != data:
    if buckets.is_remote(path):
      path.write_bytes(whole)
    else:
      atomic_files.write_whole(path, whole)
  return found


def split_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """The whole records of a TFRecord file: each as it is stored, and what it holds."""
  at, frame = 0, 12  # length and its checksum; the content has another one of 4 bytes
  while at + frame <= len(data):
    length = struct.unpack_from("<Q", data, at)[0]
    end = at + frame + length + 4
    if end > len(data):
      return
    yield data[at:end], data[at + frame : end - 4]
    at = end


class _LocalFile:
  """A file on a disk, appended to."""

  def __init__(self, path: epath.Path):
    self._file = open(path, "wb")  # noqa: SIM115
    self.write, self.flush, self.close = self._file.write, self._file.flush, self._file.close

  def sync(self) -> None:
    self.flush()


class _BucketFile:
  """A file in a bucket, kept in memory and written anew."""

  def __init__(self, path: epath.Path):
    self._path, self._written = path, time.monotonic()
    self._data = io.BytesIO()
    self.write, self.close = self._data.write, self._data.close

  def flush(self) -> None:
    if time.monotonic() - self._written > _REWRITE_EVERY:
      self.sync()

  def sync(self) -> None:
    self._path.write_bytes(self._data.getvalue())
    self._written = time.monotonic()


def _open(path: epath.Path) -> _LocalFile | _BucketFile:
  return _BucketFile(path) if buckets.is_remote(path) else _LocalFile(path)


def _new_name() -> str:
  """TensorBoard reads files in the order of their names, and goes on to the next when one does not grow."""
  now = time.time_ns()
  seconds, rest = divmod(now, 10**9)
  return f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"


def _encode(picture: Image.Image) -> bytes:
  buffer = io.BytesIO()
  picture.save(buffer, format="JPEG", quality=90)
  return buffer.getvalue()


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
  """A config as one level of plain values; lists become text."""
  found: dict[str, bool | int | float | str] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      found |= _settings(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
  return found
