"""Writes an example of custom data: a folder with generated images, masks and mine.jsonl.

python -m input_pipeline.custom example --out example --train 8 --val 4
"""

import argparse
import io
import json
import os
from typing import Any

from PIL import Image

from input_pipeline import preprocess, records
from input_pipeline.common import atomic_files
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.masks.segmentation import encode_segmentation
from input_pipeline.shapes import scenes

FILE = "mine.jsonl"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
  """Adds `example`."""
  parser = add_subparser(
    subparsers, "example", "write a small example of custom data to try the commands on", __doc__
  )
  parser.add_argument(
    "--out", required=True, metavar="FOLDER", help="output folder; must be new or empty"
  )
  parser.add_argument("--train", type=int, default=64, help="training images (default: 64)")
  parser.add_argument("--val", type=int, default=16, help="validation images (default: 16)")
  parser.add_argument(
    "--size", type=int, default=96, help="side of an image in pixels (default: 96)"
  )
  parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  if args.train < 1 or args.val < 0:
    raise InputError("--train must be at least 1, and --val at least 0")
  if args.size < scenes.MIN_SIZE or args.seed < 0:
    raise InputError(f"--size must be at least {scenes.MIN_SIZE}, and --seed at least 0")
  lines = write(args.out, args.train, args.val, args.size, args.seed)
  images = counted(args.train + args.val, "image")
  print(f"wrote {args.out}/{FILE}: {counted(lines, 'line')} for {images}")


def write(out: str, train: int, val: int, size: int, seed: int) -> int:
  """Writes a folder: `photos/`, `masks/` and `mine.jsonl`.

  To show both formats, targets are run lengths in `train` and PNG files in `val`. Instances are
  those of the scenes' simulated detector.

  Args:
    out: the folder; it must be new or empty.
    train: number of training images.
    val: number of validation images.
    size: side of an image, in pixels.
    seed: of the scenes.

  Returns:
    The number of lines.

  Raises:
    InputError: the folder is not empty, or cannot be written.
  """
  if os.path.isdir(out) and os.listdir(out):
    raise InputError(f"--out {out}: this folder is not empty; name a new one")
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
  return len(lines)


def _write_scene(folder: str, split: str, record: records.ImageRecord) -> list[dict[str, Any]]:
  name = f"{split}_{record.image_id:04d}"
  image = f"photos/{name}.jpg"
  pixels = preprocess.decode_image(record.image, image)
  Image.fromarray(pixels).save(os.path.join(folder, image), quality=95)
  detected = record.instances
  instances = [
    {"rle": encode_segmentation(mask), "score": round(float(score), 4), "category": int(category)}
    for mask, score, category in zip(
      detected.masks, detected.scores, detected.categories, strict=True
    )
  ]
  lines = []
  for number, ref in enumerate(record.refs):
    target = {"rle": encode_segmentation(ref.target)}
    if split == "val":
      target = {"png": f"masks/{name}_{number}.png"}
      png = io.BytesIO()
      Image.fromarray(ref.target).save(png, format="PNG")
      with open(os.path.join(folder, target["png"]), "wb") as file:
        file.write(png.getvalue())
    line = {"image": image, "split": split, "sentences": list(ref.sentences), "target": target}
    lines.append(line | ({"instances": instances} if not number else {}))
  return lines
