"""The input pipeline of PyTorch programs for referring segmentation, for `benchmarks.input`.

Like the loaders of LAVT (data/dataset_refer_bert.py) and CRIS (utils/dataset.py): images by
OpenCV, targets by pycocotools, tokens of a BertTokenizer made in advance, and workers that are
processes. Instance masks, which those two do not read, are decoded and resized in the same way.
Needs torch, opencv-python-headless and transformers.
"""

import dataclasses
from typing import Any

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from pycocotools import mask as mask_api


@dataclasses.dataclass(frozen=True)
class Row:
  """One ref, as in its files."""

  path: str
  size: tuple[int, int]
  """Height and width."""
  target: Any
  """Polygons, or run lengths."""
  instances: list[Any]
  """Run lengths of each mask, best first."""
  tokens: list[np.ndarray]
  """Of each sentence, padded."""


class Samples(torch.utils.data.Dataset):
  """Images [s, s, 3], masks [k, s, s], targets [s, s] (uint8) and tokens [l], ref by ref."""

  def __init__(self, rows: list[Row], size: int, max_instances: int):
    self.rows, self.size, self.max_instances = rows, size, max_instances

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.sample(index, int(torch.randint(len(self.rows[index].tokens), ())))

  def sample(self, index: int, sentence: int) -> dict[str, Any]:
    """Returns a ref with one of its expressions."""
    row, square = self.rows[index], (self.size, self.size)
    image = cv2.cvtColor(cv2.imread(row.path), cv2.COLOR_BGR2RGB)
    masks = np.zeros((self.max_instances, *square), np.uint8)
    *instances, target = self.masks(index)
    for k, mask in enumerate(instances):
      masks[k] = self._nearest(mask)
    return {
      "image": cv2.resize(image, square),
      "masks": masks,
      "num_instances": len(instances),
      "target": self._nearest(target),
      "tokens": row.tokens[sentence],
    }

  def masks(self, index: int) -> np.ndarray:
    """Decodes the instances of a ref, with its target as the last one, [k + 1, h, w]."""
    row = self.rows[index]
    runs = row.target
    if isinstance(runs, list):
      runs = mask_api.merge(mask_api.frPyObjects(runs, *row.size))
    everything: Any = [*row.instances[: self.max_instances], runs]
    return mask_api.decode(everything).transpose(2, 0, 1)

  def _nearest(self, mask: np.ndarray) -> np.ndarray:
    # Takes the pixel under the centre, like ours.
    return cv2.resize(mask, (self.size, self.size), interpolation=cv2.INTER_NEAREST_EXACT)


def loader(samples: Samples, batch_size: int, workers: int, seed: int) -> Any:
  """Makes a DataLoader with persistent workers that use one core each."""
  return torch.utils.data.DataLoader(
    samples,
    batch_size=batch_size,
    shuffle=True,
    drop_last=True,
    num_workers=workers,
    persistent_workers=True,
    multiprocessing_context="spawn",
    worker_init_fn=one_thread,
    generator=torch.Generator().manual_seed(seed),
  )


def one_thread(_: int) -> None:
  """Limits a worker to one core."""
  cv2.setNumThreads(0)
  torch.set_num_threads(1)
