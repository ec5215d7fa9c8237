"""A data set's examples on Apache Beam: the same tasks as on one machine, on many.

Only this file imports Beam, and only when it is asked for: `pip install "mail_jax[beam]"`.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
  PipelineOptions,
)

from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import ImageHash
from input_pipeline.sources.source import SkippedImage, Source, TaskResult
from input_pipeline.tf import tfds_settings

tfds_settings.apply()  # in the workers too, which import this module
_NAMESPACE = "mail_jax"
# Runners append the failed step to the message.
_INPUT_ERROR = re.compile(r"\bInputError: (.+?)(?: \[while running .*)?$", re.MULTILINE)


def parse_options(flags: str) -> PipelineOptions:
  """Parses pipeline options from one string, as on Beam's own command lines.

  Raises:
    InputError: the string cannot be split into words.
  """
  try:
    return PipelineOptions(shlex.split(flags), save_main_session=False)
  except (ValueError, SystemExit) as error:
    raise InputError(f"--beam {flags!r}: invalid Beam options ({error})") from error


class MakeExamples(beam.PTransform):
  """The examples of a split, with their keys."""

  def __init__(self, source: Source, split: str, folder: str):
    """Writes the tasks of the split to a file, which the workers read.

    Args:
      source: of the examples; its `make` is pickled for the workers.
      split: a key of `source.splits`.
      folder: for tasks and skipped images, on a file system that all workers share.
    """
    super().__init__()
    self._make, self._split, self._folder = source.make, split, folder
    with open(self._tasks, "w", encoding="utf-8") as file:
      for task in source.tasks(split):
        file.write(json.dumps(task) + "\n")

  @property
  def _tasks(self) -> str:
    return os.path.join(self._folder, f"tasks-{self._split}.jsonl")

  def expand(self, pipeline: Any) -> Any:
    """Returns pairs of image id and example."""
    results = (
      pipeline
      | beam.io.ReadFromText(self._tasks)
      | beam.Reshuffle()
      | beam.Map(json.loads)
      | beam.Map(self._make)
      | beam.Map(_count, self._split)
    )
    skipped = beam.io.WriteToText(os.path.join(self._folder, f"skipped-{self._split}"))
    _ = results | "Skipped" >> beam.FlatMap(_skipped) | skipped
    hashes = beam.io.WriteToText(os.path.join(self._folder, f"hashes-{self._split}"))
    _ = results | "Hashes" >> beam.FlatMap(_hashes) | "WriteHashes" >> hashes
    return results | "Examples" >> beam.FlatMap(_examples)


def _count(result: TaskResult, split: str) -> TaskResult:
  for name, number in result.counts().items():
    beam.metrics.Metrics.counter(_NAMESPACE, f"{split}/{name}").inc(number)
  for note, number in result.notes.items():
    beam.metrics.Metrics.counter(_NAMESPACE, f"{split}/notes/{note}").inc(number)
  beam.metrics.Metrics.counter(_NAMESPACE, f"{split}/milliseconds").inc(
    round(1000 * result.seconds)
  )
  return result


def _skipped(result: TaskResult) -> list[str]:
  return [json.dumps([row.image_id, row.reason]) for row in result.skipped]


def _hashes(result: TaskResult) -> list[str]:
  return [json.dumps(dataclasses.astuple(row)) for row in result.hashes]


def _examples(result: TaskResult) -> list[tuple[int, dict[str, Any]]]:
  return [(fields["image_id"], fields) for fields in result.records]


def read_counts(result: Any, split: str) -> tuple[dict[str, int], float, dict[str, int]]:
  """Returns the sums over a split of a finished pipeline: counts, seconds and notes of results."""
  metrics = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(_NAMESPACE))
  counts = {row.key.metric.name: row.committed for row in metrics["counters"]}
  names = TaskResult([]).counts()
  seconds = counts.get(f"{split}/milliseconds", 0) / 1000
  prefix = f"{split}/notes/"
  notes = {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}
  return {name: counts.get(f"{split}/{name}", 0) for name in names}, seconds, notes


def read_skipped(folder: str, split: str) -> list[SkippedImage]:
  """Returns the skipped images of a split, of a finished pipeline."""
  return [SkippedImage(*row) for row in _read_lines(folder, f"skipped-{split}")]


def read_hashes(folder: str, split: str) -> list[ImageHash]:
  """Returns the hashes of the images of a split, of a finished pipeline."""
  return [ImageHash(*row) for row in _read_lines(folder, f"hashes-{split}")]


def _read_lines(folder: str, name: str) -> Iterator[Any]:
  for path in pathlib.Path(folder).glob(f"{name}-*-of-*"):
    yield from map(json.loads, path.read_text().splitlines())


def input_error(error: BaseException) -> InputError | None:
  """Returns the `InputError` that a pipeline failed with; runners pass its text in a traceback."""
  if isinstance(error, InputError):
    return error
  messages = _INPUT_ERROR.findall(str(error))
  return InputError(messages[-1]) if messages else None
