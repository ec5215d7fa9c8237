"""Logs to TensorBoard: event files in `WORKDIR/tensorboard`.

Written with TensorBoard's own package: other writers (clu, tensorboardX, torch, flax) load a second
framework.
"""

# protobuf creates the classes of its modules at import.
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
from mail_jax.config import flatten
from mail_jax.train.logging.samples import Picture

FOLDER = "tensorboard"


def check_installed() -> None:
  """Checks that TensorBoard is installed.

  Raises:
    InputError: it is not installed.
  """
  if importlib.util.find_spec("tensorboard") is None:
    raise InputError(
      'config.log.tensorboard needs the package tensorboard: pip install "mail_jax[tensorboard]"'
    )


class TensorBoard:
  """Writes scalars, pictures and the config; first drops what is after the step to resume at."""

  def __init__(
    self,
    workdir: str,
    start_step: int,
    config: dict[str, Any],
    rows: Sequence[Mapping[str, Any]],
  ):
    """Opens a new file beside those of earlier starts.

    Args:
      workdir: of the run, on a disk or in a bucket.
      start_step: at which the run resumes; 0 removes all event files.
      config: of the run, plain data.
      rows: of the log until then, to write if there are no event files yet.
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
    """Writes a row of the log, one scalar per number."""
    from tensorboard.compat.proto import summary_pb2  # pyright: ignore[reportMissingImports]

    summaries = [
      summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(values)
    ]
    self._write(step, summary=summary_pb2.Summary(value=summaries))
    self._file.flush()

  def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
    """Writes each picture with its caption."""
    from tensorboard.compat.proto import summary_pb2  # pyright: ignore[reportMissingImports]

    images = []
    for picture in pictures:
      side = max(picture.pixels.shape[:2])
      sheet = drawing.contact_sheet([picture.pixels], [picture.caption], columns=1, side=side)
      image = summary_pb2.Summary.Image(
        width=sheet.width, height=sheet.height, colorspace=3, encoded_image_string=_encode(sheet)
      )
      images.append(summary_pb2.Summary.Value(tag=picture.name, image=image))
    self._write(step, summary=summary_pb2.Summary(value=images))
    self._file.flush()

  def flush(self) -> None:
    """Writes everything, in a bucket too."""
    self._file.sync()

  def close(self, failed: bool = False) -> None:
    """Closes the file."""
    del failed
    self._file.sync()
    self._file.close()

  def _describe(self, config: dict[str, Any]) -> None:
    """Writes the config as text and as hyperparameters."""
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
    """Makes an open TensorBoard forget everything from `step` on."""
    from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]

    self._write(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def _write(self, step: int = 0, **fields: Any) -> None:
    from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]
    from tensorboard.summary.writer import record_writer  # pyright: ignore[reportMissingImports]

    event = event_pb2.Event(wall_time=time.time(), step=step, **fields)
    record_writer.RecordWriter(self._file).write(event.SerializeToString())


def scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """Yields the names and numbers of a row; those of training below `train`.

  Rows of training and of evaluations have the seconds by phase; only those of training are used.
  """
  trained = "lr" in values
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from ((f"{name}/{k}", float(v)) for k, v in value.items() if trained)
    elif type(value) in (int, float):
      yield (f"train/{name}" if trained else name), float(value)


def find(folder: epath.Path) -> list[epath.Path]:
  """Returns the event files of a folder, oldest first; none if it does not exist."""
  # Buckets have no empty folders.
  if not folder.exists():
    return []
  return sorted(path for path in folder.iterdir() if ".tfevents." in path.name)


def drop_after(path: epath.Path, step: int) -> int:
  """Drops the events of a file after a step, or the file; returns the number of remaining events.

  Also drops an event that a killed process did not complete.
  """
  from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]

  data, kept, remaining = path.read_bytes(), [], 0
  for record, message in split_records(data):
    event = event_pb2.Event.FromString(message)
    if event.step <= step:
      kept.append(record)
      remaining += event.HasField("summary")
  whole = b"".join(kept)
  if not remaining:
    path.unlink()
  elif whole != data:
    if buckets.is_remote(path):
      path.write_bytes(whole)
    else:
      atomic_files.write_whole(path, whole)
  return remaining


def split_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields the complete records of a TFRecord file: each as stored, and its content."""
  # Length and its checksum; the content has another checksum of 4 bytes.
  at, frame = 0, 12
  while at + frame <= len(data):
    length = struct.unpack_from("<Q", data, at)[0]
    end = at + frame + length + 4
    if end > len(data):
      return
    yield data[at:end], data[at + frame : end - 4]
    at = end


class _LocalFile:
  """A file on a disk, which is appended to."""

  def __init__(self, path: epath.Path):
    self._file = open(path, "wb")  # noqa: SIM115
    self.write, self.flush, self.close = self._file.write, self._file.flush, self._file.close

  def sync(self) -> None:
    self.flush()


class _BucketFile:
  """A file in a bucket, which is kept in memory and rewritten."""

  def __init__(self, path: epath.Path):
    self._path, self._written = path, time.monotonic()
    self._data = io.BytesIO()
    self.write, self.close = self._data.write, self._data.close

  def flush(self) -> None:
    if time.monotonic() - self._written > buckets.REWRITE_EVERY:
      self.sync()

  def sync(self) -> None:
    self._path.write_bytes(self._data.getvalue())
    self._written = time.monotonic()


def _open(path: epath.Path) -> _LocalFile | _BucketFile:
  return _BucketFile(path) if buckets.is_remote(path) else _LocalFile(path)


def _new_name() -> str:
  """Returns a new file name; TensorBoard reads files in the order of their names."""
  now = time.time_ns()
  seconds, rest = divmod(now, 10**9)
  return f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"


def _encode(picture: Image.Image) -> bytes:
  buffer = io.BytesIO()
  picture.save(buffer, format="JPEG", quality=90)
  return buffer.getvalue()


def _settings(config: dict[str, Any]) -> dict[str, bool | int | float | str]:
  """Returns a config as one level of plain values; lists become text."""
  return {
    key: value if isinstance(value, bool | int | float | str) else str(value)
    for key, value in flatten(config).items()
  }
