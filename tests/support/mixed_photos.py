"""Small data sets of photos whose train splits contain copies of evaluation photos.

A photo is a number. The data sets `one`, `two` and `three` have their own; in each train split are
also copies of evaluation photos, under other names and compressed again.
"""

import io
import pathlib
from typing import Any

import numpy as np
from custom_files import SQUARE, write_lines
from PIL import Image

from input_pipeline.prepare import command as prepare

HEIGHT, WIDTH = 96, 128
# Photos of every split; of train, those that no evaluation has.
SPLITS = {
  "one": {"train": range(8), "val": range(8, 11), "test": range(11, 13)},
  "two": {"train": range(20, 26), "val": range(26, 28)},
  "three": {"train": range(40, 50), "val": range(50, 52)},
}
# Copies in the train splits, by data set: of other data sets' photos and of its own.
COPIES = {"one": [26, 50], "two": [8, 11, 51], "three": [9, 27, 50]}
REFS_OF = 2
"""Refs of a photo with an even number; the others have one."""
MIXTURE = "one:2,two:1,three:1"


def photo(number: int) -> Image.Image:
  """Returns smooth random colours, which look like no other photo."""
  coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
  return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def jpeg(number: int, quality: int = 92) -> bytes:
  """Returns the file of a photo."""
  file = io.BytesIO()
  photo(number).save(file, "JPEG", quality=quality)
  return file.getvalue()


def write(folder: pathlib.Path) -> str:
  """Writes and prepares the data sets; returns the data folder."""
  for name, splits in SPLITS.items():
    rows = []
    for split, numbers in splits.items():
      for number in numbers:
        rows += _write_photo(folder / name, f"{split}_{number}.jpg", jpeg(number), number, split)
    for number in COPIES[name]:
      rows += _write_photo(
        folder / name, f"holiday_{number + 7}.jpg", jpeg(number, quality=40), number, "train"
      )
    path = write_lines(folder / name / f"{name}.jsonl", *rows)
    prepare.main(["--dataset", f"jsonl:{path}", "--data_dir", str(folder / "data")])
  return str(folder / "data")


def _write_photo(
  folder: pathlib.Path, name: str, data: bytes, number: int, split: str
) -> list[dict[str, Any]]:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_bytes(data)
  line = {"image": name, "split": split, "target": SQUARE}
  count = REFS_OF if number % 2 == 0 else 1
  return [line | {"sentences": [f"thing {number} {n}", f"item {number} {n}"]} for n in range(count)]


def refs_of(numbers: Any) -> int:
  """Returns the number of refs of photos."""
  return sum(REFS_OF if number % 2 == 0 else 1 for number in numbers)
