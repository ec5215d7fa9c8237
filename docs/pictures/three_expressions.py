"""The picture of the README: one generated scene, what a model marks for three expressions of it.

  python -m docs.pictures.three_expressions --checkpoint runs/demo --out docs/pictures/three_expressions.jpg

The scene is one of `val`, which no training sees, drawn at four times the size that the model reads. The expressions
are the longest of each of its first three objects.
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
  """The command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  load.add_arguments(parser)
  parser.add_argument("--scene", type=int, default=5, help="number of the scene in val")
  parser.add_argument("--out", required=True, help="the picture")
  args = parser.parse_args(argv)

  drawing.check_writable(args.out)
  scene = scenes.make_scene("val", 0, args.scene, size=_SIDE)
  said = [max((e.text for e in texts), key=len) for texts in scene.expressions if texts][:3]
  segmenter = Segmenter.load(args.checkpoint, args.step)
  answers = [segmenter(scene.image, text, scene.instances.masks) for text in said]
  drawing.save(
    _join([("", scene.image), *((a.expression, a.overlay()) for a in answers)]), args.out
  )
  print(f"{args.out}: {'; '.join(said)}")


def _join(panels: list[tuple[str, np.ndarray]]) -> Image.Image:
  """Panels side by side, the caption of each below it."""
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
