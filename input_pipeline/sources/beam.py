"""The tasks of a source on Apache Beam: the work of one machine, on many.

Workers write their results to a folder that all machines share, where they are read in order, so
that the runner moves no images. Only this file imports Beam, and only when it is asked for:
`pip install "mail_jax[beam]"`.
"""

import dataclasses
import json
import os
import pickle
import re
import shlex
from collections.abc import Callable, Iterator

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
  PipelineOptions,
)

from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError
from input_pipeline.sources.source import Source, Task, TaskResult

# Runners append the failed step to the message.
_INPUT_ERROR = re.compile(r"\bInputError: (.+?)(?: \[while running .*)?$", re.MULTILINE)


def _pipeline(flags: str) -> beam.Pipeline:
  """Returns a pipeline with options in one string, as on Beam's own command lines."""
  try:
    return beam.Pipeline(options=PipelineOptions(shlex.split(flags), save_main_session=False))
  except (ValueError, SystemExit) as error:
    raise InputError(f"--beam {flags!r}: invalid Beam options ({error})") from error


def do_tasks(source: Source, folder: str, flags: str) -> Callable[[str], Iterator[TaskResult]]:
  """Does all tasks of a source.

  Args:
    source: its `make` is pickled for the workers.
    folder: for tasks and results, on a file system that all workers share.
    flags: options of the pipeline.

  Returns:
    A function from a split to its results, in the order of the tasks; each is read once.

  Raises:
    InputError: the options or the input are invalid.
  """
  pipeline, counts = _pipeline(flags), dict.fromkeys(source.splits, 0)
  path, offsets = os.path.join(folder, "tasks.jsonl"), []
  with open(path, "wb") as file:
    for split in source.splits:
      for number, task in enumerate(source.tasks(split)):
        offsets.append(file.tell())
        result = _result_path(folder, split, number)
        os.makedirs(os.path.dirname(result), exist_ok=True)
        file.write(json.dumps([result, task]).encode() + b"\n")
        counts[split] += 1
  do = _Do(source.make, path)
  try:
    # Transforms that every runner has; that for Dask has none that reads files.
    with pipeline as begin:
      _ = begin | beam.Create(offsets) | beam.Reshuffle() | beam.Map(do)
  except Exception as error:
    if (input_error := _input_error(error)) is not None:
      raise input_error from None
    raise
  return lambda split: _read(folder, split, counts[split])


@dataclasses.dataclass(frozen=True)
class _Do:
  """Does a task and writes its result to a file, whole or not at all."""

  make: Callable[[Task], TaskResult]
  tasks: str
  """The file of tasks."""

  def __call__(self, offset: int) -> None:
    with open(self.tasks, "rb") as file:
      file.seek(offset)
      path, task = json.loads(file.readline())
    result = pickle.dumps(self.make(task))
    # After an error elsewhere the folder is gone, and must not come back.
    atomic_files.write_whole(path, result, parents=False)


def _result_path(folder: str, split: str, number: int) -> str:
  return os.path.join(folder, "results", split, f"{number // 1000:06d}", f"{number:09d}.pickle")


def _read(folder: str, split: str, count: int) -> Iterator[TaskResult]:
  for number in range(count):
    path = _result_path(folder, split, number)
    with open(path, "rb") as file:
      result = pickle.load(file)
    os.unlink(path)
    yield result


def _input_error(error: BaseException) -> InputError | None:
  """Returns the `InputError` that a pipeline failed with; runners pass its text in a traceback."""
  if isinstance(error, InputError):
    return error
  messages = _INPUT_ERROR.findall(str(error))
  return InputError(messages[-1]) if messages else None
