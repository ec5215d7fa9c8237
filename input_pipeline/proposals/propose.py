r"""Runs a proposer once on the images of several data sets, and writes its masks as COCO results:

python -m input_pipeline.proposals propose --dataset refcoco_unc --dataset refcoco+_unc \
    --refer_root refer --images train2014 --instances huggingface:MODEL --out proposals.json

`prepare --instances results:proposals.json --rank given --allow_empty` then has the same masks as
with the proposer itself, without running it for every data set. The same command resumes after an
interruption, and adds images of more data sets: OUT.json.rows keeps what is made.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import filelock

from input_pipeline.common import atomic_files, fingerprint, parallel, places, terminal
from input_pipeline.common.command_line import add_subparser
from input_pipeline.common.errors import InputError
from input_pipeline.masks.segmentation import encode_segmentation
from input_pipeline.proposers import mask_recipe, ranking
from input_pipeline.proposers.selection import Selection
from input_pipeline.sources import readers
from input_pipeline.sources.annotated_images import RecordMaker, read_image

_ROWS = ".rows"
# The beginning of the row of an image: its seconds and its id.
_ROW = re.compile(rb'\[([\d.e+-]+), \{"id": (-?\d+),.*\n', re.DOTALL)
# Results of so many batches may wait for each worker.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class _Image:
  image_id: int
  path: str
  height: int
  width: int


def add_parser(subparsers: Any) -> None:
  """Adds `propose`."""
  parser = add_subparser(
    subparsers, "propose", "run a proposer once for several data sets", __doc__
  )
  parser.add_argument(
    "--dataset", required=True, action="append", help="as for `prepare`; repeatable"
  )
  parser.add_argument("--refer_root", required=True, help="folder with refcoco/, refcoco+/ ...")
  parser.add_argument("--images", required=True, help="folder with the images")
  parser.add_argument("--annotations", help="as for `prepare`")
  parser.add_argument("--instances", required=True, metavar="NAME[:ARG]", help="the proposer")
  parser.add_argument("--out", required=True, metavar="OUT.json", help="output file")
  parser.add_argument(
    "--max_instances",
    type=int,
    default=Selection.max_instances,
    help=f"masks per image, 1 to 64 (default: {Selection.max_instances})",
  )
  parser.add_argument(
    "--rank",
    choices=sorted(ranking.RANKS),
    default=Selection.rank,
    help=f"which masks come first (default: {Selection.rank})",
  )
  parser.add_argument(
    "--limit", type=int, metavar="N", help="stop after so many more images, to measure the time"
  )
  parser.add_argument("--workers", type=int, help="processes (default: as many as are useful)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command.

  Raises:
    InputError: an input is missing or damaged, or the output is of other options.
  """
  selection = Selection(max_instances=args.max_instances, rank=args.rank)
  options = {"instances": _identify(args.instances), **dataclasses.asdict(selection)}
  with terminal.announce("reading the data sets and the headers of their images"):
    images = _list_images(args)
  ids = json.dumps([image.image_id for image in images])
  about = {
    "options": options,
    "datasets": sorted({*args.dataset}),
    "images": len(images),
    "image_ids": fingerprint.of_bytes(ids.encode()),
  }
  written = mask_recipe.read_about(args.out)
  if written == about:
    print(f"{args.out} is already written: nothing to do")
    return
  if os.path.exists(args.out) and (written or {}).get("options") != options:
    raise _other(args.out)
  rows = _Rows(args.out, options)
  left = [image for image in images if image.image_id not in rows.offsets]
  wanted = left[: args.limit] if args.limit else left
  try:
    _propose(args, selection, wanted, rows)
    if len(wanted) == len(left):
      rows.finish(about, [image.image_id for image in images])
  finally:
    rows.close()
  if len(wanted) < len(left):
    done, each = len(images) - len(left) + len(wanted), seconds_per_image(args.out)
    print(f"{done:,} of {len(images):,} images are done, {each:.3g} s per image")
    return
  print(f"wrote {args.out}: {terminal.counted(len(images), 'image')}")


def _other(path: str) -> InputError:
  return InputError(
    f"--out {path}: exists, and is of another proposer or other options; name another file, or "
    "remove it"
  )


def _times(out: str) -> list[float]:
  """Returns the seconds of each image whose masks are made."""
  path = pathlib.Path(out + _ROWS)
  if not path.is_file():
    return []
  with path.open("rb") as file:
    next(file, None)
    return [float(match[1]) for line in file if (match := _ROW.match(line))]


def seconds_per_image(out: str) -> float:
  """Returns the wall time per image of an output so far; 0 if it has no images yet."""
  times = _times(out)
  # The first one waits for the model.
  times = times[1:] or times
  return sum(times) / len(times) if times else 0.0


def images_done(out: str) -> int:
  """Returns of how many images an output has the masks, finished or not."""
  return len(_times(out))


def _identify(spec: str) -> str:
  """Returns a proposer with the content of its file, if it has one."""
  argument = spec.partition(":")[2]
  return f"{spec} (sha256 {fingerprint.of_file(argument)})" if os.path.isfile(argument) else spec


def _list_images(args: argparse.Namespace) -> list[_Image]:
  """Returns the images of all data sets, each once, by their ids."""
  found: dict[int, _Image] = {}
  for dataset in args.dataset:
    readers.check_proposer(dataset, args.instances)
    reader = readers.open_reader(dataset, args.refer_root, args.annotations)
    for split, image_ids in reader.splits.items():
      for image_id in image_ids:
        if image_id in found:
          continue
        image = reader.annotated_image(split, image_id, args.images)
        if image.error:
          raise InputError(f"{dataset}: {image.error}; set the folder of the images with --images")
        found[image_id] = _Image(image_id, image.path, image.height, image.width)
  return [found[image_id] for image_id in sorted(found)]


def _propose(
  args: argparse.Namespace, selection: Selection, images: Sequence[_Image], rows: "_Rows"
) -> None:
  maker = RecordMaker(args.instances, selection)
  with terminal.announce(f"opening {args.instances}"):
    one = args.workers == 1 or not getattr(maker.proposer().proposer, "parallel", False)
  workers = 1 if one else args.workers or parallel.available_cores()
  size = readers.BATCH_SIZE
  batches = [images[first : first + size] for first in range(0, len(images), size)]
  work = functools.partial(_rows_of, maker)
  with terminal.progress_bar("proposing", len(images), "images") as bar:
    before = time.monotonic()
    if workers == 1:
      results: Iterator[list[Any]] = map(work, batches)
    else:
      pool = parallel.start_workers(min(workers, max(1, len(batches))))
      results = parallel.ordered_map(pool, work, batches, _IN_FLIGHT * workers)
    for made in results:
      seconds = (time.monotonic() - before) / len(made)
      before = time.monotonic()
      for image, annotations in made:
        rows.add(seconds, image, annotations)
      rows.flush()
      bar.update(len(made))


def _rows_of(
  maker: RecordMaker, images: Sequence[_Image]
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
  """Returns the rows of each image: of the image, and of its masks, best first."""
  pixels = [read_image(image.path, (image.height, image.width))[1] for image in images]
  found = maker.proposer().propose(pixels, [image.image_id for image in images])
  rows = []
  for image, instances in zip(images, found, strict=True):
    name = places.name_in(image.path)
    row = {"id": image.image_id, "file_name": name, "height": image.height, "width": image.width}
    annotations = [
      {
        "image_id": image.image_id,
        "category_id": 0,
        "segmentation": encode_segmentation(mask),
        "score": float(score),
      }
      for mask, score in zip(instances.masks, instances.scores, strict=True)
    ]
    rows.append((row, annotations))
  return rows


class _Rows:
  """The masks of all images so far: a line of options, then one per image.

  It stays beside the output, so that more data sets can be added. An interrupt may cut its last
  line.

  Attributes:
    offsets: where the line of an image begins, by its id.
  """

  def __init__(self, out: str, options: dict[str, Any]):
    self._out, self._path = out, pathlib.Path(out + _ROWS)
    self._lock, self._stack = f"{self._path}.lock", contextlib.ExitStack()
    self.offsets: dict[int, int] = {}
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._stack.enter_context(filelock.FileLock(self._lock, timeout=0))
      mode = "r+b" if self._path.exists() else "w+b"
      self._file = self._stack.enter_context(open(self._path, mode))  # noqa: SIM115
    except filelock.Timeout as error:
      raise InputError(f"--out {out}: another process is writing it; wait for its end") from error
    except OSError as error:
      raise InputError(f"--out {out}: cannot write there ({error.strerror})") from error
    self._open(json.dumps({"options": options}).encode() + b"\n")

  def _open(self, first: bytes) -> None:
    """Finds the lines that are there, and removes one that was cut."""
    header = self._file.readline()
    if header.endswith(b"\n") and header != first:
      self.close()
      raise _other(str(self._path))
    end = len(header) if header == first else 0
    self._file.seek(end)
    for line in self._file if end else ():
      if not line.endswith(b"\n") or not (match := _ROW.match(line)):
        break
      self.offsets[int(match[2])], end = end, end + len(line)
    self._file.seek(end)
    self._file.truncate()
    if not end:
      self._file.write(first)

  def add(self, seconds: float, image: dict[str, Any], annotations: list[dict[str, Any]]) -> None:
    """Appends an image."""
    self.offsets[image["id"]] = self._file.tell()
    self._file.write(json.dumps([round(seconds, 4), image, annotations]).encode() + b"\n")

  def flush(self) -> None:
    """Hands what was added to the system; a killed process loses no earlier image."""
    self._file.flush()

  def close(self) -> None:
    """Closes the file for other processes to write."""
    pathlib.Path(self._lock).unlink(missing_ok=True)
    self._stack.close()

  def finish(self, about: dict[str, Any], image_ids: Sequence[int]) -> None:
    """Writes the output with these images."""
    with atomic_files.whole_file(self._out) as temporary, temporary.open("w") as file:
      file.write(f'{{"info": {json.dumps(about)},\n')
      for key, end in (("images", ",\n"), ("annotations", "}\n")):
        comma = ""
        file.write(f'"{key}": [\n')
        for image_id in image_ids:
          self._file.seek(self.offsets[image_id])
          _, image, annotations = json.loads(self._file.readline())
          for row in [image] if key == "images" else annotations:
            file.write(comma + json.dumps(row))
            comma = ",\n"
        file.write("\n]" + end)
