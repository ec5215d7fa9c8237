r"""Measures the images per second of `prepare`, and its memory for more images:

  python -m benchmarks.prepare --images train2014 --annotations instances_train2014.json \
      --repeat 1 10

Makes a dataset in RefCOCO's layout of all images with objects, with up to three refs each, and one
for each --repeat with that many copies under other ids. One row each: seconds of the whole command,
the peak memory of all its processes, and that of one worker.
"""

import argparse
import json
import os
import pathlib
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import psutil

from input_pipeline.common import parallel
from input_pipeline.common.errors import run_command

_OFFSET = 10_000_000_000  # between the ids of one copy and the next
_REFS = 3
_SAMPLE_EVERY = 0.1  # seconds


def _put(photo: pathlib.Path, place: pathlib.Path) -> None:
  """Links a file, or copies it if the file system has no hard links.

  Symbolic links out of the folder would be refused.
  """
  try:
    os.link(photo, place)
  except OSError:
    shutil.copyfile(photo, place)


def write_layout(folder: pathlib.Path, images: str, annotations: str, repeat: int) -> int:
  """Writes `refer/refcoco` and the folder `photos`; returns the number of images."""
  with open(annotations, encoding="utf-8") as file:
    content = json.load(file)
  of_image: dict[int, list[dict]] = {}
  for row in content["annotations"]:
    of_image.setdefault(row["image_id"], []).append(row)
  dataset = {"images": [], "annotations": [], "categories": content["categories"]}
  refs: list[dict] = []
  (folder / "photos").mkdir()
  for copy in range(repeat):
    for image in content["images"]:
      photo = pathlib.Path(images) / image["file_name"]
      objects = [row for row in of_image.get(image["id"], []) if not row.get("iscrowd")]
      if not objects or not photo.is_file():
        continue
      name = f"{copy}_{image['file_name']}"
      _put(photo.resolve(), folder / "photos" / name)
      image_id = image["id"] + copy * _OFFSET
      dataset["images"].append(image | {"id": image_id, "file_name": name})
      dataset["annotations"] += [
        row | {"id": row["id"] + copy * _OFFSET, "image_id": image_id}
        for row in of_image[image["id"]]
      ]
      objects.sort(key=lambda row: -row["area"])
      refs += [_ref(row, copy, len(refs) + n) for n, row in enumerate(objects[:_REFS])]
  target = folder / "refer" / "refcoco"
  target.mkdir(parents=True)
  (target / "instances.json").write_text(json.dumps(dataset))
  (target / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
  return len(dataset["images"])


def _ref(row: dict, copy: int, ref_id: int) -> dict:
  sentence = {"raw": "the one that is meant", "sent": "the one that is meant", "sent_id": ref_id}
  return {
    "ref_id": ref_id,
    "ann_id": row["id"] + copy * _OFFSET,
    "image_id": row["image_id"] + copy * _OFFSET,
    "category_id": row["category_id"],
    "split": "train",
    "sentences": [sentence],
  }


def measure(folder: pathlib.Path, workers: int) -> tuple[float, float, float]:
  """Runs the command; returns its seconds, and its peak memory and one worker's, in MB."""
  annotations = folder / "refer" / "refcoco" / "instances.json"
  command = [
    *(sys.executable, "-m", "input_pipeline.prepare", "--dataset", "refcoco_unc", "--overwrite"),
    *("--refer_root", str(folder / "refer"), "--images", str(folder / "photos")),
    *("--instances", f"coco:{annotations}", "--data_dir", str(folder / "data")),
    *("--workers", str(workers)),
  ]
  began = time.monotonic()
  process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  total = worker = 0
  while process.poll() is None:
    held = _held(process)
    total, worker = max(total, sum(held)), max([worker, *held[1:]])
    time.sleep(_SAMPLE_EVERY)
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return time.monotonic() - began, total / 1e6, worker / 1e6


def _held(process: psutil.Process) -> list[int]:
  """Returns the private bytes of the process and of each of its children."""
  held = []
  try:
    for member in [process, *process.children(recursive=True)]:
      held.append(member.memory_full_info().uss)
  except psutil.Error:  # it has ended
    pass
  return held or [0]


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--images", required=True, help="folder of COCO's photos")
  parser.add_argument("--annotations", required=True, help="their instances.json")
  parser.add_argument("--repeat", type=int, nargs="+", default=[1, 10])
  parser.add_argument("--workers", type=int, default=parallel.available_cores())
  args = parser.parse_args(argv)
  print(f"Python {platform.python_version()}, {args.workers} workers, {platform.processor()}")
  print("| images | seconds | images per second | all memory, MB | per worker, MB |")
  print("| ---: | ---: | ---: | ---: | ---: |")
  for repeat in args.repeat:
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      count = write_layout(folder, args.images, args.annotations, repeat)
      seconds, total, worker = measure(folder, args.workers)
    print(
      f"| {count:,} | {seconds:.1f} | {count / seconds:.1f} | {total:.0f} | {worker:.0f} |",
      flush=True,
    )


if __name__ == "__main__":
  run_command(main)
