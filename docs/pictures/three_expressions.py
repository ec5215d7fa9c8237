"""Draws the picture of the README: a generated scene and the predictions for three expressions.

  python -m docs.pictures.three_expressions --checkpoint runs/demo \
    --out docs/pictures/three_expressions.jpg

The scene is in `val`, which is not trained on, drawn at four times the model's input size. The
expressions are the longest of each of its first three objects.
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.common import drawing
from input_pipeline.common.errors import run_command
from input_pipeline.shapes import scenes
from mail_jax.export import load
from mail_jax.predict.segmenter import Segmenter

_SIDE, _MARGIN, _CAPTION = 384, 12, 44


def main(argv: list[str] | None = None) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  load.add_arguments(parser)
  parser.add_argument("--scene", type=int, default=5, help="number of the scene in val")
  parser.add_argument("--out", required=True, help="the picture")
  args = parser.parse_args(argv)

  drawing.check_writable(args.out)
  scene = scenes.make_scene("val", 0, args.scene, size=_SIDE)
  longest = [max((e.text for e in texts), key=len) for texts in scene.expressions if texts]
  expressions = longest[:3]
  segmenter = Segmenter.load(args.checkpoint, args.step)
  results = segmenter(scene.image, expressions, scene.instances.masks)
  panels = [("", scene.image), *((result.expression, result.overlay()) for result in results)]
  drawing.save(_join(panels), args.out)
  print(f"{args.out}: {'; '.join(expressions)}")


def _join(panels: list[tuple[str, np.ndarray]]) -> Image.Image:
  """Places panels side by side, with their captions below."""
  width = len(panels) * (_SIDE + _MARGIN) + _MARGIN
  picture = Image.new("RGB", (width, _SIDE + _MARGIN + _CAPTION), "white")
  draw, font = ImageDraw.Draw(picture), ImageFont.load_default(20)
  for number, (caption, panel) in enumerate(panels):
    left = _MARGIN + number * (_SIDE + _MARGIN)
    picture.paste(Image.fromarray(panel), (left, _MARGIN))
    middle = left + _SIDE // 2
    draw.text((middle, _SIDE + _MARGIN + _CAPTION // 2), caption, "black", font, anchor="mm")
  return picture


if __name__ == "__main__":
  run_command(main)
