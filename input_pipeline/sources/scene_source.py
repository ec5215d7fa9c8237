"""A data set of generated scenes, made on all cores."""

import dataclasses
from collections.abc import Iterator

from input_pipeline import records
from input_pipeline.common import parallel
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import leakage
from input_pipeline.shapes import scenes
from input_pipeline.sources.source import Made, Task

NOISE = "default"
TRAIN_SCENES = 16_000
EVAL_SCENES = 500
SIZE = 96
_CHUNK = 32  # scenes a task: about 0.1 s of work


class SceneSet:
  """Generated scenes as examples; the same bytes whatever the number of workers."""

  def __init__(
    self,
    train_scenes: int = TRAIN_SCENES,
    eval_scenes: int = EVAL_SCENES,
    size: int = SIZE,
    seed: int = 0,
    noise: str = NOISE,
    workers: int | None = None,
  ):
    """Describes the data set; nothing is made yet.

    Args:
      train_scenes: number of scenes of the train split.
      eval_scenes: number of scenes of every other split.
      size: image side in pixels.
      seed: another seed gives other scenes.
      noise: how good the simulated detector is, as `Noise.parse` reads it.
      workers: number of processes; one a core by default.
    """
    if train_scenes < 1 or eval_scenes < 1:
      raise InputError("--train_scenes and --eval_scenes: at least one scene a split is needed")
    if size < scenes.MIN_SIZE:
      raise InputError(f"--size {size}: scenes need {scenes.MIN_SIZE} pixels or more")
    if seed < 0:
      raise InputError(f"--seed {seed}: a seed is 0 or more")
    self.splits = {
      split: train_scenes if split == "train" else eval_scenes for split in scenes.SPLITS
    }
    self.make = SceneMaker(seed, size, scenes.Noise.parse(noise))
    self.workers = workers or parallel.available_cores()
    self.provenance = leakage.of_scenes(self.splits)

  def tasks(self, split: str) -> Iterator[Task]:
    """Yields the numbers of the scenes of a split."""
    count = self.splits[split]
    for first in range(0, count, _CHUNK):
      yield {"split": split, "first": first, "last": min(first + _CHUNK, count)}


@dataclasses.dataclass(frozen=True)
class SceneMaker:
  """Makes the examples of scenes by their numbers."""

  seed: int
  size: int
  noise: scenes.Noise

  def __call__(self, task: Task) -> Made:
    """Makes the scenes `first` to before `last` of a split."""
    return Made(
      [
        records.encode_record(
          scenes.make_record(task["split"], self.seed, n, self.size, self.noise)
        )
        for n in range(task["first"], task["last"])
      ]
    )
