r"""Predicts masks for images and expressions:

python -m mail_jax.predict --checkpoint runs/demo --image photo.jpg --text "the leftmost star" \
    --out overlay.png

Instance masks are proposed as for training. Others: --instances coco:instances.json (the image is
found by its file name, or is the only one in the file), a proposer, or none. --mask mask.png writes
the mask, and --json - prints the result as JSON.

Several expressions, each with its own --text, or several images, from a folder or from JSONL lines
with `image`, `sentences` and optionally `instances`, into a folder with an overlay per expression
and predictions.jsonl. Run the same command again to resume.

python -m mail_jax.predict --checkpoint runs/demo --image photos --text "the leftmost star" \
    --out stars
python -m mail_jax.predict --checkpoint runs/demo --pairs mine.jsonl --out answers

With nothing at hand, --demo runs the model that comes with mail_jax. Without an image it draws a
scene, with instance masks and an expression, into demo.png:

python -m mail_jax.predict --demo
python -m mail_jax.predict --demo --scene 2 --text "the large star"
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common import atomic_files, drawing
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError, memory_errors
from input_pipeline.common.terminal import list_counts, progress_bar
from mail_jax.export import load
from mail_jax.predict import inputs, outputs
from mail_jax.predict.auto_masks import AUTO
from mail_jax.predict.image_instances import ImageInstances, is_spec
from mail_jax.predict.inputs import PredictionInput, PredictionInputs
from mail_jax.predict.segmenter import Segmentation, Segmenter

_Item = TypeVar("_Item")

# Images that are decoded while the model works.
_AHEAD = 3
# Expressions of an image that are predicted before the predictions are written.
_CHUNK = 8
# Drawn by --demo without a number.
_SCENE = 9
# Number of ignored files that are listed.
_SHOWN = 50


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  args = _parse(argv)
  for text in args.text or ():
    # Fails for an empty one before the model is loaded.
    preprocess.normalise_text(text)
  with memory_errors(
    lambda: ["smaller photos", "end other programs", "a machine with more memory"]
  ):
    if args.pairs or (args.image and (os.path.isdir(args.image) or len(args.text) > 1)):
      _predict_many(args)
    else:
      _predict_one(args)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = command_parser("mail_jax.predict", __doc__)
  load.add_arguments(
    parser, demo="the model that comes with mail_jax; without --image, draws a scene for it"
  )
  load.add_backend_argument(parser)
  source = parser.add_mutually_exclusive_group()
  source.add_argument("--image", help="an image, or a folder of images")
  source.add_argument(
    "--pairs", metavar="FILE.jsonl", help="images and expressions, one JSON object per line"
  )
  source.add_argument(
    "--scene",
    type=_parse_scene,
    metavar="N",
    help=f"with --demo: the number of the scene to draw (default: {_SCENE})",
  )
  parser.add_argument("--text", action="append", help="the expression; repeatable")
  parser.add_argument(
    "--images",
    metavar="FOLDER",
    help="where the paths in --pairs start (default: the folder of the file)",
  )
  parser.add_argument(
    "--instances",
    default=AUTO,
    metavar="NAME:ARGUMENT",
    help="source of instance masks, such as coco:FILE, or none (default: auto, those in --pairs, "
    "or made as for training)",
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    default=1,
    metavar="N",
    help="for several images: so many go through proposer and model together, which is fast on "
    "accelerators; a mask can then depend on the others where its edge is uncertain (default: 1)",
  )
  parser.add_argument(
    "--out",
    help="the image with the mask drawn on it; for several images or expressions, a folder",
  )
  parser.add_argument("--mask", help="the mask alone, white on black, at the size of the image")
  parser.add_argument(
    "--json", metavar="FILE", help="the result as JSON; - prints it, and nothing else"
  )
  parser.add_argument(
    "--explain",
    action="store_true",
    help="tell what the choice of the instance depends on, word by word; for one image",
  )
  parser.add_argument(
    "--on_error",
    choices=("stop", "skip"),
    default="stop",
    help="for several images: what to do with an unusable one (default: stop)",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="remove the predictions of an earlier run from --out"
  )
  args = parser.parse_args(argv)
  _check(args, parser)
  return args


def _parse_scene(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
  return int(text)


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
  """Checks which options are together; completes those of a drawn scene."""
  demo = args.checkpoint == str(load.DEMO_FOLDER)
  if args.image is not None and not args.text:
    parser.error("--image needs --text, the expression")
  if args.batch_size < 1:
    parser.error("--batch_size must be at least 1")
  if args.pairs and args.text:
    parser.error("--pairs has its own expressions: omit --text")
  if args.image is None and not args.pairs:
    if not demo:
      parser.error("set --image or --pairs")
    if args.instances != AUTO or len(args.text or ()) > 1:
      parser.error("a drawn scene has its own instances, and takes one --text; or set --image")
    args.scene = _SCENE if args.scene is None else args.scene
    args.out = args.out or "demo.png"
  if not args.out:
    parser.error("set --out, where the result is drawn")


def _predict_one(args: argparse.Namespace) -> None:
  for path in (args.out, args.mask):
    if path:
      drawing.check_writable(path)
  if args.json not in (None, "-"):
    atomic_files.check_folder(args.json)
  if args.image is None:
    pixels, expression, masks = inputs.draw_scene(args.scene)
    expression, name = args.text[0] if args.text else expression, f"scene {args.scene}"
    segmenter = Segmenter.load(args.checkpoint, args.step, args.backend)
  else:
    pixels, expression, name = preprocess.open_image(args.image), args.text[0], args.image
    segmenter = Segmenter.load(args.checkpoint, args.step, args.backend)
    masks = segmenter.instances.find(args.instances, pixels, args.image)
    _print_notes(segmenter.instances)
  result = segmenter(pixels, expression, masks)
  if args.mask:
    drawing.save(Image.fromarray(result.mask.astype(np.uint8) * 255), args.mask)
  drawing.save(Image.fromarray(result.overlay()), args.out)
  if args.json:
    row = {"image": name, "overlay": args.out} | outputs.to_row(result)
    row |= {"explanation": result.explain().to_json()} if args.explain else {}
    if args.json == "-":
      print(json.dumps(row))
      return
    atomic_files.write_whole(args.json, json.dumps(row) + "\n")
  if result.was_cut:
    print("the expression is longer than the model's limit; its end was cut off")
  if args.image is None:
    print(f'{name}: "{expression}"')
  print(f"{args.out}: {_summarise(result)}")
  if args.explain:
    print("\n".join(result.explain().lines()))


def _summarise(result: Segmentation) -> str:
  no_target = result.no_target_probability
  if no_target is not None and no_target > 0.5:
    return f"no target in the image (probability {no_target:.0%})"
  share, count = f"{result.mask.mean():.1%} of the image", len(result.instances)
  if result.selected is None:
    return f"{share}; none of {count} instances selected"
  probability = result.instance_probability[result.selected]
  return (
    f"{share}; instance {result.selected + 1} of {count} selected (probability {probability:.0%})"
  )


def _predict_many(args: argparse.Namespace) -> None:
  if args.out.lower().endswith(preprocess.EXTENSIONS):
    raise InputError(
      f"--out {args.out}: for several images or expressions this is a folder; name one, such as "
      "answers"
    )
  for option in ("mask", "json", "explain"):
    if getattr(args, option):
      raise InputError(
        f"--{option} is for a single image and expression; for several, predictions.jsonl in --out "
        "has it"
      )
  if args.pairs:
    all_inputs = inputs.from_jsonl(args.pairs, args.images)
  elif not os.path.isdir(args.image):
    all_inputs = inputs.from_photo(args.image, args.text)
  else:
    _check_apart(args.image, args.out)
    all_inputs = inputs.from_folder(args.image, args.text)
    _report_ignored(all_inputs.ignored)
  model = load.load(args.checkpoint, args.step, backend=args.backend)
  settings = {"model": model.fingerprint(), "instances": args.instances, **all_inputs.source}
  with outputs.open_writer(args.out, settings, args.overwrite) as writer:
    skipped = _predict_all(all_inputs, Segmenter(model), args, writer)
    count = len(writer.done)
  print(f"{args.out}: {count} predictions, listed in {outputs.ROWS}")
  if skipped:
    print(f"{skipped} of {len(all_inputs.items)} images were skipped; see above", file=sys.stderr)
    sys.exit(1)


def _report_ignored(files: Sequence[tuple[str, str]]) -> None:
  for name, reason in files[:_SHOWN]:
    print(f"ignored: {name} {reason}", file=sys.stderr)
  if rest := files[_SHOWN:]:
    extensions = sorted({os.path.splitext(name)[1] or "no extension" for name, _ in rest})
    print(f"ignored: {len(rest):,} more ({', '.join(extensions)})", file=sys.stderr)


def _check_apart(images: str, out: str) -> None:
  inside = os.path.commonpath([os.path.realpath(images), os.path.realpath(out)])
  if inside == os.path.realpath(images):
    raise InputError(
      f"--out {out} is inside the folder of images, so overlays would be read as images; name "
      "another folder"
    )


class _Opened(NamedTuple):
  """An image that is decoded, and what its masks are found with."""

  item: PredictionInput
  pixels: UInt8[np.ndarray, "h w 3"]
  given: Any


def _predict_all(
  all_inputs: PredictionInputs,
  segmenter: Segmenter,
  args: argparse.Namespace,
  writer: outputs.PredictionWriter,
) -> int:
  """Predicts the remaining expressions; returns the number of skipped images."""
  total, skipped = sum(len(item.expressions) for item in all_inputs.items), 0
  remaining, instances = inputs.remaining(all_inputs, writer.done), segmenter.instances
  if args.instances != AUTO and (args.pairs or os.path.isdir(args.image)):
    if not is_spec(args.instances):
      # A plain path would be read as a file of a single image.
      args.instances = f"coco:{args.instances}"
    instances.check_images(args.instances, all_inputs.items)
  with progress_bar("predict", total, "expressions", min(total, len(writer.done))) as bar:

    @contextlib.contextmanager
    def usable(item: PredictionInput) -> Iterator[None]:
      nonlocal skipped
      try:
        yield
      except InputError as error:
        where = f"--pairs {args.pairs}, line {item.line}: " if item.line else ""
        if args.on_error == "stop":
          raise InputError(f"{where}{error}; --on_error skip continues without it") from error
        bar.write(f"skipped: {where}{error}", file=sys.stderr)
        skipped += 1

    for some in _in_batches(_decode_ahead(remaining), args.batch_size):
      opened: list[_Opened] = []
      for item, image in some:
        with usable(item):
          pixels = image.result()
          own = all_inputs.make_proposer(item, pixels) if args.instances == AUTO else None
          opened.append(_Opened(item, pixels, own or args.instances))
      with contextlib.suppress(InputError):  # which each image raises again
        instances.prefetch(args.instances, [x.pixels for x in opened if x.given is args.instances])
      found: list[tuple[_Opened, Bool[np.ndarray, "k h w"]]] = []
      for x in opened:
        with usable(x.item):
          found.append((x, instances.find(x.given, x.pixels, x.item.path, x.item.image)))
      for key, output, result in _predict(segmenter, found, writer.done, args.batch_size):
        writer.add(key, output, result)
        bar.update()
  _print_notes(instances)
  return skipped


def _predict(
  segmenter: Segmenter,
  found: Sequence[tuple[_Opened, Bool[np.ndarray, "k h w"]]],
  done: set[outputs.Key],
  together: int,
) -> Iterator[tuple[outputs.Key, str, Segmentation]]:
  """Yields the predictions of images that are not done: keys, the names of overlays, and results.

  Args:
    segmenter: the model.
    found: images and their masks.
    done: keys of the predictions that are there.
    together: rows that go through the model together; with 1, no result depends on others.
  """
  rows = []
  for x, masks in found:
    several = len(x.item.expressions) > 1
    for k, text in enumerate(x.item.expressions):
      key = (x.item.image, x.item.line, k)
      if key not in done:
        output = f"{x.item.output}{f'-{k + 1}' if several else ''}.png"
        rows.append((key, output, x.pixels, text, masks))
  # A few at a time: every result takes as much memory as several copies of the image.
  for some in _in_batches(rows, _CHUNK):
    keys, names, images, texts, masks = zip(*some, strict=True)
    if together > 1:
      results = segmenter.batch(images, texts, list(masks))
    else:
      results = segmenter(images[0], list(texts), masks[0])
    yield from zip(keys, names, results, strict=True)


def _print_notes(instances: ImageInstances) -> None:
  if instances.notes:
    print(f"instances: {list_counts(instances.notes)}", file=sys.stderr)


def _in_batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
  """Yields so many items at a time; the last ones may be fewer."""
  iterator = iter(items)
  while some := list(itertools.islice(iterator, size)):
    yield some


def _decode_ahead(items: Iterable[PredictionInput]) -> Iterator[tuple[PredictionInput, Future]]:
  """Yields inputs with their images, which a thread decodes a few ahead of the model."""
  with ThreadPoolExecutor(1) as pool:
    waiting: collections.deque[tuple[PredictionInput, Future]] = collections.deque()
    for item in items:
      waiting.append((item, pool.submit(preprocess.open_image, item.path)))
      if len(waiting) > _AHEAD:
        yield waiting.popleft()
    yield from waiting
