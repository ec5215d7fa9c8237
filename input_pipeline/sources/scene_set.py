"""A data set of generated scenes, made on all cores."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator
from typing import Any

from input_pipeline import example, parallel
from input_pipeline.errors import InputError
from input_pipeline.sources import shapes

NOISES = ("default", "oracle")
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
    noise: str = "default",
    workers: int | None = None,
  ):
    """Describes the data set; nothing is made yet.

    Args:
      train_scenes: number of scenes of the train split.
      eval_scenes: number of scenes of every other split.
      size: image side in pixels.
      seed: another seed gives other scenes.
      noise: one of NOISES, how good the simulated detector is.
      workers: number of processes; one a core by default.
    """
    if train_scenes < 1 or eval_scenes < 1:
      raise InputError("--train_scenes and --eval_scenes: at least one scene a split is needed")
    if size < shapes.MIN_SIZE:
      raise InputError(f"--size {size}: scenes need {shapes.MIN_SIZE} pixels or more")
    if seed < 0:
      raise InputError(f"--seed {seed}: a seed is 0 or more")
    if noise not in NOISES:
      raise InputError(f"--noise {noise}: there are {' and '.join(NOISES)}")
    self.splits = {
      split: train_scenes if split == "train" else eval_scenes for split in shapes.SPLITS
    }
    self._chunk = _Chunk("train", seed, 0, 0, size, noise)
    self._workers = workers or parallel.available_cores()
    self._pool: concurrent.futures.Executor | None = None

  def examples(self, split: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a split, ordered by index."""
    count = self.splits[split]
    chunks = (
      dataclasses.replace(self._chunk, split=split, first=first, last=min(first + _CHUNK, count))
      for first in range(0, count, _CHUNK)
    )
    if self._pool is None:
      self._pool = parallel.start_workers(self._workers)
    for made in parallel.ordered_map(self._pool, _make_chunk, chunks, 3 * self._workers):
      yield from made


@dataclasses.dataclass(frozen=True)
class _Chunk:
  split: str
  seed: int
  first: int
  last: int
  size: int
  noise: str


def _make_chunk(chunk: _Chunk) -> list[dict[str, Any]]:
  noise = shapes.Noise.oracle() if chunk.noise == "oracle" else None
  return [
    example.encode_record(shapes.make_record(chunk.split, chunk.seed, index, chunk.size, noise))
    for index in range(chunk.first, chunk.last)
  ]
