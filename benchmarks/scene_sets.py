"""Data sets of generated scenes of another distribution than that of `shapes`, for benchmarks."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline import storage
from input_pipeline.shapes.detector import DetectorNoise
from input_pipeline.sources import scene_source
from input_pipeline.sources.source import Task, TaskResult

_SPLITS: tuple[str, ...] = ("train", "val")
# Numbers of scenes that no split of `shapes` reaches.
_APART = 1_000_000


@dataclasses.dataclass(frozen=True)
class Maker(scene_source.SceneMaker):
  """Makes the scenes of one split of `shapes` under the names of other splits.

  Attributes:
    like: the split; it decides on the referents and on the kinds of expressions.
  """

  like: str

  def __call__(self, task: Task) -> TaskResult:
    """Makes the scenes of a task; each split has its own."""
    offset = _APART * (1 + _SPLITS.index(task["split"]))
    moved = {"split": self.like, "first": task["first"] + offset, "last": task["last"] + offset}
    return super().__call__(moved)


class Source(scene_source.SceneSource):
  """The splits `train` and `val` of scenes like those of one split of `shapes`."""

  def __init__(self, like: str, train_scenes: int, eval_scenes: int, noise: str, seed: int):
    super().__init__(train_scenes, eval_scenes, seed=seed)
    self.splits = dict(zip(_SPLITS, (train_scenes, eval_scenes), strict=True))
    self.coco_ids = {split: {} for split in self.splits}
    self.make = Maker(seed, scene_source.SIZE, DetectorNoise.parse(noise), like)


def prepare(data_dir: str, name: str, source: Source) -> None:
  """Writes a data set, unless it is there."""
  from input_pipeline.tf import builder

  if storage.read_metadata(data_dir, name) is None:
    builder.write_dataset(data_dir, name, source, dict(source.splits))


def spread(values: Sequence[float]) -> str:
  """Returns a mean, and each value where there are several."""
  each = f" ({', '.join(f'{value:.4f}' for value in values)})" if len(values) > 1 else ""
  return f"{np.mean(values):.4f}{each}"
