"""One photo, one expression, one mask:

python -m mail_jax.predict --checkpoint runs/demo --image photo.jpg --text "the leftmost star" --out overlay.png

With instance masks: --instances coco:instances.json (the photo is found in it by its file name). Without, the
model still answers, from image and text alone.
"""

import os

import numpy as np
from PIL import Image

from input_pipeline import drawing, preprocess
from input_pipeline import instances as providers
from input_pipeline.command_line import command_parser
from input_pipeline.errors import run_command
from mail_jax import trained
from mail_jax.segmenter import Segmenter


def find_instances(spec: str, path: str, image: np.ndarray) -> np.ndarray:
  """Instance masks of the photo at `path` from a provider of `--instances`, bool [k, h, w]."""
  provider = providers.open_provider(spec)
  find = getattr(provider.provider, "image_id", None)  # of those that look masks up in a file
  image_id = find(os.path.basename(path)) if find else 0
  return provider.propose([image], [image_id])[0].masks


def main(argv: list[str] | None = None) -> None:
  """The command."""
  parser = command_parser("mail_jax.predict", __doc__)
  trained.add_arguments(parser)
  parser.add_argument("--image", required=True, help="the photo")
  parser.add_argument("--text", required=True, help="what to look for")
  parser.add_argument(
    "--instances",
    default="none",
    metavar="NAME:ARGUMENT",
    help="where instance masks come from: docs/instances.md (default: none)",
  )
  parser.add_argument("--out", required=True, help="the photo with the mask over it")
  parser.add_argument("--mask", help="the mask alone, white on black, at the photo's size")
  args = parser.parse_args(argv)

  for path in (args.out, args.mask):
    if path:
      drawing.check_writable(path)
  preprocess.normalise_text(args.text)  # an empty one is refused before the model is loaded
  image = preprocess.open_image(args.image)
  masks = find_instances(args.instances, args.image, image)
  result = Segmenter.load(args.checkpoint, args.which)(image, args.text, masks)
  if args.mask:
    drawing.save(Image.fromarray(result.mask.astype(np.uint8) * 255), args.mask)
  drawing.save(Image.fromarray(result.overlay()), args.out)
  if result.was_cut:
    print("the text is longer than the model reads: its end was cut off")
  share = f"{result.mask.mean():.1%} of the photo"
  nothing = result.no_target_probability
  if nothing is not None and nothing > 0.5:
    print(f"{args.out}: nothing in the photo is meant ({nothing:.0%} sure)")
  elif result.chosen is None:
    print(f"{args.out}: {share}; no instance was chosen of {len(result.instances)}")
  else:
    sure = result.instance_probability[result.chosen]
    print(
      f"{args.out}: {share}; instance {result.chosen + 1} of {len(result.instances)} chosen ({sure:.0%} sure)"
    )


if __name__ == "__main__":
  run_command(main)
