"""`progress.png`: what a model makes of a few validation samples, drawn again as it learns."""

import io

import numpy as np
from PIL import Image

from input_pipeline.common import atomic_files, buckets, drawing
from mail_jax.train.logging.samples import Predicted

FILE = "progress.png"
# Longer side of an image in pixels.
_SIDE = 150


def draw(now: Predicted, step: int, steps: int, score: str = "") -> Image.Image:
  """Returns a sheet with photo, prediction and target of each sample, below its expression.

  Args:
    now: at least one sample, as the model predicts it.
    step: updates so far.
    steps: of the whole run; 0 if unknown.
    score: what the title adds, such as the latest evaluation.
  """
  captions = [
    f"{iou:.2f}  {expression}" for expression, iou in zip(now.expressions, now.ious, strict=True)
  ]
  title = f"step {step:,}" + (f" of {steps:,}" if steps else "")
  title += f"     mIoU of these {len(captions)}: {np.mean(now.ious):.2f}"
  title += f"     {score}" if score else ""
  title += "     photo, prediction (yellow: the selected instance), target"
  return drawing.strip_sheet([_strip(now, i) for i in range(len(captions))], captions, title)


def _strip(now: Predicted, i: int) -> list[np.ndarray]:
  height, width = now.sizes[i]
  size = drawing.fitting_size(height, width, _SIDE)
  photo = np.asarray(Image.fromarray(now.rows["image"][i]).resize(size, Image.Resampling.BICUBIC))
  mask, chosen, target = (
    drawing.stretch(masks[i], size) for masks in (now.masks, now.chosen, now.rows["target"])
  )
  predicted = drawing.overlay(photo, mask, selected=chosen if chosen.any() else None)
  true = drawing.outline(drawing.tint(photo, target, drawing.TARGET, 0.6), target, drawing.TARGET)
  return [photo, predicted, true]


def write(sheet: Image.Image, workdir: str) -> None:
  """Writes the sheet to WORKDIR/progress.png, whole or not at all.

  Raises:
    InputError: the system refuses to write it.
  """
  data, path = io.BytesIO(), buckets.folder(workdir, "--workdir") / FILE
  sheet.save(data, format="PNG")
  if buckets.is_remote(workdir):
    path.write_bytes(data.getvalue())
  else:
    atomic_files.write_whole(path, data.getvalue())
