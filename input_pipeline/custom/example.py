"""A small set of generated scenes as somebody's own data: photos, masks and a file of lines."""

import io
import json
import os
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline import preprocess, records
from input_pipeline.common import atomic_files
from input_pipeline.custom.schema import Mask
from input_pipeline.shapes import scenes

FILE = "mine.jsonl"


def write(out: str, train: int, val: int, size: int, seed: int) -> dict[str, int]:
  """Writes a folder: `photos/`, `masks/` and `mine.jsonl`.

  Targets are run lengths in `train` and PNG files in `val`, so that both are seen; instances are those of the simulated
  detector of the scenes.

  Args:
    out: the folder; it must not be there, or be empty.
    train: photos of that split.
    val: photos of that split.
    size: side of a photo, in pixels.
    seed: another one gives other scenes.

  Returns:
    How many photos and lines there are.

  Raises:
    InputError: the folder cannot be written.
  """
  lines = []
  with atomic_files.whole_folder(out) as folder:
    for name in ("photos", "masks"):
      (folder / name).mkdir()
    for split, count in (("train", train), ("val", val)):
      for index in range(count):
        record = scenes.make_record(split, seed, index, size)
        lines += _write_scene(os.fspath(folder), split, record)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / FILE).write_text(text, encoding="utf-8")
  return {"photos": train + val, "lines": len(lines)}


def _write_scene(folder: str, split: str, record: records.ImageRecord) -> list[dict[str, Any]]:
  name = f"{split}_{record.image_id:04d}"
  photo = f"photos/{name}.jpg"
  pixels = preprocess.decode_image(record.image, photo)
  Image.fromarray(pixels).save(os.path.join(folder, photo), quality=95)
  made = record.instances
  instances = [
    {**encode(mask), "score": round(float(score), 4), "category": int(category)}
    for mask, score, category in zip(made.masks, made.scores, made.categories, strict=True)
  ]
  lines = []
  for number, ref in enumerate(record.refs):
    target = encode(ref.target)
    if split == "val":
      target = {"png": f"masks/{name}_{number}.png"}
      png = io.BytesIO()
      Image.fromarray(ref.target).save(png, format="PNG")
      with open(os.path.join(folder, target["png"]), "wb") as file:
        file.write(png.getvalue())
    line = {"image": photo, "split": split, "sentences": list(ref.sentences), "target": target}
    lines.append(line | ({"instances": instances} if not number else {}))
  return lines


def encode(mask: Bool[np.ndarray, "h w"]) -> Mask:
  """Returns a mask as COCO's run lengths."""
  runs: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"rle": {"size": list(map(int, runs["size"])), "counts": runs["counts"].decode()}}
