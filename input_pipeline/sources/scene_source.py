"""A data set of generated scenes, made on all cores."""

import dataclasses
from collections.abc import Iterator

from input_pipeline import records
from input_pipeline.common import parallel
from input_pipeline.common.errors import InputError
from input_pipeline.image_hashes import hash_image
from input_pipeline.proposers import leakage
from input_pipeline.shapes import scenes
from input_pipeline.shapes.detector import DetectorNoise
from input_pipeline.sources.source import Task, TaskResult

NOISE = "default"
TRAIN_SCENES = 16_000
EVAL_SCENES = 500
SIZE = 96
# Scenes per task: about 0.1 s of work.
_CHUNK = 32


class SceneSource:
  """Generated scenes as records; the same bytes for any number of workers."""

  def __init__(
    self,
    train_scenes: int = TRAIN_SCENES,
    eval_scenes: int = EVAL_SCENES,
    size: int = SIZE,
    seed: int = 0,
    noise: str = NOISE,
    workers: int | None = None,
  ):
    """Describes the data set; no scene is generated yet.

    Args:
      train_scenes: number of scenes in the train split.
      eval_scenes: number of scenes in every other split.
      size: image side in pixels.
      seed: another seed gives other scenes.
      noise: errors of the simulated detector, as for `DetectorNoise.parse`.
      workers: number of processes; one per core by default.
    """
    if train_scenes < 1 or eval_scenes < 1:
      raise InputError("--train_scenes and --eval_scenes must be at least 1")
    if size < scenes.MIN_SIZE:
      raise InputError(f"--size {size}: scenes need at least {scenes.MIN_SIZE} pixels")
    if seed < 0:
      raise InputError(f"--seed {seed}: must not be negative")
    self.splits = {
      split: train_scenes if split == "train" else eval_scenes for split in scenes.SPLITS
    }
    self.make = SceneMaker(seed, size, DetectorNoise.parse(noise))
    self.workers = workers or parallel.available_cores()
    self.provenance = leakage.of_scenes(self.splits)
    self.coco_ids = {split: {} for split in self.splits}

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the ranges of scene numbers of a split."""
    count = self.splits[split]
    for first in range(0, count, _CHUNK):
      yield {"split": split, "first": first, "last": min(first + _CHUNK, count)}


@dataclasses.dataclass(frozen=True)
class SceneMaker:
  """Makes records of scenes, given their numbers."""

  seed: int
  size: int
  noise: DetectorNoise

  def __call__(self, task: Task) -> TaskResult:
    """Makes the scenes from `first` up to, but without, `last` of a split."""
    made = [
      records.encode_record(scenes.make_record(task["split"], self.seed, n, self.size, self.noise))
      for n in range(task["first"], task["last"])
    ]
    # Scenes look alike.
    hashes = (hash_image(fields["image_id"], fields["image"], looks=False) for fields in made)
    return TaskResult(made, hashes=tuple(hashes))
