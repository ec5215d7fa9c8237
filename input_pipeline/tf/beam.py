"""A data set's examples on Apache Beam: the same tasks as on one machine, on as many as there are.

Only this file knows Beam, and it is imported when somebody asks for it: `pip install "mail_jax[beam]"`.
"""

import json
import os
import pathlib
import re
import shlex
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
  PipelineOptions,
)

from input_pipeline.common.errors import InputError
from input_pipeline.sources.source import SkippedImage, Source, TaskResult
from input_pipeline.tf import tfds_settings

tfds_settings.apply()  # in the workers too, which import this module
_NAMESPACE = "mail_jax"
# Runners add to the message which step failed.
_INPUT_ERROR = re.compile(r"\bInputError: (.+?)(?: \[while running .*)?$", re.MULTILINE)


def parse_options(flags: str) -> PipelineOptions:
  """Pipeline options from one string, as on Beam's own command lines.

  Raises:
    InputError: the string cannot be split into words.
  """
  try:
    return PipelineOptions(shlex.split(flags), save_main_session=False)
  except (ValueError, SystemExit) as error:
    raise InputError(f"--beam {flags!r}: not Beam's options ({error})") from error


class MakeExamples(beam.PTransform):
  """The examples of a split, with their keys."""

  def __init__(self, source: Source, split: str, folder: str):
    """Writes the tasks of the split to a file, which the workers read.

    Args:
      source: where examples come from; its `make` travels to the workers.
      split: a key of `source.splits`.
      folder: on a file system that all workers share; tasks and what was skipped lie there.
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
    """Gives (image id, example)."""
    made = (
      pipeline
      | beam.io.ReadFromText(self._tasks)
      | beam.Reshuffle()
      | beam.Map(json.loads)
      | beam.Map(self._make)
      | beam.Map(_count, self._split)
    )
    skipped = beam.io.WriteToText(os.path.join(self._folder, f"skipped-{self._split}"))
    _ = made | "Skipped" >> beam.FlatMap(_skipped) | skipped
    return made | "Examples" >> beam.FlatMap(_examples)


def _count(made: TaskResult, split: str) -> TaskResult:
  for name, number in made.counts().items():
    beam.metrics.Metrics.counter(_NAMESPACE, f"{split}/{name}").inc(number)
  beam.metrics.Metrics.counter(_NAMESPACE, f"{split}/milliseconds").inc(round(1000 * made.seconds))
  return made


def _skipped(made: TaskResult) -> list[str]:
  return [json.dumps([row.image_id, row.reason]) for row in made.skipped]


def _examples(made: TaskResult) -> list[tuple[int, dict[str, Any]]]:
  return [(fields["image_id"], fields) for fields in made.records]


def read_counts(result: Any, split: str) -> tuple[dict[str, int], float]:
  """The sums over a split when the pipeline is done: `TaskResult.counts`, and seconds."""
  found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(_NAMESPACE))
  counts = {row.key.metric.name: row.committed for row in found["counters"]}
  names = TaskResult([]).counts()
  seconds = counts.get(f"{split}/milliseconds", 0) / 1000
  return {name: counts.get(f"{split}/{name}", 0) for name in names}, seconds


def read_skipped(folder: str, split: str) -> list[SkippedImage]:
  """What was left out of a split when the pipeline is done."""
  lines = [
    line
    for path in pathlib.Path(folder).glob(f"skipped-{split}-*-of-*")
    for line in path.read_text().splitlines()
  ]
  return [SkippedImage(*json.loads(line)) for line in lines]


def input_error(error: BaseException) -> InputError | None:
  """Returns the `InputError` that made a pipeline fail: runners hand on its text inside a traceback."""
  if isinstance(error, InputError):
    return error
  found = _INPUT_ERROR.findall(str(error))
  return InputError(found[-1]) if found else None
