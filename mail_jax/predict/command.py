"""A photo, an expression, a mask:

python -m mail_jax.predict --checkpoint runs/demo --image photo.jpg --text "the leftmost star" --out overlay.png

With instance masks: --instances coco:instances.json (the photo is found in it by its file name, or is its only image).
Without, the model still answers, from image and text alone. --mask mask.png and --json - say the same as a mask and as
JSON.

Many photos, into a folder with a picture an answer and predictions.jsonl: a folder of them, or lines of JSON, each
with `image`, `sentences` and, if it has them, `instances`. The same command goes on where it was stopped.

python -m mail_jax.predict --checkpoint runs/demo --image photos --text "the leftmost star" --out stars
python -m mail_jax.predict --checkpoint runs/demo --pairs mine.jsonl --out answers
"""

import argparse
import collections
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from input_pipeline import preprocess
from input_pipeline.common import atomic_files, drawing
from input_pipeline.common.command_line import command_parser
from input_pipeline.common.errors import InputError
from input_pipeline.common.progress_bar import progress_bar
from mail_jax.export import load
from mail_jax.predict import inputs, outputs
from mail_jax.predict.inputs import Question, Questions
from mail_jax.predict.instances import PhotoInstances
from mail_jax.predict.segmenter import Segmentation, Segmenter

_AHEAD = 3  # photos that are decoded while the model works
_TOGETHER = 8  # sentences of a photo that are answered before the answers are written


def main(argv: list[str] | None = None) -> None:
  """The command."""
  args = _parse(argv)
  for text in args.text or ():
    preprocess.normalise_text(text)  # an empty one is refused before the model is loaded
  if args.pairs or os.path.isdir(args.image):
    _predict_many(args)
  else:
    _predict_one(args)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = command_parser("mail_jax.predict", __doc__)
  load.add_arguments(parser)
  asked = parser.add_mutually_exclusive_group(required=True)
  asked.add_argument("--image", help="a photo, or a folder of photos")
  asked.add_argument(
    "--pairs", metavar="FILE.jsonl", help="photos and sentences, a line of JSON each"
  )
  parser.add_argument(
    "--text", action="append", help="what to look for; of a folder, may be given several times"
  )
  parser.add_argument(
    "--images", metavar="FOLDER", help="where the paths in --pairs start (default: its own folder)"
  )
  parser.add_argument(
    "--instances",
    metavar="NAME:ARGUMENT",
    help="where instance masks come from, such as coco:FILE (default: those of the lines of --pairs, else none)",
  )
  parser.add_argument(
    "--out", required=True, help="the photo with the mask over it; of several photos, a folder"
  )
  parser.add_argument("--mask", help="the mask alone, white on black, at the photo's size")
  parser.add_argument("--json", metavar="FILE", help="the answer as JSON; - prints it, and no more")
  parser.add_argument(
    "--on_error",
    choices=("stop", "skip"),
    default="stop",
    help="what to do with a photo that cannot be used, of several (default: stop)",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="removes the answers of an earlier run from --out"
  )
  args = parser.parse_args(argv)
  if args.image is not None and not args.text:
    parser.error("--image needs --text: what to look for")
  if args.pairs and args.text:
    parser.error("--pairs has sentences of its own: leave --text out")
  return args


def _predict_one(args: argparse.Namespace) -> None:
  if len(args.text) > 1:
    raise InputError(
      "--text: one photo is asked one thing; a folder of photos, or --pairs, takes several"
    )
  for path in (args.out, args.mask):
    if path:
      drawing.check_writable(path)
  if args.json not in (None, "-"):
    atomic_files.check_folder(args.json)
  pixels = preprocess.open_image(args.image)
  masks = PhotoInstances().of(args.instances, pixels, args.image)
  result = Segmenter.load(args.checkpoint, args.step)(pixels, args.text[0], masks)
  if args.mask:
    drawing.save(Image.fromarray(result.mask.astype(np.uint8) * 255), args.mask)
  drawing.save(Image.fromarray(result.overlay()), args.out)
  if args.json:
    text = json.dumps({"image": args.image, "picture": args.out} | outputs.describe(result))
    if args.json == "-":
      print(text)
      return
    atomic_files.write_whole(args.json, text + "\n")
  if result.was_cut:
    print("the text is longer than the model reads: its end was cut off")
  print(f"{args.out}: {_in_words(result)}")


def _in_words(result: Segmentation) -> str:
  nothing = result.no_target_probability
  if nothing is not None and nothing > 0.5:
    return f"nothing in the photo is meant ({nothing:.0%} sure)"
  share, count = f"{result.mask.mean():.1%} of the photo", len(result.instances)
  if result.selected is None:
    return f"{share}; no instance was chosen of {count}"
  sure = result.instance_probability[result.selected]
  return f"{share}; instance {result.selected + 1} of {count} chosen ({sure:.0%} sure)"


def _predict_many(args: argparse.Namespace) -> None:
  if args.out.lower().endswith(preprocess.EXTENSIONS):
    raise InputError(
      f"--out {args.out}: of several photos it is a folder; name one, such as answers"
    )
  for option in ("mask", "json"):
    if getattr(args, option):
      raise InputError(f"--{option} is for one photo; predictions.jsonl in --out has it of several")
  if args.pairs:
    asked = inputs.from_lines(args.pairs, args.images)
  else:
    _check_apart(args.image, args.out)
    asked = inputs.from_folder(args.image, args.text)
  model = load.load(args.checkpoint, args.step)
  settings = {"model": model.fingerprint(), "instances": args.instances} | asked.source
  with outputs.open_folder(args.out, settings, args.overwrite) as folder:
    skipped = _answer(asked, Segmenter(model), args, folder)
    count = len(folder.done)
  print(f"{args.out}: {count} answers, and {outputs.ROWS} with a row each")
  if skipped:
    print(f"{skipped} of {len(asked.asked)} photos were skipped, as told above", file=sys.stderr)
    sys.exit(1)


def _check_apart(photos: str, out: str) -> None:
  inside = os.path.commonpath([os.path.realpath(photos), os.path.realpath(out)])
  if inside == os.path.realpath(photos):
    raise InputError(
      f"--out {out} lies in the folder of photos, and answers would be taken for photos; name another folder"
    )


def _answer(
  asked: Questions,
  segmenter: Segmenter,
  args: argparse.Namespace,
  folder: outputs.AnswerFolder,
) -> int:
  """Answers what is not answered yet; returns how many photos were skipped."""
  total, skipped = sum(len(question.sentences) for question in asked.asked), 0
  left, found = inputs.in_order(asked.asked, folder.done), PhotoInstances()
  with progress_bar("predict", total, "expressions", min(total, len(folder.done))) as bar:
    for question, photo in _ahead(left):
      try:
        pixels = photo.result()
        given = asked.masks_of(question, pixels) if args.instances is None else args.instances
        masks = found.of(given, pixels, question.path)
        keys = [(question.image, question.line, k) for k in range(len(question.sentences))]
        keys = [key for key in keys if key not in folder.done]
        for some in _chunks(keys):
          texts = [question.sentences[number] for *_, number in some]
          for key, result in zip(some, segmenter(pixels, texts, masks), strict=True):
            ending = f"-{key[2] + 1}" if len(question.sentences) > 1 else ""
            folder.add(key, f"{question.picture}{ending}.png", result)
            bar.update()
      except InputError as error:
        where = f"--pairs {args.pairs}, line {question.line}: " if question.line else ""
        if args.on_error == "stop":
          raise InputError(f"{where}{error}; --on_error skip goes on without it") from error
        bar.write(f"skipped: {where}{error}", file=sys.stderr)
        skipped += 1
  return skipped


def _chunks(keys: list[outputs.Key]) -> Iterator[list[outputs.Key]]:
  """A few at a time: every answer is as large as the photo."""
  for first in range(0, len(keys), _TOGETHER):
    yield keys[first : first + _TOGETHER]


def _ahead(left: Iterator[Question]) -> Iterator[tuple[Question, Future]]:
  """Photos are decoded on a thread of their own, a few ahead of the model."""
  with ThreadPoolExecutor(1) as pool:
    waiting: collections.deque[tuple[Question, Future]] = collections.deque()
    for question in left:
      waiting.append((question, pool.submit(preprocess.open_image, question.path)))
      if len(waiting) > _AHEAD:
        yield waiting.popleft()
    yield from waiting
